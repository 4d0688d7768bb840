"""How well a model does on each domain: while it trains, and after."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext._common.files import write_json
from nnunet_ext._common.processes import for_each
from nnunet_ext.domains.assignment import read_domains
from nnunet_ext.evaluation.metrics import MEASURES
from nnunet_ext.evaluation.scoring import SUMMARY, measure_case, read_summary
from nnunet_ext.nnunet.datasets import label_names

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

SUMMARY_FILE = "summary_by_domain.json"


# --------------------------------------------------------------------------- while a model trains


@contextmanager
def counted_by_image(trainer: nnUNetTrainer) -> Iterator[list[NDArray[Any]]]:
    """Have nnU-Net's validation step also leave what it counts for each image of the batch.

    The step hands its logits to the loss, which is where we see them.

    Yields:
        A list that gets, per step, (3, B, K) true positives, false positives and false
        negatives of each output channel.
    """
    counted: list[NDArray[Any]] = []
    loss = trainer.loss

    def count_and_lose(output: Any, target: Any) -> Any:
        several = isinstance(output, list | tuple)  # deep supervision's, the finest first
        finest = (output[0], target[0]) if several else (output, target)
        counted.append(_count(*finest, trainer.label_manager))
        return loss(output, target)

    trainer.loss = count_and_lose
    try:
        yield counted
    finally:
        trainer.loss = loss


@torch.no_grad()
def _count(logits: Tensor, target: Tensor, labels: "LabelManager") -> NDArray[Any]:
    """Count as nnU-Net's validation step does, but each image for itself: (3, B, K)."""
    mask = None
    if labels.has_regions:
        predicted = (torch.sigmoid(logits) > 0.5).float()
        if labels.has_ignore_label:
            mask, target = 1 - target[:, -1:].float(), target[:, :-1]
    else:
        predicted = torch.zeros_like(logits, dtype=torch.float32)
        predicted.scatter_(1, logits.argmax(1, keepdim=True), 1)
        if labels.has_ignore_label:
            mask = (target != labels.ignore_label).float()
            target = target * mask
    axes = tuple(range(2, logits.ndim))
    counts = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)
    return torch.stack(counts[:3]).cpu().numpy()


def with_domains(
    counted: Iterable[NDArray[Any]], keys: Iterable[str], domains: Mapping[str, str]
) -> list[tuple[str, NDArray[Any]]]:
    """Domain and (3, K) counts of each image whose domain is known."""
    places = [(place, key) for place, key in enumerate(keys) if key in domains]
    return [(domains[key], counts[:, place]) for counts in counted for place, key in places]


def pseudo_dice(counts: Iterable[tuple[str, NDArray[Any]]], background: bool) -> dict[str, float]:
    """Mean foreground Dice of each domain over all voxels, as nnU-Net's pseudo Dice over all.

    Args:
        counts: Domain and (3, K) counts of each image.
        background: Whether the first channel is background, which does not count.

    Returns:
        Domain -> Dice, of domains in which any class was there or was predicted.
    """
    sums: dict[str, NDArray[Any]] = {}
    for domain, count in counts:
        sums[domain] = sums.get(domain, 0) + count[:, int(background) :]
    dice = {}
    for domain in sorted(sums):
        true_positive, false_positive, false_negative = sums[domain]
        total = 2 * true_positive + false_positive + false_negative
        if total.any():
            dice[domain] = float(np.mean(2 * true_positive[total > 0] / total[total > 0]))
    return dice


# ------------------------------------------------------------------------------- after it trained


def summarise(
    evaluation: Path,
    dataset_json: Mapping[str, Any],
    reader: "BaseReaderWriter",
    ignore: int | None,
) -> str:
    """Write ``summary_by_domain.json`` beside nnU-Net's ``summary.json``.

    It holds the means of all measures of :mod:`nnunet_ext.evaluation.metrics`, by domain and
    label, and which domain has the lowest mean Dice. As in nnU-Net's summary, a label that is
    neither in truth nor prediction does not count.

    Args:
        evaluation: Folder with predictions and ``summary.json``.
        dataset_json: Names labels and domains.
        reader: nnU-Net's reader of these files.
        ignore: Label of the truth that does not count.

    Returns:
        A table for people, or why there is none.
    """
    how = (evaluation, reader, ignore, dataset_json["file_ending"])
    tasks = {case["prediction_file"]: (case, *how) for case in read_summary(evaluation / SUMMARY)}
    measured = for_each(measure_case, tasks, default_num_processes, "Measuring")
    rows = [row for case in measured.values() for row in case]
    scores = pd.DataFrame(rows, columns=None if rows else ["case", "label"])
    scores["label"] = scores["label"].map(label_names(dataset_json))
    scores["domain"] = scores["case"].map(read_domains(dataset_json))
    # groupby leaves out cases without domain, and means leave out what is missing
    domains = {str(domain): _means(group) for domain, group in scores.groupby("domain")}
    dice = {name: found["mean"]["dice"] for name, found in domains.items()}
    known = {name: value for name, value in dice.items() if value is not None}
    worst = min(known, key=lambda name: known[name], default=None)
    without = sorted(scores.loc[scores["domain"].isna(), "case"].unique())
    content = {"worst_domain": worst, "domains": domains, "cases_without_domain": without}
    write_json(evaluation / SUMMARY_FILE, content)
    return _table(domains, worst)


def _means(scores: "pd.DataFrame") -> dict[str, Any]:
    by_label = scores.groupby("label", sort=False)[list(MEASURES)].mean()
    return {
        "cases": scores["case"].nunique(),
        "mean": _plain(by_label.mean()),
        "labels": {label: _plain(means) for label, means in by_label.iterrows()},
    }


def _plain(means: "pd.Series") -> dict[str, float | None]:
    return {name: None if math.isnan(value) else float(value) for name, value in means.items()}


def _table(domains: Mapping[str, Any], worst: str | None) -> str:
    if not domains:
        return "No validation case has a domain."
    lines = []
    for domain, found in domains.items():
        means = found["labels"] | ({"mean": found["mean"]} if len(found["labels"]) > 1 else {})
        for label, measures in means.items():
            shown = {"Dice": measures["dice"], "HD95": measures["hd95"]}
            lines.append({"domain": domain, "cases": found["cases"], "label": label, **shown})
    table: str = pd.DataFrame(lines).to_string(index=False, float_format="%.4f")
    if worst is None or len(domains) == 1:
        return table
    return f"{table}\nWorst domain: {worst}, mean Dice {domains[worst]['mean']['dice']:.4f}"
