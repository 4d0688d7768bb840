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
    """What is known of a cell."""

    status: Status = "missing"  # "running" is only believed while the cell's lock is held
    reason: str = ""  # why it failed
    gpu: str | None = None  # that it runs on, where that had to be said
    epoch: int = 0  # epochs that have begun
    epochs: int | None = None  # in the end, if known
    seconds: float = 0.0  # wall time, earlier runs included
    peak_memory_mib: float | None = None  # over all its commands
    memory_kind: str = ""  # "GPU" (as PyTorch reserved it) or "RAM" (resident set)
    commands: list[str] = field(default_factory=list)  # nnU-Net's, as they were run
    circumstances: dict[str, Any] = field(default_factory=dict)  # hardware and versions


class Layout:
    """The folder of a benchmark of one data set."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        # plans and splits of the benchmark's own, where images are links; trained models
        self.preprocessed = self.root / "nnUNet_preprocessed"
        self.results = self.root / "nnUNet_results"
        # data set with noisy labels, and what nnU-Net makes of it
        self.noisy_raw = self.root / "noisy" / "nnUNet_raw"
        self.noisy_preprocessed = self.root / "noisy" / "nnUNet_preprocessed"
        self.degraded = self.root / "degraded_images"  # by degradation and fold
        self.prepared = self.root / "prepared.json"  # what preparation has found out
        self.report = self.root / "report"

    @cached_property
    def benchmark(self) -> Benchmark:
        """What the folder's ``benchmark.json`` says."""
        return spec.read(self.root)

    @property
    def dataset(self) -> Path:
        """Preprocessed folder of the data set."""
        return self.preprocessed / self.benchmark.dataset

    @property
    def truth(self) -> Path:
        """Clean labels of all training cases, as nnU-Net's validation finds them."""
        return self.dataset / "gt_segmentations"

    def cells(self, test: bool) -> Iterator[Cell]:
        """All cells, also of a test set; those for a first comparison of all arms come first."""
        benchmark = self.benchmark
        for seed in range(benchmark.seeds):
            for fold in [*benchmark.folds, *([None] if test else [])]:
                for configuration in benchmark.configurations:
                    for arm in benchmark.arms:
                        yield Cell(arm, configuration, seed, fold)

    def needed_by(self, cell: Cell) -> list[Cell]:
        """Cells that must be done before this one can begin."""
        arm = self.benchmark.arms[cell.arm]
        source = arm.weights_of or arm.begins_with
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
        """nnU-Net's folder of the model that a trainer of this name has trained in a cell."""
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
            known = read_json(self.folder(cell) / "state.json").items()
            return State(**{name: value for name, value in known if hasattr(State(), name)})
        except (UserError, AttributeError):
            return State()

    def save(self, cell: Cell, state: State) -> None:
        """Keep what is known of a cell."""
        self.folder(cell).mkdir(parents=True, exist_ok=True)
        write_json(self.folder(cell) / "state.json", asdict(state))


def layouts(folder: Path) -> list[Layout]:
    """The folder of a benchmark, or those in it of its data sets if there are several."""
    return [Layout(folder / name) for name in spec.read(folder).datasets] or [Layout(folder)]
