"""The steps of the demo, in order; each one is done once, and a broken run goes on.

Every step either runs a command of nnU-Net's or makes its data. What a step leaves behind
counts only when ``demo.json`` says that the step is finished, so nothing half-written is
ever taken for a result.
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from nnunet_ext._common.console import print_plain
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import write_json
from nnunet_ext.benchmark import synthetic
from nnunet_ext.demo import readers
from nnunet_ext.demo.display import Display, StepDisplay
from nnunet_ext.demo.trainers import TrainerChoice
from nnunet_ext.demo.workspace import Parameters, Workspace
from nnunet_ext.nnunet import commands, decathlon
from nnunet_ext.settings import PLANS_KEY

PLANNER = "CompactPlanner"
PLANS = "CompactPlans"
BASE_CONFIGURATION = "3d_fullres"
CONFIGURATION = "3d_fullres_demo"
FOLD = "0"

DEFAULT_EPOCHS = 15
DEFAULT_ITERATIONS = 20
VALIDATION_ITERATIONS = 5
DEFAULT_CASES = 24
TEST_SHARE = 4
"""One test case per so many training cases."""
LEARNING_RATE = 2e-3
"""For Adam; the few steps that fit into minutes need more than its usual 1e-3."""

FEW_CASES = 20
"""Up to so many test cases, starting worker processes takes longer than they save."""

Runner = Callable[..., None]


@dataclass(frozen=True)
class Step:
    """One step: what it is called, what it does, and what must exist when it is done."""

    name: str
    title: str
    run: Callable[[StepDisplay], None]
    output: Callable[[], Path]


class Pipeline:
    """From nothing, or from a Decathlon task, to scores.

    Args:
        parameters: What to do.
        workspace: Where.
        trainer: Who trains.
        device: ``cpu``, ``cuda`` or ``mps``.
        console: Where progress is shown.
        run_command: Runs one command of nnU-Net's; tests put another one here.
    """

    def __init__(
        self,
        parameters: Parameters,
        workspace: Workspace,
        trainer: TrainerChoice,
        device: str,
        console: Console,
        run_command: Runner = commands.run_command,
    ) -> None:
        self.parameters = parameters
        self.workspace = workspace
        self.trainer = trainer
        self.device = device
        self.console = console
        self._run_command = run_command

    def run(self) -> None:
        """Do every step that is not finished."""
        steps = self.steps()
        display = Display(self.console, len(steps))
        for number, step in enumerate(steps):
            if self.workspace.is_finished(step.name) and step.output().exists():
                display.skip(step.title)
                continue
            self.workspace.begin(step.name, [later.name for later in steps[number + 1 :]])
            start = time.monotonic()
            with display.step(step.title) as shown:
                step.run(shown)
            self.workspace.finish(step.name, time.monotonic() - start)

    def steps(self) -> list[Step]:
        """All steps in order."""
        return [
            Step("data", self._data_title(), self._get_data, lambda: self.task_path),
            Step(
                "convert",
                "Convert to nnU-Net's format",
                self._convert,
                lambda: self.raw_dataset / "dataset.json",
            ),
            Step(
                "preprocess",
                f"Plan with {PLANNER} and preprocess",
                self._plan_and_preprocess,
                lambda: self.plans_file,
            ),
            Step(
                "train",
                f"Train {self.trainer.name} on {self.device}",
                self._train,
                lambda: self.validation / "summary.json",
            ),
            Step(
                "predict",
                "Predict the test cases",
                self._predict,
                lambda: self.workspace.predictions if self.task.test else self.workspace.root,
            ),
            Step("evaluate", "Evaluate", self._evaluate, lambda: self.scores_file),
        ]

    # ------------------------------------------------------------------------- where things are

    @property
    def task_path(self) -> Path:
        """The task folder in Decathlon layout."""
        if self.parameters.data:
            return Path(self.parameters.data)
        return self.workspace.root / (self.parameters.task or synthetic.TASK_NAME)

    @cached_property
    def task(self) -> decathlon.TaskFolder:
        """The task folder, checked; only after the first step."""
        return decathlon.check_task_folder(self.task_path)

    @property
    def raw_dataset(self) -> Path:
        """The data set in nnU-Net's raw format."""
        return self.workspace.raw / self.task.dataset_name

    @property
    def preprocessed_dataset(self) -> Path:
        """The preprocessed data set."""
        return self.workspace.preprocessed / self.task.dataset_name

    @property
    def plans_file(self) -> Path:
        """The plans that training reads."""
        return self.preprocessed_dataset / f"{PLANS}.json"

    @property
    def fold_folder(self) -> Path:
        """Where nnU-Net puts checkpoints and logs."""
        model = f"{self.trainer.name}__{PLANS}__{CONFIGURATION}"
        return self.workspace.results / self.task.dataset_name / model / f"fold_{FOLD}"

    @property
    def validation(self) -> Path:
        """nnU-Net's own predictions of the validation cases."""
        return self.fold_folder / "validation"

    @property
    def scores_file(self) -> Path:
        """nnU-Net's summary of the cases that the demo reports."""
        if self.task.has_test_labels:
            return self.workspace.predictions / "summary.json"
        return self.validation / "summary.json"

    # -------------------------------------------------------------------------------- the steps

    def _data_title(self) -> str:
        if self.parameters.data:
            return f"Check {self.parameters.data}"
        if self.parameters.task:
            return f"Get {self.parameters.task} of the Medical Segmentation Decathlon"
        return "Generate a synthetic 3D task, images of three sites"

    def _get_data(self, display: StepDisplay) -> None:
        root = self.workspace.root
        if self.parameters.task:
            print_plain(self.console, f"      {decathlon.terms(self.parameters.task)}")
            decathlon.fetch_task(self.parameters.task, root, progress=_download_shown(display))
        elif not self.parameters.data:
            training = self.parameters.cases or DEFAULT_CASES
            synthetic.write_task(
                root,
                training,
                max(len(synthetic.SITES), training // TEST_SHARE),
                self.parameters.seed,
                lambda done, total: display.update(f"{done} of {total} cases", done, total),
            )
        task = self.task
        names = ", ".join(name for value, name in sorted(task.labels.items()) if value)
        print_plain(
            self.console,
            f"      {len(task.training)} training cases, {len(task.test)} test cases; {names}",
        )

    def _convert(self, display: StepDisplay) -> None:
        # nnU-Net refuses to convert into a data set that exists, be it complete or not
        stale = (self.raw_dataset, self.preprocessed_dataset, self.fold_folder.parents[1])
        for folder in (*stale, self.workspace.predictions):
            shutil.rmtree(folder, ignore_errors=True)
        command = ["nnUNetv2_convert_MSD_dataset", "-i", str(self.task.path)]
        self._call(
            [*command, "-np", str(commands.workers())], "convert", display, lambda line: None
        )

    def _plan_and_preprocess(self, display: StepDisplay) -> None:
        shutil.rmtree(self.preprocessed_dataset, ignore_errors=True)
        workers = str(commands.workers())
        command = ["nnUNetv2_plan_and_preprocess", "-d", str(self.task.task_id)]
        command += ["-pl", PLANNER, "-c", BASE_CONFIGURATION, "--verify_dataset_integrity"]
        command += ["-npfp", workers, "-np", workers]
        self._call(command, "preprocess", display, readers.bar_reader(display))
        self.add_configuration()

    def add_configuration(self) -> None:
        """Add the demo's short schedule to the plans, as a configuration of its own name.

        Raises:
            UserError: If the planner made no 3D configuration for these data.
        """
        plans = json.loads(self.plans_file.read_text(encoding="utf-8"))
        if BASE_CONFIGURATION not in plans["configurations"]:
            raise UserError(
                f"{self.plans_file} has no configuration {BASE_CONFIGURATION}: these images are "
                "not 3D. The demo needs 3D images."
            )
        plans["configurations"][CONFIGURATION] = {
            "inherits_from": BASE_CONFIGURATION,
            **({PLANS_KEY: self.schedule()} if self.trainer.reads_settings else {}),
        }
        write_json(self.plans_file, plans)

    def schedule(self) -> dict[str, object]:
        """Training settings that fit into minutes."""
        return {
            "num_epochs": self.trainer.epochs,
            "num_iterations_per_epoch": self.parameters.iterations,
            "num_val_iterations_per_epoch": min(
                VALIDATION_ITERATIONS, self.parameters.iterations or VALIDATION_ITERATIONS
            ),
            "save_every": 1,
            "optimizer": "adam",
            "initial_lr": LEARNING_RATE,
            "seed": self.parameters.seed,
            "progress_bar": False,
        }

    def _train(self, display: StepDisplay) -> None:
        command = ["nnUNetv2_train", str(self.task.task_id), CONFIGURATION, FOLD]
        command += ["-tr", self.trainer.name, "-p", PLANS, "-device", self.device]
        if (self.fold_folder / "checkpoint_final.pth").exists():
            command.append("--val")  # only the validation at the end was interrupted
        elif any(self.fold_folder.glob("checkpoint_*.pth")):
            command.append("--c")
        else:  # predictions that are there would be another training's
            shutil.rmtree(self.workspace.predictions, ignore_errors=True)
        reader = readers.training_reader(display, self.trainer.epochs)
        self._call(command, "train", display, reader)

    def _predict(self, display: StepDisplay) -> None:
        if not self.task.test:
            display.update("there are no test cases", milestone=True)
            return
        predictions = self.workspace.predictions
        _remove_newest(predictions)
        workers = "0" if len(self.task.test) <= FEW_CASES else str(commands.workers())
        command = ["nnUNetv2_predict", "-i", str(self.raw_dataset / "imagesTs")]
        command += ["-o", str(predictions), "-d", str(self.task.task_id), "-c", CONFIGURATION]
        command += ["-f", FOLD, "-tr", self.trainer.name, "-p", PLANS, "-device", self.device]
        command += ["-npp", workers, "-nps", workers, "--continue_prediction"]
        reader = readers.prediction_reader(display, len(self.task.test))
        self._call(command, "predict", display, reader)

    def _evaluate(self, display: StepDisplay) -> None:
        if not self.task.has_test_labels:
            display.update(
                "the test cases have no labels; nnU-Net has evaluated the validation cases",
                milestone=True,
            )
            return
        command = ["nnUNetv2_evaluate_folder", str(self.task.path / "labelsTs")]
        command += [str(self.workspace.predictions), "-djfile"]
        command += [str(self.raw_dataset / "dataset.json"), "-pfile", str(self.plans_file)]
        command += ["-np", str(commands.workers()), "--chill"]
        self._call(command, "evaluate", display, lambda line: None)

    def _call(
        self,
        command: list[str],
        log: str,
        display: StepDisplay,
        read_line: commands.LineReader,
    ) -> None:
        log_file = self.workspace.logs / f"{log}.log"
        display.command(shlex.join(command))
        self._run_command(command, self.environment(), log_file, read_line)

    def environment(self) -> dict[str, str]:
        """What nnU-Net's commands find in their environment."""
        return {**self.workspace.variables, **commands.environment(self.device)}


def _remove_newest(folder: Path) -> None:
    """Remove the file that an interrupted prediction may have left half-written."""
    written = sorted(folder.glob("*.nii.gz"), key=lambda path: path.stat().st_mtime)
    if written:
        written[-1].unlink()


def _download_shown(display: StepDisplay) -> decathlon.Progress:
    tenths = -1

    def show(done: int, total: int | None) -> None:
        nonlocal tenths
        reached = 10 * done // total if total else done // 10**8
        of = f" of {total / 1e6:.0f}" if total else ""
        display.update(f"{done / 1e6:.0f}{of} MB", done, total, milestone=reached > tenths)
        tenths = max(tenths, reached)

    return show
