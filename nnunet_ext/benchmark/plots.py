"""Plots of a benchmark as SVG that stands inside a page.

Text stays text, measured in the wide DejaVu Sans that comes with matplotlib, so that it fits
in whatever narrower font the page sets it in. Equal data give equal bytes.
"""

import io
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_ext._common.pictures import LINE_COLOURS

BASELINE_COLOUR = "#4d4d4d"
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "^")

WIDTH, NARROW = 4.9, 3.3
"""Of plots of which two or three stand in a line, in inches; on a phone they can still be read."""
ROW = 0.27
"""Height of a line of text with its air, in inches."""
MOST_POINTS = 150
"""Of a curve; longer ones are averaged over so many stretches of epochs."""
MOST_DOTS = 2000
"""More of them are drawn as pixels, to keep the page small."""
MOST_PAIRS = 300
"""More lines between the arms' dots would only be a grey area."""

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e4e4e0",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "xtick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "xtick.labelsize": 8.5,
    "ytick.color": "#666666",
    "ytick.labelcolor": "#333333",
    "ytick.left": False,
}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every plot of a page."""

    colour: str
    dash: str
    marker: str


def arm_styles(arms: Sequence[str], baseline: str) -> dict[str, ArmStyle]:
    """Give every arm a look; after six arms colours come again with other dashes and markers."""
    styles = {}
    others = [arm for arm in arms if arm != baseline]
    for i, arm in enumerate(others):
        again = i // len(LINE_COLOURS) % len(DASHES)
        styles[arm] = ArmStyle(LINE_COLOURS[i % len(LINE_COLOURS)], DASHES[again], MARKERS[again])
    return {arm: styles.get(arm, ArmStyle(BASELINE_COLOUR, "-", "D")) for arm in arms}


def forest(differences: pd.DataFrame, styles: Mapping[str, ArmStyle], label: str) -> str:
    """Draw differences with their intervals.

    Args:
        differences: Columns name (group of rows, "" if there is only one), arm, difference,
            low, high, in the order in which they are shown.
        styles: Look of the arms.
        label: What stands at the axis.
    """
    differences = differences.dropna(subset="difference")
    grouped = differences["name"].nunique() > 1
    changes = differences["name"].ne(differences["name"].shift())
    places = np.arange(len(differences)) + 0.5 * (changes.cumsum().to_numpy() - 1)
    with _figure(len(differences) + 0.5 * changes.sum()) as (figure, axes):
        axes.axvline(0, color="#333333", linewidth=0.8)
        for y, row in zip(places, differences.itertuples(), strict=True):
            look = styles[row.arm]
            if not (np.isnan(row.low) or np.isnan(row.high)):
                axes.plot([row.low, row.high], [y, y], color=look.colour, linewidth=1.6)
            axes.plot(row.difference, y, look.marker, color=look.colour, markersize=4.5)
        axes.set_xlabel(label)
        if grouped:
            _legend(figure, styles, differences["arm"].unique())
            for y in places[changes][1:]:
                axes.axhline(y - 0.75, color="#e4e4e0", linewidth=0.6)
            groups = pd.Series(places).groupby(differences["name"].to_numpy(), sort=False).mean()
            _name_rows(axes, groups.index, groups)
        else:
            _name_rows(axes, differences["arm"], places)
        axes.set_ylim(places[-1] + 0.75, -0.75)
        return _svg(figure, f"Forest plot: {label}")


def levels(means: pd.DataFrame, styles: Mapping[str, ArmStyle], label: str) -> str:
    """Draw the mean of every arm in every group as a dot.

    Args:
        means: Columns name (of the group), arm, mean.
        styles: Look of the arms.
        label: What stands at the axis.
    """
    means = means.dropna(subset="mean")
    names = list(means["name"].unique())
    with _figure(len(names) * 1.15) as (figure, axes):
        for i, name in enumerate(names):
            shown = means[means["name"] == name]
            axes.plot(shown["mean"], [i] * len(shown), color="#cfcfca", linewidth=3, zorder=1)
            for row in shown.itertuples():
                look = styles[row.arm]
                axes.plot(row.mean, i, look.marker, color=look.colour, markersize=5.5, alpha=0.9)
        _name_rows(axes, names, range(len(names)))
        axes.set_xlabel(label)
        _legend(figure, styles, means["arm"].unique())
        return _svg(figure, label)


def strips(values: pd.DataFrame, styles: Mapping[str, ArmStyle], label: str) -> str:
    """Draw every case as a dot, over a box of quartiles with median and mean, for each arm.

    Lines join the dots of a case if they can be told apart.

    Args:
        values: Columns arm, unit, value.
        styles: Look of the arms.
        label: What stands at the axis.
    """
    values = values.dropna(subset="value")
    wide = values.pivot_table(index="unit", columns="arm", values="value", observed=True)
    wide = wide[[arm for arm in styles if arm in wide]]
    paired = 1 < wide.shape[1] <= 4 and len(wide) <= MOST_PAIRS
    with _figure(2.3 * wide.shape[1]) as (figure, axes):
        many = len(values) > MOST_DOTS
        # a fixed low-discrepancy sequence: dots do not hide each other, nor move between runs
        jitter = (np.arange(len(wide)) * 0.618034 % 1 - 0.5) * (0.2 if paired else 0.42)
        if paired:
            for unit, shift in zip(wide.to_numpy(float), jitter, strict=True):
                y = np.arange(len(unit)) + 0.24 + shift
                axes.plot(unit, y, color="#9a9a94", linewidth=0.4, alpha=0.45, zorder=1)
        for i, arm in enumerate(wide):
            dots = wide[arm].to_numpy(float)
            shown, colour = ~np.isnan(dots), styles[str(arm)].colour
            axes.plot(
                dots[shown],
                i + 0.24 + jitter[shown],
                "o",
                color=colour,
                markersize=3.2,
                alpha=0.65,
                markeredgewidth=0,
                rasterized=many,
            )
            _box(axes, dots[shown], i - 0.22, colour)
        _name_rows(axes, wide.columns, range(wide.shape[1]))
        axes.set_xlabel(label)
        return _svg(figure, f"{label}: every case, quartiles and mean of each arm")


def curves(epochs: pd.DataFrame, styles: Mapping[str, ArmStyle], column: str, label: str) -> str:
    """Draw one curve of every training, thin, and their mean over each arm, thick.

    Args:
        epochs: Columns arm, fold, seed, epoch and ``column``.
        styles: Look of the arms.
        column: What to draw.
        label: What stands at the axis.
    """
    epochs = epochs.dropna(subset=column)
    step = int(np.ceil((epochs["epoch"].max() + 1) / MOST_POINTS)) if len(epochs) else 1
    epochs = epochs.assign(epoch=epochs["epoch"] // step * step + (step - 1) / 2)
    with _figure(7.5, curve=True) as (figure, axes):
        for arm, rows in epochs.groupby("arm", sort=False, observed=True):
            look = styles[str(arm)]
            trainings = rows.groupby(["fold", "seed", "epoch"], dropna=False)[column].mean()
            several = trainings.unstack("epoch")
            if len(several) > 1:
                for training in several.to_numpy(float):
                    axes.plot(
                        several.columns, training, look.dash, color=look.colour, lw=0.5, alpha=0.4
                    )
            # where some trainings have ended, the mean would jump
            complete = several.mean()[several.notna().all()]
            axes.plot(complete.index, complete, look.dash, color=look.colour, linewidth=1.7)
        axes.set_xlabel("epoch" if step == 1 else f"epoch (means of {step})")
        axes.set_ylabel(label)
        _legend(figure, styles, epochs["arm"].unique(), lines=True)
        return _svg(figure, f"{label} of every training by epoch")


@contextmanager
def _figure(rows: float, curve: bool = False) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure of the house's style with so many lines' height."""
    with style.context("default"), rc_context(STYLE | {"axes.spines.left": curve}):
        size = (NARROW if curve else WIDTH, rows * ROW + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=curve, axis="y")
        # not more than there is room for, and no fractions of epochs
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=curve))
        yield figure, axes


def _name_rows(axes: Axes, names: Iterable[object], places: Sequence[float]) -> None:
    axes.set_yticks(places, [_short(str(name)) for name in names])
    axes.set_ylim(len(places) - 0.45, -0.55)


def _short(name: str) -> str:
    """A name that fits beside a plot; names often differ at their ends, so both are kept."""
    return name if len(name) <= 26 else f"{name[:13]}…{name[-12:]}"


def _legend(
    figure: Figure, styles: Mapping[str, ArmStyle], arms: Iterable[str], lines: bool = False
) -> None:
    """Name the arms above the plot, by their lines or by their dots; makes room for that."""
    shown = {arm: styles[arm] for arm in styles if arm in set(arms)}
    if len(styles) < 2 or not shown:
        return
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.dash)
        if lines
        else Line2D([], [], color=look.colour, linestyle="", marker=look.marker, markersize=4.5)
        for look in shown.values()
    ]
    names = [_short(arm) for arm in shown]
    width, height = figure.get_size_inches()
    room = width * 13.5  # letters, a handle takes five
    longest = max(map(len, names))
    in_one_row = sum(map(len, names)) + 5 * len(names) < room
    columns = len(names) if in_one_row else max(1, int(room / (longest + 5)))
    figure.set_size_inches(width, height + 0.18 * np.ceil(len(names) / columns))
    figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=columns,
        handlelength=1.6 if lines else 0.8,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _box(axes: Axes, values: NDArray[np.floating[Any]], y: float, colour: str) -> None:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.fill_between([low, high], y - 0.11, y + 0.11, color=colour, alpha=0.22, linewidth=0)
    axes.plot(
        [low, high, high, low, low],
        y + 0.11 * np.array([-1, -1, 1, 1, -1]),
        color=colour,
        linewidth=0.8,
    )
    axes.plot([median, median], [y - 0.11, y + 0.11], color=colour, linewidth=1.8)
    axes.plot(values.mean(), y, "D", color="white", markeredgecolor=colour, markersize=4.2)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page: as wide as its place, ids of its own."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": "nnunet_ext"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has fonts for every script
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    width, height = (72 * inches for inches in figure.get_size_inches())
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] * (match[1] in used), body)
    body = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', _rounded, body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    unique = f"f{zlib.crc32(body.encode()):x}"
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{unique}", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="plot" viewBox="0 0 {width:.2f} {height:.2f}" style="width:{width * 4 / 3:.0f}px" '
        f'role="img" aria-label="{escape(title)}">{body}'
    )


def _rounded(attribute: "re.Match[str]") -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])
