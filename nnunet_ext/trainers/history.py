"""The record of a training: every part of the loss and every extra figure, per epoch."""

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from nnunet_ext._common.files import replacing

EPOCH = "epoch"


class History:
    """One row of named figures per epoch, written as ``losses.csv`` and ``losses.png``.

    nnU-Net's own logger accepts a fixed list of names only, so ours stand beside it.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.losses: list[str] = []  # names of the figures that are parts of the loss

    def add(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Append the row of ``epoch``, replacing rows from a run that was interrupted."""
        self.rows = [row for row in self.rows if row[EPOCH] < epoch]
        self.rows.append({EPOCH: epoch, **figures})

    @property
    def names(self) -> list[str]:
        """All figures that occur, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != EPOCH))

    def write_csv(self, path: Path) -> None:
        """Write one line per epoch; a figure that an epoch lacks stays empty."""
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [EPOCH, *self.names])
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path: Path) -> None:
        """Draw parts of the loss on the left, all other figures, dotted, on the right."""
        with style.context("default"):  # nnU-Net's plots enlarge all fonts for good
            figure = Figure(figsize=(9, 5), layout="constrained")
            losses = figure.add_subplot()
            losses.set(xlabel="epoch", ylabel="loss")
            others = losses.twinx()
            others.set_ylabel("scores and shares")
            for number, name in enumerate(self.names):
                is_loss = name in self.losses
                points = [(row[EPOCH], row[name]) for row in self.rows if name in row]
                (losses if is_loss else others).plot(
                    *zip(*points, strict=True),
                    color=f"C{number % 10}",
                    linestyle="-" if is_loss else ":",
                    marker="." if len(points) == 1 else None,
                    label=name,
                )
            others.get_yaxis().set_visible(set(self.names) > set(self.losses))
            figure.legend(loc="outside upper center", ncols=4, frameon=False)
            figure.savefig(path, dpi=120)
