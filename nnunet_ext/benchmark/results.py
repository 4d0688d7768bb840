"""What a benchmark has measured, as the report takes it, and its record in a folder."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object, write_csv, write_jsons
from nnunet_ext.evaluation.metrics import MEASURES

CLEAN = "clean"
"""Evaluation of the held-out cases as they are."""
TEST = "test"
"""Evaluation of a labelled test set."""
SEEN, UNSEEN = "seen", "unseen"
"""Whether a case's domain is among those of the training cases."""
ALL_FOLDS = "all"
"""Fold of a cell that trains nothing but predicts the test set with all folds' models."""
SEEDED = "seeded"
"""What the facts of an arm say of "seeds" if start weights and batches depend on the seed."""
MARGIN = 0.005
"""Differences in Dice that are smaller do not matter."""

BENCHMARK, ENVIRONMENT, RECORD = "benchmark.json", "environment.json", "record.json"
KEYS = ("configuration", "arm", "fold", "seed")
"""Columns that name a cell."""
_FACTS = ("evaluation", "case", "domain", "seen", "subject", "label")
_FILES = ("summary", "image", "truth", "prediction")
_TEXT = (*KEYS[:3], *_FACTS, *_FILES, "empty", "status", "reason", "memory_kind", "command", "log")
COLUMNS = {
    "scores": (*KEYS, *_FACTS, *MEASURES, "empty", *_FILES),
    "curves": (*KEYS, "epoch", "train_loss", "val_loss", "pseudo_dice", "seconds"),
    "cells": (
        *(*KEYS, "status", "reason", "seconds", "epochs", "seconds_per_epoch"),
        *("peak_memory_mib", "memory_kind", "command", "log"),
    ),
}
"""Of the frames of the results."""
FRAMES = {"scores": "scores.csv", "cells": "runs.csv", "curves": "curves.csv"}
"""Files of a record beside the JSON files, by the frame that they hold."""


@dataclass(frozen=True)
class Results:
    """Scores, curves and costs of the trainings of one benchmark on one data set.

    A cell is one configuration, arm, fold and seed: a training, or the prediction of the test
    set. Paths are absolute, or relative to the folder of the benchmark.

    Attributes:
        title: Name of the data set, e.g. ``"Dataset004_Hippocampus"``.
        description: What the benchmark's author says about it; may be empty.
        baseline: Name of the arm that the others are compared with.
        arms: Name of an arm, in display order -> facts: trainer, plans, settings, description,
            "instead of" (the trainer that was asked for), "weights of" (the arm that was trained
            in its place), seeds (:data:`SEEDED`, or "repetitions..." if the trainer takes none),
            whatever else.
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
        margin: Difference in Dice below which arms count as equivalent.
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
    problems: list[str] = field(default_factory=list)
    margin: float = MARGIN

    def configurations(self) -> list[str]:
        """Configurations that were asked for or scored, in order of appearance."""
        return list(pd.concat([self.cells, self.scores])["configuration"].unique())

    def evaluations(self, configuration: str) -> list[str]:
        """Evaluations that have scores: held-out cases, test set, then the degradations."""
        rows = self.scores[self.scores["configuration"] == configuration].dropna(subset="dice")
        found = rows["evaluation"].unique()
        return sorted(found, key=lambda name: {CLEAN: 0, TEST: 1}.get(name, 2))

    def main(self, configuration: str) -> list[str]:
        """Evaluations that are more than a degradation of another."""
        return [name for name in self.evaluations(configuration) if name in (CLEAN, TEST)]

    def of(self, configuration: str, evaluation: str) -> pd.DataFrame:
        """Scores of one configuration and evaluation."""
        scores = self.scores
        mine = scores["configuration"] == configuration
        return scores[mine & (scores["evaluation"] == evaluation)]

    def trainings(self) -> pd.DataFrame:
        """Cells in which something is trained."""
        trained = [arm for arm, facts in self.arms.items() if not facts.get("weights of")]
        return self.cells[self.cells["arm"].isin(trained) & (self.cells["fold"] != ALL_FOLDS)]

    def paired(self, arm: str, other: str) -> bool:
        """Whether equal seeds are equal luck: the same weights, or both arms take the seed."""
        facts = [self.arms[name] for name in (arm, other)]
        seeded = all(fact.get("seeds") == SEEDED for fact in facts)
        trained = {
            fact.get("weights of") or name for name, fact in zip((arm, other), facts, strict=True)
        }
        return seeded or len(trained) == 1

    def label_names(self) -> dict[str, str]:
        """Names of labels, with their keys where names alone would not tell."""
        names = list(self.labels.values())
        return {
            key: name if name and names.count(name) < 2 else f"{name} [{key}]"
            for key, name in self.labels.items()
        }

    def shows_images(self) -> bool:
        """Whether images may be shown."""
        return bool((self.scores["image"] != "").any())

    def distance_unit(self) -> str:
        """Unit of the surface distances, or "" if unknown; photographs hold no spacing."""
        if not self.shows_images():
            return ""
        photographs = self.scores["image"].str.lower().str.endswith((".png", ".bmp"))
        return "px" if photographs.all() else "mm"


def without_images(results: Results) -> Results:
    """The same without anything that shows or locates images, for data that must not be spread."""
    columns = ["image", "truth", "prediction"]
    return replace(results, scores=results.scores.assign(**dict.fromkeys(columns, "")))


def write(results: Results, folder: Path) -> None:
    """Write a record: ``read`` gives the same results again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in FRAMES.items():
        write_csv(getattr(results, name), folder / file)
    reproduction = dict(results.reproduction)
    benchmark = reproduction.pop(BENCHMARK, {})
    kept = ("title", "description", "baseline", "margin", "arms", "labels", "problems")
    record = {name: getattr(results, name) for name in kept} | {"reproduction": reproduction}
    contents = {ENVIRONMENT: results.environment, RECORD: record}
    contents |= {BENCHMARK: benchmark} if benchmark else {}
    write_jsons({folder / name: content for name, content in contents.items()})


def read(folder: Path) -> list[Results]:
    """Read a record: the files beside a report, or those of every data set in folders of its own.

    Raises:
        UserError: If there is none, or something is missing in it.
    """
    if not (folder / FRAMES["scores"]).is_file():
        parts = sorted(path.parent for path in folder.glob(f"*/{FRAMES['scores']}"))
        if not parts:
            raise UserError(
                f"{folder} holds neither a benchmark that has begun (benchmark.json; "
                "`nnunet-ext benchmark run` begins it) nor the record of one (scores.csv)."
            )
        return [results for part in parts for results in read(part)]
    try:
        return [_read(folder)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no complete record: {error}.") from None


def _read(folder: Path) -> Results:
    """One record; without ``record.json`` labels go by their numbers, without runs none cost."""
    contents = {
        name: read_object(folder / name) if (folder / name).exists() else {}
        for name in (BENCHMARK, ENVIRONMENT, RECORD)
    }
    benchmark, record = contents[BENCHMARK], contents[RECORD]
    reproduction = {BENCHMARK: benchmark} | record.pop("reproduction", {})
    frames = {name: _read_csv(folder / file, COLUMNS[name]) for name, file in FRAMES.items()}
    if frames["cells"].empty:
        frames["cells"] = cells_of(frames["scores"])
    if not record:
        record = {name: benchmark[name] for name in ("arms", "description") if name in benchmark}
        record = {"title": benchmark["dataset"], "description": "", "labels": {}} | record
        record["baseline"] = benchmark.get("baseline") or next(iter(record["arms"]))
        record["margin"] = benchmark.get("margin", MARGIN)
    return Results(**record, **frames, environment=contents[ENVIRONMENT], reproduction=reproduction)


def cells_of(scores: pd.DataFrame) -> pd.DataFrame:
    """The cells that have scores, of which nothing else is known."""
    unknown = dict.fromkeys(("reason", "memory_kind", "command", "log"), "")
    cells = scores[list(KEYS)].drop_duplicates().assign(status="done", **unknown)
    return cells.reindex(columns=list(COLUMNS["cells"])).reset_index(drop=True)


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    text = dict.fromkeys(_TEXT, str)
    numbers = dict.fromkeys(set(columns) - set(_TEXT), "")
    frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=numbers)
    missing = {name: "" for name in _TEXT if name in columns and name not in frame}
    return frame.assign(**missing).reindex(columns=list(columns))
