"""Where everything of a benchmark lies, and the state of its cells."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_json
from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.results import CLEAN, TEST
from nnunet_ext.benchmark.spec import Benchmark, slug

Status = Literal["missing", "running", "done", "failed"]


@dataclass(frozen=True)
class Cell:
    """One training with its validation, or the prediction of the test set (no fold)."""

    arm: str
    configuration: str
    seed: int
    fold: int | None

    @property
    def trained_configuration(self) -> str:
        """Name under which nnU-Net finds this arm's settings and seed in the plans."""
        return f"{self.configuration}_{slug(self.arm)}_seed{self.seed}"

    @property
    def name(self) -> str:
        """Name of the cell's own folder."""
        part = "test" if self.fold is None else f"fold{self.fold}"
        return f"{self.trained_configuration}_{part}"

    def __str__(self) -> str:
        part = "test set" if self.fold is None else f"fold {self.fold}"
        return f"{self.arm}, {self.configuration}, seed {self.seed}, {part}"


@dataclass
class State:
    """What is known of a cell.

    Attributes:
        status: ``running`` is only believed while the cell's lock is held.
        reason: Why it failed.
        slot: The GPU that it runs on, where that had to be said.
        stage: What it does now.
        epoch: Epochs that are finished.
        epochs: Epochs in the end, if known.
        seconds: Wall time, earlier runs included.
        peak_memory_mib: Peak over all its commands.
        memory_kind: ``GPU`` (as PyTorch reserved it) or ``RAM`` (resident set of the process).
        commands: nnU-Net's commands, as they were run.
        circumstances: Hardware and versions.
    """

    status: Status = "missing"
    reason: str = ""
    slot: str | None = None
    stage: str = ""
    epoch: int = 0
    epochs: int | None = None
    seconds: float = 0.0
    peak_memory_mib: float | None = None
    memory_kind: str = ""
    commands: list[str] = field(default_factory=list)
    circumstances: dict[str, Any] = field(default_factory=dict)


class Layout:
    """The folder of a benchmark.

    Args:
        root: The folder, claimed already.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    @cached_property
    def benchmark(self) -> Benchmark:
        """What the folder's ``benchmark.json`` says."""
        return spec.read(self.root)

    @property
    def noisy_raw(self) -> Path:
        """Raw data set with noisy labels."""
        return self.root / "noisy" / "nnUNet_raw"

    @property
    def noisy_preprocessed(self) -> Path:
        """What nnU-Net makes of it."""
        return self.root / "noisy" / "nnUNet_preprocessed"

    @property
    def preprocessed(self) -> Path:
        """Plans and splits of the benchmark's own; the images are links."""
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """Trained models, as nnU-Net lays them out."""
        return self.root / "nnUNet_results"

    @property
    def dataset(self) -> Path:
        """Preprocessed folder of the data set."""
        return self.preprocessed / self.benchmark.dataset

    @property
    def truth(self) -> Path:
        """Clean labels of all training cases, as nnU-Net's validation finds them."""
        return self.dataset / "gt_segmentations"

    @property
    def degraded(self) -> Path:
        """Degraded images, by degradation and fold."""
        return self.root / "degraded_images"

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.root / "report"

    @property
    def prepared(self) -> Path:
        """What preparation has found out: trainer classes, raw images, labels."""
        return self.root / "prepared.json"

    @property
    def jobs(self) -> Path:
        """submitit's own files."""
        return self.root / "jobs"

    @property
    def lock(self) -> FileLock:
        """Held while ``benchmark run`` works in this folder."""
        return FileLock(self.root / ".lock")

    def cells(self, test: bool) -> Iterator[Cell]:
        """All cells; those needed for a first comparison of all arms come first.

        Args:
            test: Whether there is a test set.
        """
        benchmark = self.benchmark
        for seed in range(benchmark.seeds):
            for fold in [*benchmark.folds, *([None] if test else [])]:
                for configuration in benchmark.configurations:
                    for arm in benchmark.arms:
                        yield Cell(arm, configuration, seed, fold)

    def needed_by(self, cell: Cell) -> list[Cell]:
        """Cells that must be done before this one can begin."""
        source = self.benchmark.arms[cell.arm].weights_of
        if cell.fold is None:
            return [
                Cell(cell.arm, cell.configuration, cell.seed, fold) for fold in self.benchmark.folds
            ]
        return [] if source is None else [Cell(source, cell.configuration, cell.seed, cell.fold)]

    def folder(self, cell: Cell) -> Path:
        """The cell's own folder: state, log, lock."""
        return self.root / "cells" / cell.name

    def log(self, cell: Cell) -> Path:
        """What nnU-Net's commands print."""
        return self.folder(cell) / "log.txt"

    def model(self, cell: Cell, trainer: str) -> Path:
        """nnU-Net's folder of the trained model.

        Args:
            cell: One of its cells.
            trainer: Name of the class that trains.
        """
        plans = self.benchmark.plans_of(cell.arm)
        name = f"{trainer}__{plans}__{cell.trained_configuration}"
        return self.results / self.benchmark.dataset / name

    def evaluations(self, cell: Cell, trainer: str) -> dict[str, Path]:
        """Evaluation -> folder with predictions and nnU-Net's ``summary.json``."""
        model = self.model(cell, trainer)
        if cell.fold is None:
            return {TEST: model / "test"}
        fold = model / f"fold_{cell.fold}"
        degraded = {name: fold / f"validation_{name}" for name in self.benchmark.degradations}
        return {CLEAN: fold / "validation", **degraded}

    # ------------------------------------------------------------------------------------ states

    def cell_lock(self, cell: Cell) -> FileLock:
        """Held by whoever works on a cell."""
        self.folder(cell).mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder(cell) / "lock")

    def is_worked_on(self, cell: Cell) -> bool:
        """Whether some process works on the cell, also one that an earlier run has started."""
        if not self.folder(cell).is_dir():
            return False
        try:
            with self.cell_lock(cell).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def state(self, cell: Cell) -> State:
        """What is known of a cell; an unreadable record counts as none."""
        try:
            return State(**read_json(self.folder(cell) / "state.json"))
        except (UserError, TypeError):
            return State()

    def save(self, cell: Cell, state: State) -> None:
        """Keep what is known of a cell."""
        self.folder(cell).mkdir(parents=True, exist_ok=True)
        write_json(self.folder(cell) / "state.json", asdict(state))
