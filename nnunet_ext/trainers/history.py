"""The record of a training: every part of the loss and every extra figure, per epoch."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext._common.files import replacing
from nnunet_ext.trainers.distributed import gather

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


class RecordingTrainer(nnUNetTrainer):
    """Keeps a history of every part of the loss, and of every other figure of an epoch."""

    history: History
    _figures: dict[str, float]  # of the epoch that has not ended

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record the mean of each part of the loss."""
        parts = [output.pop("parts") for output in train_outputs]
        super().on_train_epoch_end(train_outputs)
        parts = [part for rank in gather(parts) for part in rank]
        names = list(dict.fromkeys(name for part in parts for name in part))
        self.history.losses += [name for name in names if name not in self.history.losses]
        for name in names:
            values = [part[name] for part in parts if name in part]
            finite = [value for value in values if np.isfinite(value)]
            self.record(name, float(np.mean(finite or values)))

    def record(self, name: str, value: float) -> None:
        """Put a figure of this epoch into ``losses.csv``, its plot, the log and W&B."""
        self._figures[name] = value

    def on_epoch_end(self) -> None:
        """Log what was recorded, then write ``losses.csv`` and its plot."""
        self.print_to_log_file(*(f"{name} {value:.4f} " for name, value in self._figures.items()))
        self.history.add(self.current_epoch, self._figures)
        for logger in self.logger.loggers:
            for name, value in self._figures.items():
                logger.log(f"nnunet_ext/{name}", value, self.current_epoch)
        self._figures = {}
        super().on_epoch_end()
        if self.local_rank == 0:
            self.history.write_csv(Path(self.output_folder, "losses.csv"))
            self.history.plot(Path(self.output_folder, "losses.png"))
