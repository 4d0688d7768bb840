"""What a benchmark has measured, as the report takes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

CLEAN = "clean"
"""Evaluation of the held-out cases as they are."""
TEST = "test"
"""Evaluation of a labelled test set."""
SEEN, UNSEEN = "seen", "unseen"
"""Whether a case's domain is among those of the training cases."""
ALL_FOLDS = "all"
"""Fold of a cell that trains nothing but predicts the test set with all folds' models."""


@dataclass(frozen=True)
class Results:
    """Scores, curves and costs of the trainings of one benchmark.

    A cell is one configuration, arm, fold and seed: a training, or the prediction of the test
    set. Paths are absolute, or relative to the folder of the benchmark.

    Attributes:
        title: Name of the data set, e.g. ``"Dataset004_Hippocampus"``.
        description: What the benchmark's author says about it; may be empty.
        baseline: Name of the arm that the others are compared with.
        arms: Name of an arm, in display order -> facts: trainer, plans, settings, description,
            "instead of" (the trainer that was asked for), "weights of" (the arm that was trained
            in its place), seeds ("repetitions..." if the trainer takes none), whatever else.
        labels: Key of a label as in the scores (``"1"`` or ``"(1, 2)"``) -> its name.
        scores: One row per case and label of an evaluated prediction: configuration, arm, fold,
            seed, evaluation (:data:`CLEAN`, :data:`TEST` or the name of a degradation), case,
            domain ("" if there are none), seen (:data:`SEEN` or :data:`UNSEEN`: whether the
            domain is among those of the training cases; "" if unknown), subject (the case if
            cases are not grouped), label, dice, nsd, hd95, assd (NaN if the label is in neither
            truth nor prediction), empty ("", "prediction", "truth" or "both"), summary (nnU-Net's
            summary.json that the Dice comes from), image (its first channel), truth, prediction
            ("" if not to be shown).
        curves: One row per epoch of a training: configuration, arm, fold, seed, epoch,
            train_loss, val_loss, pseudo_dice (mean over the foreground), seconds.
        cells: One row per cell that was asked for: configuration, arm, fold, seed, status
            ("done", "failed", "missing" or "running"), reason (a few lines), seconds, epochs,
            seconds_per_epoch (median), peak_memory_mib, memory_kind ("GPU" or "RAM"), command,
            log (path).
        environment: Versions, hardware, date.
        reproduction: What is needed to repeat it: content of benchmark.json, commands, splits;
            text, JSON, or lists of texts by name.
        problems: What is wrong with the folder, e.g. ``"…/summary.json is damaged"``.
    """

    title: str
    description: str
    baseline: str
    arms: dict[str, dict[str, Any]]
    labels: dict[str, str]
    scores: pd.DataFrame
    curves: pd.DataFrame
    cells: pd.DataFrame
    environment: dict[str, Any]
    reproduction: dict[str, Any]
    problems: list[str]

    def configurations(self) -> list[str]:
        """Configurations that were asked for or scored, in order of appearance."""
        return _unique(self.cells, self.scores, column="configuration")

    def evaluations(self, configuration: str) -> list[str]:
        """Evaluations that have scores: held-out cases, test set, then the degradations."""
        rows = self.scores[self.scores["configuration"] == configuration]
        found = _unique(rows, column="evaluation")
        return sorted(found, key=lambda name: {CLEAN: 0, TEST: 1}.get(name, 2))

    def trainings(self) -> pd.DataFrame:
        """Cells in which something is trained."""
        trained = [arm for arm, facts in self.arms.items() if not facts.get("weights of")]
        return self.cells[self.cells["arm"].isin(trained) & (self.cells["fold"] != ALL_FOLDS)]

    def shows_images(self) -> bool:
        """Whether images may be shown."""
        return bool((self.scores["image"] != "").any())

    def distance_unit(self) -> str:
        """Unit of the surface distances, or "" if unknown; photographs hold no spacing."""
        if not self.shows_images():
            return ""
        photographs = self.scores["image"].str.lower().str.endswith((".png", ".bmp"))
        return "px" if photographs.all() else "mm"


def _unique(*frames: pd.DataFrame, column: str) -> list[str]:
    return list(dict.fromkeys(str(value) for frame in frames for value in frame[column]))


def in_folder(folder: Path, path: object) -> Path | None:
    """Where a path of the results lies, or None if it is not given."""
    return folder / path if isinstance(path, str) and path else None
