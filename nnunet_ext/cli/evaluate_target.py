"""``nnunet-ext evaluate-target``: how good predictions of the unlabelled modality are."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from nnunet_ext.evaluation.statistics import Interval

FEWEST_CASES = 5
"""With fewer, intervals say little."""


def evaluate_target(
    predictions: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Predictions, as nnUNetv2_predict wrote them.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "-l",
            "--labels",
            metavar="FOLDER",
            help="Labels of the same names; default: labelsUn or labelsTs of the raw data set.",
        ),
    ] = None,
) -> None:
    """Score predictions of images whose labels were not used in training.

    For a modality or domain that was adapted to without labels, where some of it has been
    labelled for evaluation. Writes target_scores.csv beside the predictions, one row per case
    and label, and prints means over the cases with 95 % intervals. Cases without a label are
    left out and named. Training reads nothing of this; whoever chooses settings or checkpoints
    by these scores needs other cases for the final ones.

    \b
    Examples:
      nnunet-ext evaluate-target predicted_lge
      nnunet-ext evaluate-target predicted_lge --labels labels_lge
    """
    from rich.console import Console

    from nnunet_ext._common.console import print_plain, print_table
    from nnunet_ext.benchmark.analysis import METRICS
    from nnunet_ext.evaluation import target

    console = Console(highlight=False)
    found = target.find(predictions, labels)
    written = predictions / target.SCORES_FILE
    scores = target.score(found, written)
    heading = ("label", "cases", *(metric.name for metric in METRICS))
    print_table(console, heading, [_row(label, part) for label, part in _groups(scores).items()])
    _name_unscored(console, "without a label", found.predictions, found.scored)
    _name_unscored(console, "with a label, but not predicted", found.truths, found.scored)
    if len(found.scored) < FEWEST_CASES:
        print_plain(console, f"Only {len(found.scored)} cases: the intervals say little.", "yellow")
    print_plain(console, f"Wrote {written}")


def _groups(scores: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    groups = {str(label): part for label, part in scores.groupby("label", sort=False)}
    return groups if len(groups) < 2 else groups | {"mean": scores}


def _row(label: str, scores: "pd.DataFrame") -> tuple[str, ...]:
    from nnunet_ext.benchmark.analysis import DICE, METRICS
    from nnunet_ext.evaluation.statistics import bootstrap_mean

    cases = scores.groupby("case")[[metric.key for metric in METRICS]].mean()
    shown = (
        _shown(bootstrap_mean(cases[metric.key].to_numpy(float)), metric.decimals)
        for metric in METRICS
    )
    return label, str(cases[DICE.key].count()), *shown


def _shown(interval: "Interval", decimals: int) -> str:
    if math.isnan(interval.estimate):
        return "-"
    shown = f"{interval.estimate:.{decimals}f}"
    if math.isnan(interval.low):
        return shown
    return f"{shown}\n[{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def _name_unscored(
    console: "Console", what: str, cases: Mapping[str, Path], scored: list[str]
) -> None:
    from nnunet_ext._common.console import print_plain, some

    others = sorted(cases.keys() - set(scored))
    if others:
        print_plain(console, f"{len(others)} {what}, not scored: {some(others)}")
