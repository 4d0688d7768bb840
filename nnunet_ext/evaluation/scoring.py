"""Scores of predictions: those that nnU-Net has evaluated, and any others that have labels."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, read_object
from nnunet_ext._common.processes import for_each
from nnunet_ext.domains.assignment import from_pattern, read_domains, subjects_from_pattern
from nnunet_ext.domains.store import dataset_json_paths
from nnunet_ext.evaluation.labels import Scheme, read_pair, scheme_of
from nnunet_ext.evaluation.metrics import (
    LESION_MEASURES,
    MEASURES,
    METRIC,
    Region,
    count_lesions,
    measure,
)
from nnunet_ext.evaluation.statistics import mean_interval
from nnunet_ext.nnunet.datasets import DATASET_JSON, RAW, find_dataset, is_hidden, nnunet_folder

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

SUMMARY = "summary.json"
"""nnU-Net's evaluation of a folder of predictions."""

PLANS_JSON = "plans.json"
"""nnUNetv2_predict puts it and dataset.json beside its predictions."""

LABEL_FOLDERS = ("labelsUn", "labelsTs")
"""Where a raw data set may hold labels of images that nothing was trained on."""

MEAN = "mean"
"""Stands for the mean over the labels of a case."""

# ------------------------------------------------------------------------ what nnU-Net has scored


def read_summary(path: Path) -> list[dict[str, Any]]:
    """Read the cases of an nnU-Net evaluation.

    Returns:
        One mapping per case: ``reference_file``, ``prediction_file`` and ``metrics`` by label.

    Raises:
        UserError: If the file is missing or damaged.
    """
    try:
        cases: list[dict[str, Any]] = read_json(path)["metric_per_case"]
        for case in cases:
            Path(case["reference_file"]), Path(case["prediction_file"])
            for metrics in case["metrics"].values():
                float("nan" if metrics["Dice"] is None else metrics["Dice"])
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}). `nnUNetv2_train ... --val` or "
            "`nnunet-ext benchmark run` makes it again from the trained model."
        ) from None
    return cases


def measure_case(
    case: Mapping[str, Any],
    evaluation: Path,
    reader: "BaseReaderWriter",
    ignore: int | None,
    ending: str,
) -> list[dict[str, Any]]:
    """Measure a case that nnU-Net has evaluated.

    Returns:
        One row per label, as of :func:`score_case`, with the name of the case, nnU-Net's own
        Dice, and the label as nnU-Net calls it.
    """
    # by name, so that a results folder can be moved
    prediction = evaluation / Path(case["prediction_file"]).name
    regions: dict[str, Region] = {key: ast.literal_eval(key) for key in case["metrics"]}
    scheme = Scheme(regions, None, ignore, ending, reader)
    rows, _ = score_case(Path(case["reference_file"]), prediction, scheme)
    name = prediction.name.removesuffix(ending)
    return [{"case": name, **r, "dice": case["metrics"][r["label"]]["Dice"]} for r in rows]


# --------------------------------------------------------------------- predictions and labels


@dataclass(frozen=True)
class Found:
    """Predictions, and the labels to compare them with."""

    predictions: dict[str, Path]  # by case, of all that have been predicted
    truths: dict[str, Path]  # by case, of all that have labels
    scheme: Scheme
    dataset_json: dict[str, Any]  # of the model, or the one that was named

    @property
    def scored(self) -> list[str]:
        """Cases that have both."""
        return [case for case in self.predictions if case in self.truths]


def find(predictions: Path, labels: Path | None = None, dataset: str | None = None) -> Found:
    """Find out what there is to compare.

    Args:
        predictions: Folder of label files named CASE.ENDING.
        labels: Folder with labels of the same names; default are those of
            :data:`LABEL_FOLDERS` in the raw data set.
        dataset: Number or name of a data set, or path of a dataset.json, that says what labels
            mean; default is the dataset.json beside the predictions or up to two folders
            above them, as in nnU-Net's model folders.

    Raises:
        UserError: If there are no predictions, no such folder or no labels of them.
    """
    for name, folder in (("PREDICTIONS", predictions), ("--labels", labels)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{name} {folder}: there is no such folder.")
    near = [predictions, *predictions.resolve().parents[:2]]
    if dataset is None:
        path = next((p for f in near if (p := f / DATASET_JSON).is_file()), None)
        if path is None:
            raise UserError(
                f"{predictions} has no {DATASET_JSON}, which names the labels and which "
                "nnUNetv2_predict puts beside its predictions. Name a data set or a "
                f"{DATASET_JSON} with --dataset."
            )
    elif dataset.endswith(".json"):
        path = Path(dataset)
    else:
        path = dataset_json_paths(find_dataset(dataset))[0]
    dataset_json = read_object(path)
    plans = next((p for f in near if (p := f / PLANS_JSON).is_file()), None)
    if plans is not None and dataset is None:
        reader = read_object(plans).get("image_reader_writer", "None")
        dataset_json = {"overwrite_image_reader_writer": reader} | dataset_json
    ending = dataset_json.get("file_ending")
    if not isinstance(ending, str):
        raise UserError(f'{path} has no "file_ending", such as ".nii.gz".')
    predicted = _files(predictions, ending)
    if not predicted:
        raise UserError(f"{predictions} holds no predictions (*{ending}).")
    example = next(iter(predicted.values()))
    scheme = scheme_of(dataset_json, str(path), example)
    folders = [labels] if labels is not None else _label_folders(predictions, plans, dataset)
    truths = next((found for f in folders if predicted.keys() & (found := _files(f, ending))), None)
    if truths is None:
        raise UserError(
            f"There are no labels such as {example.name} for the predictions in {predictions}: "
            f"looked into {' and '.join(map(str, folders))}. Put them there or name their folder "
            "with --labels."
        )
    return Found(predicted, truths, scheme, dataset_json)


def _label_folders(predictions: Path, plans: Path | None, dataset: str | None) -> list[Path]:
    if dataset is not None and not dataset.endswith(".json"):
        name = find_dataset(dataset)
    elif plans is not None:
        name = str(read_object(plans).get("dataset_name"))
    else:
        raise UserError(
            f"{predictions} has no {PLANS_JSON}, which would name the data set whose labels to "
            "use. Name the folder of labels with --labels."
        )
    return [nnunet_folder(RAW) / name / folder for folder in LABEL_FOLDERS]


def _files(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = (path for path in sorted(folder.glob(f"*{ending}")) if not is_hidden(path))
    return {path.name.removesuffix(ending): path for path in files}


def score(
    found: Found,
    subject: str | None = None,
    domain: str | None = None,
    lesions: bool = False,
    processes: int = 1,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Measure every case that has prediction and labels.

    Args:
        found: What :func:`find` has found.
        subject: Regular expression whose only group names the patient of a case; by default
            every case is one.
        domain: Regular expression whose group ``domain`` names the domain; by default they are
            those of dataset.json.
        lesions: Whether to count lesions, too.
        processes: That work at a time.

    Returns:
        One row per case and label: case, subject, domain ("" if unknown), label (its name), the
        measures of :class:`nnunet_ext.evaluation.metrics.Measures`, with lesions also recall,
        precision, f1 and the counts of :class:`nnunet_ext.evaluation.metrics.Lesions`, truth,
        prediction. And what :func:`summarise` makes of it, with the names of cases ``reoriented``
        (whose labels were turned to the orientation of the prediction), ``without_label`` and
        ``without_prediction``.

    Raises:
        UserError: If an expression misses a case, an image cannot be read, or prediction and
            truth do not match.
    """
    cases = found.scored
    subjects = subjects_from_pattern(subject, cases) if subject else {case: case for case in cases}
    domains = from_pattern(domain, cases) if domain else read_domains(found.dataset_json)
    tasks = {
        case: (found.truths[case], found.predictions[case], found.scheme, lesions) for case in cases
    }
    results = for_each(score_case, tasks, processes, "Evaluating")
    scores = pd.DataFrame(
        {"case": case, "subject": subjects[case], "domain": domains.get(case, ""), **row}
        for case, (rows, _) in results.items()
        for row in rows
    )
    names = {
        "reoriented": [case for case, (_, turned) in results.items() if turned],
        "without_label": sorted(found.predictions.keys() - set(cases)),
        "without_prediction": sorted(found.truths.keys() - set(cases)),
    }
    by = ("domain", "subject") if subject else ("domain",)
    return scores, summarise(scores, by) | names


def score_case(
    truth: Path, prediction: Path, scheme: Scheme, lesions: bool = False
) -> tuple[list[dict[str, Any]], bool]:
    """One row per label of a case, as of :func:`score`, and whether labels had to be turned."""
    pair = read_pair(truth, prediction, scheme)
    regions = list(scheme.regions.values())
    measured = measure(pair.truth, pair.prediction, pair.spacing, regions, scheme.ignore)
    rows = [{"label": name, **asdict(measured[region])} for name, region in scheme.regions.items()]
    if lesions:
        counted = count_lesions(pair.truth, pair.prediction, regions, scheme.ignore)
        for row, region in zip(rows, regions, strict=True):
            row |= {name: getattr(counted[region], name) for name in LESION_MEASURES}
            row |= {f"lesions_{name}": count for name, count in asdict(counted[region]).items()}
    files = {"truth": str(truth), "prediction": str(prediction)}
    return [row | files for row in rows], pair.reoriented


# ------------------------------------------------------------------------------------- means


def summarise(scores: pd.DataFrame, by: Sequence[str] = ()) -> dict[str, Any]:
    """Mean of each measure over subjects, and its 95 % interval over other subjects, for JSON.

    Args:
        scores: Columns case, subject, label, measures and those of ``by``.
        by: Columns by whose values the means are taken as well.

    Returns:
        ``cases`` and ``subjects`` (numbers); ``labels``: label -> ``cases`` (that have it, in
        truth or prediction) and measure -> ``mean``, ``low``, ``high``, None where unknown, for
        several labels also of :data:`MEAN`; ``by_COLUMN``: value -> the same of its cases.
    """
    names = [name for name in (*MEASURES, *LESION_MEASURES) if name in scores]
    parts = {str(label): part for label, part in scores.groupby("label", sort=False)}
    if len(parts) > 1:
        parts[MEAN] = scores.groupby(["subject", "case"], as_index=False)[names].mean()
    summary: dict[str, Any] = {
        "cases": int(scores["case"].nunique()),
        "subjects": int(scores["subject"].nunique()),
        "labels": {
            label: {"cases": int(part["dice"].count())} | {n: _mean(part, n) for n in names}
            for label, part in parts.items()
        },
    }
    for column in by:
        groups = scores[scores[column] != ""].groupby(column)
        summary[f"by_{column}"] = {str(name): summarise(part) for name, part in groups}
    return summary


def _mean(scores: pd.DataFrame, measure: str) -> dict[str, float | None]:
    values = scores[["subject", measure]].set_axis(["subject", "value"], axis=1)
    bounds = METRIC[measure].bounds if measure in METRIC else (0, 1)
    interval = mean_interval(values.assign(training=0), bounds)
    found = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: None if math.isnan(value) else value for name, value in found.items()}
