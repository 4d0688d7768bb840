"""Scores predictions of the unlabelled domain, once somebody has labelled some of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object, replacing
from nnunet_ext.evaluation.metrics import measure_files
from nnunet_ext.nnunet.datasets import DATASET_JSON, RAW, label_names, nnunet_folder

PLANS_JSON = "plans.json"
"""nnUNetv2_predict puts it and dataset.json beside its predictions."""

LABEL_FOLDERS = ("labelsUn", "labelsTs")
"""Where a raw data set may hold labels of images that nothing was trained on."""

SCORES_FILE = "target_scores.csv"


@dataclass(frozen=True)
class Target:
    """Predictions, and the labels to compare them with.

    Attributes:
        predictions: Case -> file, of all cases that have been predicted.
        truths: Case -> file, of all cases that have labels.
        dataset_json: As the model was trained with.
        plans: Likewise.
    """

    predictions: dict[str, Path]
    truths: dict[str, Path]
    dataset_json: dict[str, Any]
    plans: dict[str, Any]

    @property
    def scored(self) -> list[str]:
        """Cases that have both."""
        return [case for case in self.predictions if case in self.truths]


def find(predictions: Path, labels: Path | None) -> Target:
    """Find out what there is to compare.

    Args:
        predictions: Folder that nnUNetv2_predict has written.
        labels: Folder with labels of the same names; default are those of
            :data:`LABEL_FOLDERS` in the raw data set of the model.

    Raises:
        UserError: If there are no predictions, no such folder or no labels of them.
    """
    for name in (DATASET_JSON, PLANS_JSON):
        if not (predictions / name).is_file():
            raise UserError(
                f"{predictions} has no {name}, which nnUNetv2_predict puts beside its predictions. "
                "Name the folder that it wrote (-o)."
            )
    dataset_json = read_object(predictions / DATASET_JSON)
    plans = read_object(predictions / PLANS_JSON)
    ending = dataset_json["file_ending"]
    predicted = _files(predictions, ending)
    if not predicted:
        raise UserError(f"{predictions} holds no predictions (*{ending}).")
    if labels is not None:
        if not labels.is_dir():
            raise UserError(f"--labels {labels}: there is no such folder.")
        folders = [labels]
    else:
        raw = nnunet_folder(RAW) / plans["dataset_name"]
        folders = [raw / name for name in LABEL_FOLDERS]
    truths = next((found for f in folders if predicted.keys() & (found := _files(f, ending))), None)
    if truths is None:
        raise UserError(
            f"There are no labels of the predictions in {predictions}, such as "
            f"{next(iter(predicted.values())).name}, in {' or '.join(map(str, folders))}. Put them "
            "there or name their folder with --labels."
        )
    return Target(predicted, truths, dataset_json, plans)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}


def score(target: Target, output: Path) -> pd.DataFrame:
    """Measure every scored case and write the measures as CSV.

    Args:
        target: What :func:`find` has found.
        output: File to write.

    Returns:
        One row per case and label: case, label (its name), the measures of
        :class:`nnunet_ext.evaluation.metrics.Measures`, truth, prediction.

    Raises:
        UserError: If an image cannot be read, or prediction and truth do not match.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(target.plans)
    labels = plans.get_label_manager(target.dataset_json)
    reader = plans.image_reader_writer_class()
    regions = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    names = label_names(target.dataset_json)
    rows = []
    for case in target.scored:
        files = {"truth": target.truths[case], "prediction": target.predictions[case]}
        measured = measure_files(
            **files, reader=reader, regions=regions, ignore=labels.ignore_label
        )
        paths = {kind: str(path) for kind, path in files.items()}
        rows += [
            {"case": case, "label": names[str(region)], **vars(measures), **paths}
            for region, measures in measured.items()
        ]
    scores = pd.DataFrame(rows)
    with replacing(output) as partial:
        scores.to_csv(partial, index=False)
    return scores
