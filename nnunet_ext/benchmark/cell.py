"""What one cell does: trains, validates, predicts; begun again, it goes on where it was.

    python -m nnunet_ext.benchmark.cell FOLDER NAME [DEVICE]

does one of the cells of a prepared benchmark, whose names are those of the folders in
``FOLDER/cells``; ``nnunet-ext benchmark run`` does the same for all of them.
"""

import contextlib
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import Timeout

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_csv, write_json
from nnunet_ext.benchmark.collect import CURVES_FILE, measure_evaluation
from nnunet_ext.benchmark.environment import circumstances
from nnunet_ext.benchmark.layout import Cell, Layout, State, Status
from nnunet_ext.benchmark.prepare import Prepared, read_prepared
from nnunet_ext.benchmark.results import CLEAN, TEST
from nnunet_ext.evaluation.scoring import SUMMARY, read_summary
from nnunet_ext.nnunet import commands
from nnunet_ext.nnunet.datasets import DATASET_JSON

FOLDS_FILE = "predicted_by_folds.json"
FEW_CASES = 20
"""Up to so many cases, starting worker processes for a prediction takes longer than they save."""
FINAL = "checkpoint_final.pth"


def work(root: Path, name: str, device: str, gpu: str | None = None) -> State:
    """Do what a cell lacks; the outcome stands in its state, which is returned."""
    layout = Layout(root)
    cells = {cell.name: cell for cell in layout.cells(test=True)}
    if name not in cells:
        raise UserError(f"{layout.root} has no cell {name}; there are: {', '.join(cells)}.")
    lock = layout.cell_lock(cells[name])
    # whoever holds the lock works on it already, and that outcome counts
    with commands.termination_interrupts(), contextlib.suppress(Timeout), lock.acquire(timeout=0):
        _Work(layout, cells[name], device, gpu).run()
    return layout.state(cells[name])


class _Work:
    def __init__(self, layout: Layout, cell: Cell, device: str, gpu: str | None) -> None:
        self.layout, self.cell, self.device, self.gpu = layout, cell, device, gpu
        self.benchmark, self.prepared = layout.benchmark, read_prepared(layout)
        self.state = layout.state(cell)
        self.training = self.prepared.trainings[cell.arm]
        self.model = layout.model(cell, self.training.trainer)
        self.fold = self.model / f"fold_{cell.fold}"
        self.evaluations = layout.evaluations(cell, self.training.trainer)
        self.source = self.benchmark.arms[cell.arm].weights_of
        self.plans = self.benchmark.plans_of(cell.arm)

    def run(self) -> None:
        """Do what is left, and save how it ended."""
        if self.state.status == "done" and is_complete(self.layout, self.prepared, self.cell):
            return
        begin, before = time.monotonic(), self.state.seconds
        outcome: Status = "missing"  # if this process is ended
        reason = ""
        try:
            trains = self.cell.fold is not None and not self.source
            self.state.epochs = self.training.epochs if trains else None
            self._save("running", reason="", gpu=self.gpu, circumstances=circumstances())
            self._work()
            outcome = "done"
        except UserError as error:
            outcome, reason = "failed", str(error)
        except Exception as error:
            traceback.print_exc()  # into the job's own log
            outcome, reason = "failed", f"{type(error).__name__}: {error}"
        finally:
            seconds = before + time.monotonic() - begin
            epoch = commands.epochs_begun(self.layout.log(self.cell)) or self.state.epoch
            self._save(outcome, reason=reason, seconds=seconds, epoch=epoch)

    def _save(self, status: Status, **changes: Any) -> None:
        for name, value in {"status": status, **changes}.items():
            setattr(self.state, name, value)
        self.layout.save(self.cell, self.state)

    def _work(self) -> None:
        if self.training.problem:
            raise UserError(self.training.problem)
        if self.cell.fold is None:
            self._predict(str(self.prepared.test_images), TEST, self.benchmark.folds)
            if self.prepared.test_labels is not None:
                self._evaluate(self.prepared.test_labels, TEST)
        else:
            if not _is_summary(self.evaluations[CLEAN]):
                self._train_and_validate()
            if not self.source:
                self._write_curves()
            for name in self.benchmark.degradations:
                images = self.layout.degraded / name / f"fold_{self.cell.fold}"
                self._predict(str(images), name, [self.cell.fold])
                self._evaluate(str(self.layout.truth), name)
        for folder in self.evaluations.values():
            if (folder / SUMMARY).exists():
                measure_evaluation(folder, self.layout)

    # ------------------------------------------------------------------------------- the commands

    def _train_and_validate(self) -> None:
        command = ["nnUNetv2_train", self.benchmark.dataset, self.cell.trained_configuration]
        command += [str(self.cell.fold), *self._options]
        if self.source:
            self._take_weights(self.source)
        if (self.fold / FINAL).exists():
            command.append("--val")  # only the validation is missing
        elif any(self.fold.glob("checkpoint_*.pth")):
            command.append("--c")
        elif first := self.benchmark.arms[self.cell.arm].begins_with:
            weights = self._model_of(first) / self.fold.name / FINAL
            command += ["-pretrained_weights", str(weights)]
        self._call(command)
        if not (self.fold / FINAL).exists():
            raise UserError(
                f"The training was stopped by a file named stop in {self.fold}. Run the same "
                "benchmark command again to continue it."
            )

    def _model_of(self, arm: str) -> Path:
        other = Cell(arm, self.cell.configuration, self.cell.seed, self.cell.fold)
        return self.layout.model(other, self.prepared.trainings[arm].trainer)

    def _take_weights(self, source: str) -> None:
        from nnunet_ext.trainers import checkpoint

        model = self._model_of(source)
        self.fold.mkdir(parents=True, exist_ok=True)
        for name in (DATASET_JSON, "dataset_fingerprint.json"):
            shutil.copyfile(model / name, self.model / name)
        shutil.copyfile(self.layout.dataset / f"{self.plans}.json", self.model / "plans.json")
        weights = checkpoint.read(model / self.fold.name / FINAL)
        # nnUNetv2_predict goes by what the checkpoint names
        weights["init_args"]["configuration"] = self.cell.trained_configuration
        checkpoint.write(weights, self.fold / FINAL)

    def _write_curves(self) -> None:
        from nnunet_ext.trainers import checkpoint

        log = checkpoint.read(self.fold / FINAL)["logging"]
        times = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False)
        columns = {
            "train_loss": log["train_losses"],
            "val_loss": log["val_losses"],
            "pseudo_dice": log["mean_fg_dice"],
            "seconds": [end - start for start, end in times],
        }
        rows = zip(*columns.values(), strict=False)
        curves = pd.DataFrame([*rows], columns=[*columns], dtype=float)
        write_csv(
            curves.rename_axis("epoch").reset_index(), self.layout.folder(self.cell) / CURVES_FILE
        )

    def _predict(self, images: str, evaluation: str, folds: Sequence[int]) -> None:
        target, ending = self.evaluations[evaluation], self.prepared.file_ending
        if _predicted_folds(target) == list(folds):
            return
        done = list(target.glob(f"*{ending}"))
        if _predicted_folds(target) is not None:  # of other folds
            shutil.rmtree(target)
        elif done:  # the newest may be half-written
            max(done, key=lambda file: file.stat().st_mtime).unlink()
        few = len(list(Path(images).glob(f"*_0000{ending}"))) <= FEW_CASES
        workers = "0" if few else str(commands.workers())
        command = ["nnUNetv2_predict", "-i", images, "-o", str(target)]
        command += ["-d", self.benchmark.dataset, "-c", self.cell.trained_configuration]
        command += ["-f", *map(str, folds), *self._options]
        self._call([*command, "-npp", workers, "-nps", workers, "--continue_prediction"])
        write_json(target / FOLDS_FILE, list(folds))

    def _evaluate(self, truth: str, evaluation: str) -> None:
        predictions = self.evaluations[evaluation]
        if not _is_summary(predictions):
            command = ["nnUNetv2_evaluate_folder", truth, str(predictions), "-djfile"]
            command += [str(self.layout.dataset / DATASET_JSON), "-pfile"]
            command += [str(self.layout.dataset / f"{self.plans}.json")]
            self._call([*command, "-np", str(commands.workers()), "--chill"])

    @property
    def _options(self) -> list[str]:
        return ["-tr", self.training.trainer, "-p", self.plans, "-device", self.device]

    def _call(self, command: list[str]) -> None:
        usage = self.layout.folder(self.cell) / "usage.json"
        usage.unlink(missing_ok=True)
        self.state.commands.append(shlex.join(command))
        self._save("running")
        variables = {
            "nnUNet_preprocessed": str(self.layout.preprocessed),
            "nnUNet_results": str(self.layout.results),
        }
        if self.gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpu
        log = self.layout.log(self.cell)
        try:
            commands.run_command(command, log, variables, self.device, usage)
        finally:
            with contextlib.suppress(UserError):  # where a command was killed
                used = read_json(usage)
                if used.get("peak_memory_mib", 0) > (self.state.peak_memory_mib or 0):
                    self.state.peak_memory_mib = used["peak_memory_mib"]
                    self.state.memory_kind = used["memory_kind"]
                if "gpu" in used:
                    self.state.circumstances["gpu"] = used["gpu"]


def is_complete(layout: Layout, prepared: Prepared, cell: Cell) -> bool:
    """Whether everything that a finished cell leaves behind is there."""
    trainer = prepared.trainings[cell.arm].trainer
    evaluations = layout.evaluations(cell, trainer)
    if cell.fold is None and _predicted_folds(evaluations[TEST]) != list(layout.benchmark.folds):
        return False
    if cell.fold is None and prepared.test_labels is None:
        return True
    return all(_is_summary(folder) for folder in evaluations.values())


def _predicted_folds(folder: Path) -> list[int] | None:
    """Folds whose models have predicted all images of a folder, None if it is not finished."""
    try:
        folds: list[int] = read_json(folder / FOLDS_FILE)
    except UserError:
        return None
    return folds


def _is_summary(folder: Path) -> bool:
    try:
        read_summary(folder / SUMMARY)
    except UserError:
        return False
    return True


if __name__ == "__main__":
    try:
        problem = work(Path(sys.argv[1]), sys.argv[2], *(sys.argv[3:] or ["cuda"])).reason
    except UserError as mistake:
        problem = str(mistake)
    sys.exit(f"Error: {problem}" if problem else 0)
