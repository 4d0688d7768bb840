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
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

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

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
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
    "xtick.labelsize": 8.5,
    "ytick.left": False,
}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every plot of a page."""

    colour: str
    dash: str
    marker: str


Styles = Mapping[str, ArmStyle]


def arm_styles(arms: Sequence[str], baseline: str) -> Styles:
    """Give every arm a look; after six arms colours come again with other dashes and markers."""
    looks = cycle(
        ArmStyle(colour, dash, marker)
        for dash, marker in zip(DASHES, MARKERS, strict=True)
        for colour in LINE_COLOURS
    )
    others = dict(zip((arm for arm in arms if arm != baseline), looks, strict=False))
    return {arm: others.get(arm, ArmStyle(BASELINE_COLOUR, "-", "D")) for arm in arms}


def forest(differences: pd.DataFrame, styles: Styles, label: str) -> str:
    """Draw differences with their intervals.

    Args:
        differences: Columns name (group of rows, "" if there is only one), arm, difference,
            low, high, in the order in which they are shown.
        styles: Look of the arms.
        label: What stands at the axis.
    """
    differences = differences.dropna(subset="difference")
    grouped = differences["name"].nunique() > 1
    changes = differences["name"].ne(differences["name"].shift()).to_numpy()
    places = np.arange(len(differences)) + 0.5 * (changes.cumsum() - 1)
    arms = list(differences["arm"].unique()) if grouped else []
    with _figure(len(differences) + 0.5 * changes.sum(), styles, arms) as (figure, axes):
        axes.axvline(0, color="#333333", linewidth=0.8)
        for y, row in zip(places, differences.itertuples(), strict=True):
            look = styles[row.arm]
            axes.plot([row.low, row.high], [y, y], color=look.colour, linewidth=1.6)
            axes.plot(row.difference, y, look.marker, color=look.colour, markersize=4.5)
        names = differences["name" if grouped else "arm"]
        starts = np.flatnonzero(changes) if grouped else np.arange(len(names))
        middles = [part.mean() for part in np.split(places, starts[1:])]
        _name_rows(axes, names.iloc[starts], middles)
        axes.set_ylim(places[-1] + 0.75, -0.75)
        axes.set_xlabel(label)
        return _svg(figure, f"Forest plot: {label}")


def strips(values: pd.DataFrame, styles: Styles, label: str) -> str:
    """Draw every case as a dot, below a box of quartiles with median and mean, for each arm.

    ``values`` has the columns arm, subject, value; several of a subject are averaged.
    """
    wide = values.pivot_table(index="subject", columns="arm", values="value")
    arms = [arm for arm in styles if arm in wide]
    # a fixed low-discrepancy sequence: dots do not hide each other, nor move between runs
    jitter = np.arange(len(wide)) * 0.618034 % 1 * 0.42 + 0.03
    with _figure(2.3 * len(arms)) as (figure, axes):
        for i, arm in enumerate(arms):
            colour, dots = styles[arm].colour, wide[arm].to_numpy(float)
            look: dict[str, Any] = {"color": colour, "alpha": 0.65, "markersize": 3.2}
            axes.plot(
                dots, i + jitter, "o", **look, markeredgewidth=0, rasterized=wide.size > MOST_DOTS
            )
            low, median, high = np.nanquantile(dots, [0.25, 0.5, 0.75])
            axes.barh(i - 0.22, high - low, 0.22, low, color=colour, alpha=0.25)
            axes.plot([median, median], [i - 0.33, i - 0.11], color=colour, linewidth=1.8)
            look = {"markeredgecolor": colour, "markersize": 4.2}
            axes.plot(np.nanmean(dots), i - 0.22, "D", color="white", **look)
        _name_rows(axes, arms, range(len(arms)))
        axes.set_ylim(len(arms) - 0.45, -0.55)
        axes.set_xlabel(label)
        return _svg(figure, f"{label}: every case, quartiles and mean of each arm")


def curves(epochs: pd.DataFrame, styles: Styles, column: str, label: str) -> str:
    """Draw one curve of every training, thin, and their mean over each arm, thick.

    ``epochs`` has the columns arm, fold, seed, epoch and the one that is drawn.
    """
    epochs = epochs.dropna(subset=column)
    step = int(np.ceil((epochs["epoch"].max() + 1) / MOST_POINTS))
    epochs = epochs.assign(epoch=epochs["epoch"] // step * step + (step - 1) / 2)
    groups = epochs.groupby(["arm", "fold", "seed", "epoch"])[column].mean().unstack("epoch")
    arms = [arm for arm in styles if arm in groups.index]
    with _figure(7.5, styles, arms, curve=True) as (figure, axes):
        for arm in arms:
            look, several = styles[arm], groups.loc[arm]
            thin: dict[str, Any] = {"color": look.colour, "linewidth": 0.5, "alpha": 0.4}
            for training in several.to_numpy(float) if len(several) > 1 else ():
                axes.plot(several.columns, training, look.dash, **thin)
            # where some trainings have ended, the mean would jump
            complete = several.mean()[several.notna().all()]
            axes.plot(complete.index, complete, look.dash, color=look.colour, linewidth=1.7)
        axes.set_xlabel("epoch" if step == 1 else f"epoch (means of {step})")
        axes.set_ylabel(label)
        return _svg(figure, f"{label} of every training by epoch")


@contextmanager
def _figure(
    rows: float, styles: Styles | None = None, arms: Sequence[str] = (), curve: bool = False
) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure of the house's style with so many lines' height, arms named above it."""
    with style.context("default"), rc_context(STYLE | {"axes.spines.left": curve}):
        columns = 1 if max(map(len, arms), default=0) > 20 else 2
        legend = np.ceil(len(arms) / columns) * 0.18
        size = (NARROW if curve else WIDTH, rows * ROW + 0.6 + legend)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=curve, axis="y")
        # not more than there is room for, and no fractions of epochs
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=curve))
        if styles is not None and len(styles) > 1 and arms:
            handles = [
                Line2D(
                    [], [], color=look.colour, linestyle=look.dash, marker=look.marker * (not curve)
                )
                for look in map(styles.__getitem__, arms)
            ]
            names = map(_short, arms)
            figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.6)
        yield figure, axes


def _name_rows(axes: Axes, names: Iterable[str], places: Iterable[float]) -> None:
    axes.set_yticks(list(places), list(map(_short, names)))


def _short(name: str) -> str:
    """A name that fits beside a plot; names often differ at their ends, so both are kept."""
    return name if len(name) <= 26 else f"{name[:13]}…{name[-12:]}"


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
    # coordinates need no more digits; what is written in the figure does
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    unique = f"f{zlib.crc32(body.encode()):x}"
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{unique}", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="plot" viewBox="0 0 {width:.2f} {height:.2f}" style="width:{width * 4 / 3:.0f}px" '
        f'role="img" aria-label="{escape(title)}">{body}'
    )
