"""What one cell does, in a process of its own, with nnU-Net's commands."""

import contextlib
import csv
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, replacing, write_json
from nnunet_ext.benchmark.collect import CURVES_FILE, measure_evaluation, read_summary
from nnunet_ext.benchmark.environment import circumstances
from nnunet_ext.benchmark.layout import Cell, Layout, State
from nnunet_ext.benchmark.prepare import Prepared, read_prepared
from nnunet_ext.benchmark.results import CLEAN, TEST
from nnunet_ext.nnunet import commands

FOLDS_FILE = "predicted_by_folds.json"
FEW_CASES = 20
"""Up to so many cases, starting worker processes for a prediction takes longer than they save."""


@dataclass(frozen=True)
class RunCell:
    """A cell as submitit runs it; picklable.

    Attributes:
        root: The benchmark's folder.
        cell: What to do.
        device: ``cpu``, ``cuda`` or ``mps``.
        gpu: Value for CUDA_VISIBLE_DEVICES, or None to leave it as it is.
    """

    root: Path
    cell: Cell
    device: str
    gpu: str | None = None

    def __call__(self) -> None:
        """Train and evaluate the cell."""
        with commands.termination_interrupts():
            Job(Layout(self.root), self.cell, self.device, self.gpu).run()

    def checkpoint(self) -> Any:
        """Called by submitit before a cluster ends the job: begin again, where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Job:
    """The work on one cell.

    Args:
        layout: The benchmark's folder, prepared.
        cell: What to do.
        device: ``cpu``, ``cuda`` or ``mps``.
        gpu: Value for CUDA_VISIBLE_DEVICES, or None to leave it as it is.
    """

    def __init__(self, layout: Layout, cell: Cell, device: str, gpu: str | None = None) -> None:
        self.layout = layout
        self.cell = cell
        self.device = device
        self.gpu = gpu
        self.state = State()

    def run(self) -> None:
        """Do what is not done yet; the outcome stands in the cell's state."""
        try:
            with self.layout.cell_lock(self.cell).acquire(timeout=0):
                self._run()
        except Timeout:
            pass  # another process works on it already, whose outcome counts

    def _run(self) -> None:
        self.state = self.layout.state(self.cell)
        prepared = read_prepared(self.layout)
        if self.state.status == "done" and is_complete(self.layout, prepared, self.cell):
            return
        begin, before = time.monotonic(), self.state.seconds
        outcome, reason = "missing", ""  # if this process is ended
        try:
            self._save("running", reason="", slot=self.gpu, circumstances=circumstances())
            self._work(prepared)
            outcome = "done"
        except UserError as error:
            outcome, reason = "failed", str(error)
        except Exception as error:
            traceback.print_exc()  # into the job's own log
            outcome, reason = "failed", f"{type(error).__name__}: {error}"
        finally:
            seconds = before + time.monotonic() - begin
            self._save(outcome, reason=reason, stage="", seconds=seconds)

    def _save(self, status: str, **changes: Any) -> None:
        for name, value in {"status": status, **changes}.items():
            setattr(self.state, name, value)
        self.layout.save(self.cell, self.state)

    def _work(self, prepared: Prepared) -> None:
        training = prepared.trainings[self.cell.arm]
        if training.problem:
            raise UserError(training.problem)
        self.trainer = training.trainer
        trains = self.cell.fold is not None and not self._source
        self.state.epochs = training.epochs if trains else None
        if self.cell.fold is None:
            self._predict_test_set(prepared)
        else:
            if not _is_summary(self._evaluations()[CLEAN] / "summary.json"):
                self._train_and_validate()
            if not self._source:
                self._write_curves()
            self._predict_degraded(prepared)
        for evaluation in self._evaluations().values():
            if evaluation.is_dir() and (evaluation / "summary.json").exists():
                self._stage(f"measuring {evaluation.name}")
                measure_evaluation(evaluation, self.layout)

    # ------------------------------------------------------------------------------- the commands

    @property
    def _model(self) -> Path:
        return self.layout.model(self.cell, self.trainer)

    @property
    def _source(self) -> str | None:
        """The arm whose weights are evaluated, or nothing if this arm trains its own."""
        return self.layout.benchmark.arms[self.cell.arm].weights_of

    @property
    def _fold(self) -> Path:
        return self._model / f"fold_{self.cell.fold}"

    def _evaluations(self) -> dict[str, Path]:
        return self.layout.evaluations(self.cell, self.trainer)

    @property
    def _options(self) -> list[str]:
        plans = self.layout.benchmark.plans_of(self.cell.arm)
        return ["-tr", self.trainer, "-p", plans, "-device", self.device]

    def _train_and_validate(self) -> None:
        command = ["nnUNetv2_train", self.layout.benchmark.dataset]
        command += [self.cell.trained_configuration, str(self.cell.fold), *self._options]
        if self._source:
            self._take_weights(self._source)
        if (self._fold / "checkpoint_final.pth").exists():
            command.append("--val")  # only the validation is missing
        elif any(self._fold.glob("checkpoint_*.pth")):
            command.append("--c")
        self._stage("starting")
        self._call(command)

    def _take_weights(self, source: str) -> None:
        from nnunet_ext.trainers import checkpoint

        other = Cell(source, self.cell.configuration, self.cell.seed, self.cell.fold)
        model = self.layout.model(other, self.trainer)
        self._fold.mkdir(parents=True, exist_ok=True)
        for name in ("dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(model / name, self._model / name)
        plans = f"{self.layout.benchmark.plans_of(self.cell.arm)}.json"
        shutil.copyfile(self.layout.dataset / plans, self._model / "plans.json")
        name = "checkpoint_final.pth"
        weights = checkpoint.read(model / f"fold_{self.cell.fold}" / name)
        # nnUNetv2_predict goes by what the checkpoint names
        weights["init_args"]["configuration"] = self.cell.trained_configuration
        checkpoint.write(weights, self._fold / name)

    def _write_curves(self) -> None:
        from nnunet_ext.trainers import checkpoint

        log = checkpoint.read(self._fold / "checkpoint_final.pth")["logging"]
        starts, ends = log["epoch_start_timestamps"], log["epoch_end_timestamps"]
        rows = zip(
            log["train_losses"], log["val_losses"], log["mean_fg_dice"], starts, ends, strict=False
        )
        with (
            replacing(self.layout.folder(self.cell) / CURVES_FILE) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["epoch", "train_loss", "val_loss", "pseudo_dice", "seconds"])
            for epoch, (train, val, dice, start, end) in enumerate(rows):
                writer.writerow([epoch, float(train), float(val), float(dice), end - start])

    def _predict_degraded(self, prepared: Prepared) -> None:
        for name in self.layout.benchmark.degradations:
            images = self.layout.degraded / name / f"fold_{self.cell.fold}"
            self._predict(images, self._evaluations()[name], [self.cell.fold], prepared)
            self._evaluate(self.layout.truth, self._evaluations()[name])

    def _predict_test_set(self, prepared: Prepared) -> None:
        if prepared.test_images is None:
            return
        target = self._evaluations()[TEST]
        self._predict(Path(prepared.test_images), target, self.layout.benchmark.folds, prepared)
        if prepared.test_labels is not None:
            self._evaluate(Path(prepared.test_labels), target)

    def _predict(
        self, images: Path, target: Path, folds: Sequence[int | None], prepared: Prepared
    ) -> None:
        ending = prepared.file_ending
        cases = list(images.glob(f"*_0000{ending}"))
        if _predicted_folds(target) == list(folds):
            return
        done = list(target.glob(f"*{ending}"))
        if _predicted_folds(target) is not None:  # of other folds
            shutil.rmtree(target)
        elif done:  # the newest may be half-written
            max(done, key=lambda file: file.stat().st_mtime).unlink()
        self._stage(f"predicting {images.parent.name if self.cell.fold is not None else 'test'}")
        workers = "0" if len(cases) <= FEW_CASES else str(commands.workers())
        command = ["nnUNetv2_predict", "-i", str(images), "-o", str(target)]
        command += ["-d", self.layout.benchmark.dataset, "-c", self.cell.trained_configuration]
        command += ["-f", *map(str, folds), *self._options]
        self._call([*command, "-npp", workers, "-nps", workers, "--continue_prediction"])
        write_json(target / FOLDS_FILE, list(folds))

    def _evaluate(self, truth: Path, predictions: Path) -> None:
        if _is_summary(predictions / "summary.json"):
            return
        plans = self.layout.dataset / f"{self.layout.benchmark.plans_of(self.cell.arm)}.json"
        command = ["nnUNetv2_evaluate_folder", str(truth), str(predictions), "-djfile"]
        command += [str(self.layout.dataset / "dataset.json"), "-pfile", str(plans)]
        self._call([*command, "-np", str(commands.workers()), "--chill"])

    def _call(self, command: list[str]) -> None:
        folder = self.layout.folder(self.cell)
        usage = folder / "usage.json"
        usage.unlink(missing_ok=True)
        self.state.commands.append(shlex.join(command))
        self._save("running")
        environment = commands.environment(self.device)
        environment |= {
            "nnUNet_preprocessed": str(self.layout.preprocessed),
            "nnUNet_results": str(self.layout.results),
        }
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        launcher = (sys.executable, "-m", "nnunet_ext.benchmark.measured", str(usage))
        try:
            commands.run_command(
                command, environment, self.layout.log(self.cell), self._read_line, launcher
            )
        finally:
            self._add_usage(usage)

    def _add_usage(self, usage: Path) -> None:
        with contextlib.suppress(UserError):
            used = read_json(usage)
            if used.get("peak_memory_mib", 0) > (self.state.peak_memory_mib or 0):
                self.state.peak_memory_mib = used["peak_memory_mib"]
                self.state.memory_kind = used["memory_kind"]
            if "gpu" in used:
                self.state.circumstances["gpu"] = used["gpu"]

    def _read_line(self, line: str) -> None:
        epoch = commands.epoch_begun(line)
        if epoch is not None:
            self.state.epoch = epoch
            self._stage("training")
        elif "Training done." in line:
            self.state.epoch = self.state.epochs or self.state.epoch + 1
            self._stage("validating")

    def _stage(self, stage: str) -> None:
        self._save("running", stage=stage)


def is_complete(layout: Layout, prepared: Prepared, cell: Cell) -> bool:
    """Whether everything that a finished cell leaves behind is there."""
    trainer = prepared.trainings[cell.arm].trainer
    evaluations = layout.evaluations(cell, trainer)
    if cell.fold is None and _predicted_folds(evaluations[TEST]) != list(layout.benchmark.folds):
        return False
    if cell.fold is None and prepared.test_labels is None:
        return True
    return all(_is_summary(folder / "summary.json") for folder in evaluations.values())


def _predicted_folds(folder: Path) -> list[int] | None:
    """Folds whose models have predicted all images of a folder, None if it is not finished."""
    try:
        folds: list[int] = read_json(folder / FOLDS_FILE)
    except UserError:
        return None
    return folds


def _is_summary(path: Path) -> bool:
    try:
        read_summary(path)
    except UserError:
        return False
    return True
