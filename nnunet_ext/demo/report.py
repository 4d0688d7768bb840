"""Shows the result of a demo: a table of Dice scores and a picture of three cases."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from nnunet_ext._common.console import duration, print_plain
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import replacing
from nnunet_ext._common.pictures import (
    COLOURS,
    aspect_of,
    draw_labels,
    draw_slice,
    read_voxels,
    telling_slice,
)
from nnunet_ext.benchmark.synthetic import site_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nnunet_ext.demo.pipeline import Pipeline

ENDING = ".nii.gz"


def publish(pipeline: "Pipeline", console: Console) -> None:
    """Print the tables, write them to ``summary.txt`` and draw ``demo.png``."""
    work, task = pipeline.workspace, pipeline.task
    scores = read_scores(pipeline.scores_file)
    kind, folder = ("test", "imagesTs") if task.has_test_labels else ("validation", "imagesTr")
    title = f"{pipeline.trainer.name} on the {len(scores)} {kind} cases of {task.name}"
    labels = {label: name for label, name in sorted(task.labels.items()) if label}
    tables = [
        score_table(scores, labels, title, site_of),
        time_table({step.name: step.title for step in pipeline.steps()}, work.seconds),
    ]
    images = pipeline.raw_dataset / folder
    draw_cases(scores, labels, lambda case: images / f"{case}_0000{ENDING}", work.picture, title)
    write_tables(tables, work.summary)
    show_tables(console, tables)
    for line in (
        "",
        f"Picture: {work.picture}",
        f"Table:   {work.summary}",
        f"Model:   {pipeline.fold_folder.parent}",
        "nnU-Net's commands go on from here with:",
        *(f"  export {name}={shlex.quote(value)}" for name, value in work.variables.items()),
    ):
        print_plain(console, line)


@dataclass(frozen=True)
class CaseScore:
    """Dice of one case.

    Attributes:
        name: Name of the case.
        dice: Label -> Dice; NaN where a label is in neither truth nor prediction.
        truth: File of the true labels.
        prediction: File of the predicted labels.
    """

    name: str
    dice: dict[int, float]
    truth: Path
    prediction: Path

    @property
    def mean(self) -> float:
        """Mean Dice over the labels."""
        return mean(self.dice.values())


def mean(values: Iterable[float]) -> float:
    """Mean without the missing values; NaN if all are missing."""
    present = [value for value in values if not math.isnan(value)]
    return fmean(present) if present else math.nan


def read_scores(summary: Path) -> list[CaseScore]:
    """Read what nnU-Net's evaluation has written.

    Raises:
        UserError: If the file cannot be read or holds no case.
    """
    try:
        cases = json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]
        scores = [_case_score(case) for case in cases]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{summary} is not a summary of nnU-Net's evaluation: {error}") from None
    if not scores:
        raise UserError(f"{summary} holds no case.")
    return scores


def _case_score(case: dict[str, Any]) -> CaseScore:
    prediction = Path(case["prediction_file"])
    # nnU-Net writes NaN, and from some versions on null, for a label that is nowhere
    dice = {
        int(label): math.nan if metrics["Dice"] is None else float(metrics["Dice"])
        for label, metrics in case["metrics"].items()
    }
    name = prediction.name.removesuffix(ENDING)
    return CaseScore(name, dice, Path(case["reference_file"]), prediction)


def score_table(
    scores: Sequence[CaseScore],
    labels: dict[int, str],
    title: str,
    group_of: Callable[[str], str | None],
) -> Table:
    """Dice per label: over all cases, per group where cases have one, and of the worst case."""
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("Dice")
    shown = [label for label in labels if label in scores[0].dice]
    for label in shown:
        table.add_column(labels[label], justify="right")
    table.add_column("mean", justify="right")

    def add(name: str, cases: Sequence[CaseScore], style: str = "") -> None:
        per_label = [mean(case.dice[label] for case in cases) for label in shown]
        figures = [_shown(value) for value in (*per_label, mean(per_label))]
        table.add_row(name, *figures, style=style)

    add(f"all {len(scores)} cases", scores, style="bold")
    for group in sorted({group for case in scores if (group := group_of(case.name))}):
        members = [case for case in scores if group_of(case.name) == group]
        add(f"{group}, {len(members)} case{'s' * (len(members) > 1)}", members)
    worst = by_dice(scores)[0]
    add(f"worst case, {worst.name}", [worst])
    return table


def _shown(dice: float) -> str:
    return "-" if math.isnan(dice) else f"{dice:.3f}"


def by_dice(scores: Sequence[CaseScore]) -> list[CaseScore]:
    """Cases from the worst to the best; cases without any label come first."""
    return sorted(scores, key=lambda case: (-1 if math.isnan(case.mean) else case.mean, case.name))


def three_cases(scores: Sequence[CaseScore]) -> list[tuple[str, CaseScore]]:
    """The best, the median and the worst case, or fewer if there are fewer."""
    ranked = by_dice(scores)[::-1]
    picks = {"best": 0, "worst": len(ranked) - 1, "median": len(ranked) // 2}
    chosen: dict[int, str] = {}
    for role, index in picks.items():
        chosen.setdefault(index, role)
    return [(role, ranked[index]) for index, role in sorted(chosen.items())]


def time_table(titles: dict[str, str], seconds: dict[str, float]) -> Table:
    """How long each step took, earlier runs included."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for step, title in titles.items():
        table.add_row(title, duration(seconds[step]))
    table.add_row("together", duration(sum(seconds[step] for step in titles)), style="bold")
    return table


def write_tables(tables: Sequence[Table], path: Path) -> None:
    """Write tables as plain text."""
    with path.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=100)
        for table in tables:
            console.print(table)


def show_tables(console: Console, tables: Sequence[Table]) -> None:
    """Print tables with some air."""
    for table in tables:
        print_plain(console, "")
        console.print(table)


def draw_cases(
    scores: Sequence[CaseScore],
    labels: dict[int, str],
    image_of: Callable[[str], Path],
    path: Path,
    title: str,
) -> None:
    """Draw image, truth and prediction of the best, the median and the worst case.

    Args:
        scores: All cases.
        labels: Label -> name, without the background.
        image_of: Name of a case -> file of its (first) channel.
        path: Where the picture goes.
        title: What stands above it.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cases = three_cases(scores)
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    with style.context("default"):
        figure = Figure(figsize=(9, 3.05 * len(cases) + 0.9), layout="constrained", dpi=120)
        grid = figure.subplots(len(cases), 3, squeeze=False)
        for axes, (role, case) in zip(grid, cases, strict=True):
            _draw_case(axes, case, image_of(case.name), colours)
            axes[0].set_ylabel(f"{role}: {case.name}\n{_dice_line(case, labels)}", fontsize=10)
        for axis, name in zip(grid[0], ("image", "truth", "prediction"), strict=True):
            axis.set_title(name, fontsize=12)
        figure.suptitle(title, fontsize=13)
        patches = [Patch(color=colours[label], label=name) for label, name in labels.items()]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=min(4, len(patches)), frameon=False
        )
        with replacing(path) as partial:
            figure.savefig(partial, format="png")


def _dice_line(case: CaseScore, labels: dict[int, str]) -> str:
    parts = [f"{name} {_shown(case.dice[k])}" for k, name in labels.items() if k in case.dice]
    if len(parts) > 3:  # too long for one line
        parts = [f"mean {_shown(case.mean)}"]
    return "Dice: " + ", ".join(parts)


def _draw_case(
    axes: "Sequence[Axes]", case: CaseScore, image_file: Path, colours: dict[int, str]
) -> None:
    import numpy as np

    image, spacing = read_voxels(image_file)
    truth, prediction = read_voxels(case.truth)[0], read_voxels(case.prediction)[0]
    axis, index = telling_slice(truth, prediction, spacing)
    picture, true, predicted = (
        np.take(volume, index, axis) for volume in (image, truth, prediction)
    )
    for subplot, labels in zip(axes, (None, true, predicted), strict=True):
        draw_slice(subplot, picture, aspect_of(spacing, axis))
        if labels is not None:
            draw_labels(subplot, labels, labels, colours)
