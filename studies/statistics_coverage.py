"""Do the intervals of the report hold what they promise, where the truth is known?

Simulates comparisons of two arms without a difference, and means of one arm, and counts how often
the 95 % interval contains the truth. Beside it the report's former interval, a studentised
bootstrap over subjects after averaging over trainings. Writes a record and the tables in
docs/statistics.md::

    python -m studies.statistics_coverage --record studies/records/statistics_coverage.json
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t

from nnunet_ext.evaluation.statistics import limits
from nnunet_ext.evaluation.variance import Floats, decompose
from studies import record
from studies.summarise import RESULTS, circumstances, table

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
LAWS: dict[str, Callable[[Generator, tuple[int, ...]], Floats]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "skewed": lambda random, shape: (2 - random.gamma(2, size=shape)) / 2**0.5,
    "heavy tails": lambda random, shape: random.standard_t(4, shape) / 2**0.5,
}
"""Subjects' effects, of variance 1. Skewed (-1.4): in some, the arm is far worse than usual, which
is the direction in which chance more often says "better"."""


@dataclass(frozen=True)
class Cell:
    """A situation. Variances are relative to that of the subjects' effect on the difference.

    Attributes:
        subjects: In all.
        trainings: Per arm and fold.
        spread: Standard deviation of trainings of an arm, relative to that of the mean of the
            subjects' effects in a fold.
        residual: Variance of an arm's value beyond subject and training; by default about what
            :func:`recorded` finds in the median.
        law: Of the subjects' effects.
        paired: Whether arms share half the variance of trainings and are compared in pairs.
        other: How many times more than the other arm's the baseline's trainings spread.
        folds: Subjects are divided among.
        fold_spread: Like ``spread``, of a luck that all trainings on a fold share.
    """

    subjects: int
    trainings: int
    spread: float
    residual: float = 2
    law: str = "normal"
    paired: bool = False
    other: float = 1
    folds: int = 1
    fold_spread: float = 0

    def __str__(self) -> str:
        """What is out of the ordinary."""
        words = [self.law] if self.law != "normal" else []
        words += ["paired"] if self.paired else []
        words += [f"residual {self.residual:g}"] if self.residual != 2 else []
        words += [f"spread of arms 1 : {self.other:g}"] if self.other != 1 else []
        words += [f"{self.folds} folds"] if self.folds > 1 else []
        words += [f"spread of folds {self.fold_spread:g}"] if self.fold_spread else []
        return ", ".join(words)


CELLS = [Cell(*numbers) for numbers in product((10, 40), (2, 3, 5), (0, 1, 3))]
"""What the intervals are made for."""


def checks() -> Iterator[Cell]:
    """What may happen as well."""
    for law, n, spread in product(("skewed", "heavy tails"), (10, 40), (0, 3)):
        yield Cell(n, 3, spread, law=law)
    for n, trainings in product((10, 40), (2, 3, 5)):
        yield Cell(n, trainings, 3, paired=True)
    for trainings in (2, 3):
        yield Cell(40, trainings, 3, other=3)
    for residual, spread in product((0.5, 6), (0, 3)):
        yield Cell(40, 2, spread, residual=residual)
    for folds, trainings in ((5, 1), (5, 3), (2, 1), (2, 3)):
        for spread, fold_spread in ((0, 0), (3, 0), (0, 3)):
            yield Cell(40, trainings, spread, folds=folds, fold_spread=fold_spread)


def simulate(cell: Cell, repetitions: int, random: Generator) -> list[tuple[Floats, Floats]]:
    """Draw comparisons of equal arms: for each fold both arms' (repetitions, subjects, trainings).

    What arms have in common (how hard a subject is) cancels and is left out.
    """
    n, repeats = cell.subjects // cell.folds, cell.trainings
    folds = []
    for _ in range(cell.folds):
        effects = LAWS[cell.law](random, (repetitions, n, 1))
        effects += random.standard_normal((repetitions, 1, 1)) * cell.fold_spread / n**0.5
        luck = random.standard_normal((3, repetitions, 1, repeats)) * cell.spread / n**0.5
        if cell.paired:
            luck[1:] = (luck[0] + luck[1:]) / 2**0.5
        scale = (2 / (1 + cell.other**2)) ** 0.5
        rest = random.standard_normal((2, repetitions, n, repeats)) * cell.residual**0.5
        arm = effects + scale * luck[1] + rest[0]
        folds.append((arm, scale * cell.other * luck[2] + rest[1]))
    return folds


def intervals(cell: Cell, folds: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The differences and half the widths of their intervals, as the report has them."""
    in_pairs = cell.paired and cell.trainings * cell.folds >= cell.folds + 2
    mean, spread = decompose([(a - b,) if in_pairs else (a, -b) for a, b in folds])
    return mean, spread.half_width()


def comparison(cell: Cell, repetitions: int, random: Generator) -> dict[str, Any]:
    """Count how often the intervals contain zero, and how often they lie above."""
    folds = simulate(cell, repetitions, random)
    mean, half = intervals(cell, folds)
    values = np.concatenate([a.mean(-1) - b.mean(-1) for a, b in folds], axis=-1)
    low, high = former(values, random)
    return {
        "coverage": _share(np.abs(mean) <= half),
        "former coverage": _share((low <= 0) & (high >= 0)),
        "false better": _share(mean > half),
        "former false better": _share(low > 0),
    }


def mean_of_arm(cell: Cell, repetitions: int, random: Generator) -> dict[str, Any]:
    """Count how often intervals of a mean Dice contain the truth, and how often they exceed 1.

    The logits of the scores are normal, so that most are about 0.9 and the longer tail is below.
    """
    n, center, deviation = cell.subjects, 2.2, 0.8
    effects = random.standard_normal((repetitions, n, 1))
    luck = random.standard_normal((repetitions, 1, cell.trainings)) * cell.spread / n**0.5
    scores = expit(center + deviation * (effects + luck))
    points, weights = np.polynomial.hermite_e.hermegauss(99)
    overall = deviation * (1 + cell.spread**2 / n) ** 0.5
    truth = expit(center + overall * points) @ weights / weights.sum()
    mean, spread = decompose([(scores,)])
    low, high = limits(mean, spread.half_width(), (0, 1))
    former_low, former_high = former(scores.mean(-1), random)
    return {
        "coverage": _share((low <= truth) & (truth <= high)),
        "former coverage": _share((former_low <= truth) & (truth <= former_high)),
        "former beyond 1": _share(former_high > 1),
    }


def former(values: Floats, random: Generator, resamples: int = 999) -> Floats:
    """Limits (2, repetitions) of the former interval of the mean over the last axis.

    Symmetric studentised bootstrap; a resample's standard error counts as at least 0.2 of the
    sample's, and the quantile as at least Student's.
    """
    n = values.shape[-1]
    mean, spread = values.mean(-1, keepdims=True), values.std(-1, ddof=1, keepdims=True)
    counts = random.multinomial(n, np.full(n, 1 / n), size=resamples).T
    scaled = (values - mean) / spread
    drawn = scaled @ counts / n
    spreads = np.sqrt(np.maximum(scaled**2 @ counts / n - drawn**2, 0) * n / (n - 1))
    quantiles = np.quantile(np.abs(drawn) / np.maximum(spreads, 0.2), 0.95, axis=-1)
    half = spread[..., 0] * np.maximum(quantiles, t.isf(0.025, n - 1) / n**0.5)
    return np.stack([mean[..., 0] - half, mean[..., 0] + half])


def _share(which: NDArray[np.bool_]) -> float:
    return round(float(which.mean()), 4)


def recorded() -> dict[str, list[float]]:
    """Quartiles of residual and spread (see :class:`Cell`) in the recorded experiments' Dice."""
    found = []
    for path in sorted(RESULTS.glob("*/scores.csv")):
        scores = pd.read_csv(path)
        for _, part in scores.groupby(["configuration", "evaluation", "fold"]):
            values = (
                part.groupby(["subject", "arm", "seed"])["dice"].mean().unstack(["arm", "seed"])
            )
            first, *others = (values[arm].dropna().to_numpy() for arm in part["arm"].unique())
            for other in others:
                n, trainings = first.shape
                if other.shape != first.shape or min(n, trainings) < 2:
                    continue
                paired, apart = (
                    decompose([fold])[1] for fold in ((first - other,), (first, -other))
                )
                subjects = n * float(paired.subjects.variance - paired.residual)
                of_arm = trainings / 2  # of a variance of the difference of two means
                luck = max(float(apart.trainings.variance - apart.residual), 0) * of_arm
                if subjects > 0:
                    residual = float(apart.residual) * n * of_arm / subjects
                    found.append((residual, (luck * n / subjects) ** 0.5))
    quartiles = np.quantile(found, [0.25, 0.5, 0.75], axis=0).round(1).T.tolist()
    return dict(zip(("residual", "spread"), quartiles, strict=True))


def run(repetitions: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Simulate all cells, each with random numbers of its own."""
    tables = {
        "comparisons": (comparison, CELLS),
        "checks": (comparison, list(checks())),
        "means": (mean_of_arm, [cell for cell in CELLS if cell.trainings == 3]),
    }
    return {
        name: [
            {
                **({"situation": str(cell)} if name == "checks" else {}),
                "subjects": cell.subjects,
                "trainings": cell.trainings,
                "spread": cell.spread,
                **simulation(cell, repetitions, np.random.default_rng([seed, part, i])),
            }
            for i, cell in enumerate(cells)
        ]
        for part, (name, (simulation, cells)) in enumerate(tables.items())
    }


def in_words(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown, shares in per cent."""
    body = [
        [f"{100 * v:.1f} %" if isinstance(v, float) else v for v in row.values()] for row in rows
    ]
    return table(list(rows[0]), body)


def write_page(tables: dict[str, list[dict[str, Any]]], made: str) -> None:
    """Put tables and circumstances in the page, where comments mark their place."""
    text = PAGE.read_text()
    for name, words in {"run": made, **{k: in_words(v) for k, v in tables.items()}}.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{words}\n{end}{after}"
    PAGE.write_text(text)


def main() -> None:
    """Simulate, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000, help="samples per situation")
    parser.add_argument("--seed", type=int, default=0, help="makes the result repeatable")
    parser.add_argument("--record", type=Path, help="JSON file to write; the page, too")
    arguments = parser.parse_args()
    tables = run(arguments.repetitions, arguments.seed)
    print("\n\n".join(in_words(rows) for rows in tables.values()))
    if arguments.record:
        given = {"repetitions": arguments.repetitions, "seed": arguments.seed}
        experiments = recorded()
        versions = {name: version(name) for name in ("nnunet-ext", "numpy", "scipy")}
        result = {"versions": versions, "arguments": given, "experiments": experiments, **tables}
        record.save(arguments.record, result)
        written = json.loads(arguments.record.read_text())
        words = ", ".join(
            f"{name} {median:g} ({low:g} to {high:g})"
            for name, (low, median, high) in experiments.items()
        )
        made = (
            f"Recorded experiments, median and quartiles: {words}. Simulations, "
            f"{arguments.repetitions} each: residual {Cell.residual:g}. {circumstances(written)}"
        )
        write_page(tables, made)


if __name__ == "__main__":
    main()
