"""Results of what has been trained already: finished model folders, or folders of predictions."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_ext._common.console import some
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object
from nnunet_ext._common.processes import for_each
from nnunet_ext.benchmark.results import ALL_FOLDS, CLEAN, COLUMNS, MARGIN, TEST, Results, cells_of
from nnunet_ext.domains.assignment import read_domains, subjects_from_pattern
from nnunet_ext.evaluation.scoring import PLANS_JSON, SUMMARY, Found, find, read_summary, score_case
from nnunet_ext.nnunet.datasets import RAW, label_names

MODEL_NAME = re.compile(r"(?P<trainer>.+)__(?P<plans>.+)__(?P<configuration>.+)")
"""Of nnU-Net's model folders."""
SAME_DICE = 1e-6
"""Difference of Dice up to which files and nnU-Net's summary agree."""
VERSIONS = ("nnunet-ext", "nnunetv2", "numpy", "scipy")


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one training that are compared with their labels."""

    arm: str
    seed: int  # number of its folder among those of the arm
    model: Path
    fold: str  # of the model, or ALL_FOLDS if the folder holds predictions itself
    folder: Path  # where the predictions are
    found: Found

    @cached_property
    def plans(self) -> dict[str, Any]:
        """The model's plans, empty if none are there."""
        path = self.model / PLANS_JSON
        return read_object(path) if path.is_file() else {}

    @property
    def names(self) -> dict[str, str]:
        """Trainer, plans and configuration, as far as the folder is called by them."""
        match = MODEL_NAME.fullmatch(self.model.resolve().name)
        return match.groupdict() if match else {}

    @property
    def dataset(self) -> str:
        """Name of the data set, or "" if nothing says it."""
        return str(self.plans.get("dataset_name", ""))

    def image(self, case: str) -> str:
        """First channel of a case in the raw data set, "" if that is not here."""
        images = "imagesTs" if self.fold == ALL_FOLDS else "imagesTr"
        folder = Path(os.environ.get(RAW, ""), self.dataset, images)
        path = folder / f"{case}_0000{self.found.scheme.ending}"
        return str(path) if path.is_file() else ""


def compare(
    folders: Sequence[tuple[str, Path]],
    *,
    labels: Path | None = None,
    dataset: str | None = None,
    subject: str | None = None,
    margin: float = MARGIN,
    processes: int = 1,
) -> Results:
    """Measure finished trainings; nothing is written.

    Args:
        folders: Name of an arm, and a folder of nnU-Net's with ``fold_*/validation``, or one of
            predictions. The first arm is the baseline; folders of equal names are seeds.
        labels: Folder of the true labels; default is where nnU-Net has evaluated with them.
        dataset: What says what labels mean, if no dataset.json lies near the predictions.
        subject: Regular expression whose group names the subject of a case.
        margin: Difference in Dice below which arms count as equivalent.
        processes: That measure at a time.

    Raises:
        UserError: If a folder holds nothing to compare, or folders differ in data set, labels or
            cases, or predictions do not fit their labels or nnU-Net's summary of them.
    """
    evaluations = []
    for i, (arm, folder) in enumerate(folders):
        seed = [name for name, _ in folders[:i]].count(arm)
        for fold, place in _evaluated(folder, labels).items():
            found = find(place, labels or _labels_of(place), dataset)
            evaluations.append(Evaluation(arm, seed, folder, fold, place, found))
    _refuse_differences(evaluations)
    cases = {case for each in evaluations for case in each.found.scored}
    subjects = subjects_from_pattern(subject, sorted(cases)) if subject else {}
    first = evaluations[0].found
    keys = {name: key for key, name in label_names(first.dataset_json).items()}
    scores = _scores(evaluations, keys, processes, same_labels=labels is None)
    scores["subject"] = scores["case"].map(lambda case: subjects.get(case, case))
    return Results(
        title=evaluations[0].dataset or "Predictions",
        description="",
        baseline=folders[0][0],
        arms={name: _facts(name, evaluations) for name, _ in folders},
        labels={key: name for name, key in keys.items()},
        scores=scores,
        curves=pd.DataFrame(columns=list(COLUMNS["curves"])),
        cells=cells_of(scores),
        environment={
            "date": date.today().isoformat(),
            "versions": {name: version(name) for name in VERSIONS},
        },
        reproduction={"folders": [f"{name}={folder}" for name, folder in folders]},
        problems=[*_left_out(evaluations)],
        margin=margin,
    )


def _scores(
    evaluations: Sequence[Evaluation], keys: dict[str, str], processes: int, same_labels: bool
) -> pd.DataFrame:
    """The scores of results; refuses cases of which nnU-Net says something else."""
    tasks = {
        f"{i} {case}": (each.found.truths[case], each.found.predictions[case], each.found.scheme)
        for i, each in enumerate(evaluations)
        for case in each.found.scored
    }
    measured = for_each(score_case, tasks, processes, "Evaluating")
    domains = read_domains(evaluations[0].found.dataset_json)
    rows = []
    for i, each in enumerate(evaluations):
        mine = {case: measured[f"{i} {case}"][0] for case in each.found.scored}
        if same_labels or each.fold != ALL_FOLDS:
            _refuse_another_dice(each, mine, keys, same_labels)
        facts: dict[str, Any] = {"arm": each.arm, "seed": each.seed, "fold": each.fold}
        facts["summary"] = str(each.folder / SUMMARY)
        for case, found in mine.items():
            facts |= {"case": case, "domain": domains.get(case, ""), "image": each.image(case)}
            rows += [row | facts | {"label": keys[row["label"]]} for row in found]
    configurations = dict.fromkeys(each.names.get("configuration", "") for each in evaluations)
    scores = pd.DataFrame(rows).assign(
        configuration=" and ".join(filter(None, configurations)) or "predictions",
        evaluation=TEST if evaluations[0].fold == ALL_FOLDS else CLEAN,
        seen="",
    )
    for name in ("summary", "truth", "prediction"):
        scores[name] = scores[name].map(os.path.abspath)
    return scores.reindex(columns=list(COLUMNS["scores"]))


def _evaluated(folder: Path, labels: Path | None) -> dict[str, Path]:
    """Fold -> folder of predictions."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    folds = sorted(path for path in folder.glob("fold_[0-9]*") if path.is_dir())
    validations = {path.name.removeprefix("fold_"): path / "validation" for path in folds}
    evaluated = {fold: path for fold, path in validations.items() if (path / SUMMARY).is_file()}
    if folds and not evaluated:
        raise UserError(
            f"{folder} has no validation: {folds[0] / 'validation' / SUMMARY} is missing. "
            "`nnUNetv2_train ... --val` makes it from the trained model."
        )
    if not folds and labels is None and not (folder / SUMMARY).is_file():
        raise UserError(
            f"{folder} is not a model folder (it has no fold_0/validation) and holds no {SUMMARY} "
            "of nnU-Net's. For a folder of predictions, name the folder of labels with --labels."
        )
    return evaluated or {ALL_FOLDS: folder}


def _labels_of(folder: Path) -> Path:
    """Where the labels are that nnU-Net has evaluated with."""
    cases = read_summary(folder / SUMMARY)
    if not cases:
        raise UserError(f"{folder / SUMMARY} holds no cases.")
    labels = Path(cases[0]["reference_file"]).parent
    if not labels.is_dir():
        raise UserError(
            f"The labels of {folder} were in {labels}, which is not there. Name the folder where "
            "they are with --labels."
        )
    return labels


def _refuse_differences(evaluations: Sequence[Evaluation]) -> None:
    """Refuse what cannot be compared, naming what differs."""
    first = evaluations[0]
    scored: dict[tuple[str, int], set[str]] = {}
    for each in evaluations:
        scored.setdefault((each.arm, each.seed), set()).update(each.found.scored)
        kinds = ["validation of a model" if e.fold != ALL_FOLDS else "test" for e in (first, each)]
        labels = [dict(e.found.dataset_json["labels"]) for e in (first, each)]
        for what, (ours, theirs) in {
            "kinds of predictions": kinds,
            "data sets": (first.dataset, each.dataset),
            "labels": labels,
        }.items():
            if ours != theirs:
                raise UserError(
                    f"The {what} in {first.model} and {each.model} differ: {ours} and {theirs}. "
                    "They cannot be compared."
                )
    named = {(arm, i): f"{arm} (its folder {i + 1})" if i else arm for arm, i in scored}
    (one, cases), *others = scored.items()
    for other, found in others:
        for who, has, missing in ((one, other, found - cases), (other, one, cases - found)):
            if missing:
                raise UserError(
                    f"The cases differ: {named[who]} lacks {some(sorted(missing))} "
                    f"({len(missing)}), which {named[has]} has. Only the same cases can be "
                    "compared."
                )


def _refuse_another_dice(
    evaluation: Evaluation,
    measured: dict[str, list[dict[str, Any]]],
    keys: dict[str, str],
    same_labels: bool,
) -> None:
    """Refuse files of which nnU-Net's summary says something else."""
    summary = evaluation.folder / SUMMARY
    cure = "`nnUNetv2_train ... --val` validates again."
    for case in read_summary(summary):
        name = Path(case["prediction_file"]).name.removesuffix(evaluation.found.scheme.ending)
        if name not in measured:
            raise UserError(f"{summary} names {name}, which has no prediction or no labels. {cure}")
        for row in measured[name]:
            said = case["metrics"].get(keys[row["label"]], {}).get("Dice")
            said = math.nan if said is None else float(said)
            nowhere = math.isnan(said) and not math.isnan(row["dice"])
            if nowhere or (same_labels and abs(said - row["dice"]) > SAME_DICE):
                raise UserError(
                    f"{summary} says that {row['label']} of {name} has Dice {said:.6g}, but the "
                    f"files give {row['dice']:.6g}. {cure}"
                )


def _facts(arm: str, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    mine = next(each for each in evaluations if each.arm == arm)
    configuration = mine.plans.get("configurations", {}).get(mine.names.get("configuration"), {})
    facts = {name: mine.names.get(name) for name in ("trainer", "plans")}
    facts["settings"] = configuration.get("nnunet_ext")
    return {name: fact for name, fact in facts.items() if fact}


def _left_out(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """What there is, but was not compared."""
    for each in evaluations:
        if without := sorted(each.found.predictions.keys() - set(each.found.scored)):
            yield f"{each.folder}: cases without labels are left out: {some(without)}."
    for model in dict.fromkeys(each.model for each in evaluations):
        for path in sorted(model.glob("fold_[0-9]*")):
            if not (path / "validation" / SUMMARY).is_file():
                yield f"{path} has no validation and is left out."
