"""How sure a mean is when subjects, trainings and folds are samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtridf
from scipy.stats import t

Floats = NDArray[np.floating[Any]]

Fold = Sequence[Floats]
"""One array (..., subjects, trainings) for each of the samples of trainings in a contrast.

The contrast is the sum of their means, so that the values of a baseline come negated.
"""


class Source(NamedTuple):
    """A part of a mean's variance, and the degrees of freedom with which it is known.

    Scalars, or arrays if many samples are treated at once.
    """

    variance: Floats
    df: Floats | float


class Spread(NamedTuple):
    """Where the variance of a mean comes from."""

    subjects: Source  # together with the residual that their means hold
    trainings: Source  # on the same fold
    folds: Source  # what they differ beyond subjects and trainings
    residual: Floats  # the part of subjects that is the residual's
    between: Floats  # variance of the mean that the folds' means show, whatever it comes from

    @property
    def variance(self) -> Floats:
        """Of the mean."""
        return self.subjects.variance + self.trainings.variance + self.folds.variance

    def half_width(self) -> Floats:
        """Half the width of the 95 % interval, NaN where there is only one subject.

        Each source alone would make it Student's quantile x standard error. The squares of these
        half-widths are added (Howe, Journal of the American Statistical Association 69, 1974;
        Banerjee, Sankhya 22, 1960, showed that it is enough where each part has its own
        estimate). Pooled degrees of freedom (Satterthwaite, Biometrics Bulletin 2, 1946) are too
        many whenever the part known least, that of a few trainings, happens to look small.

        Where each fold has one training, only folds show how much trainings differ, and the
        interval is no narrower than that of their means.
        """
        squares = sum(np.where(v > 0, v * t.isf(0.025, df) ** 2, 0) for v, df in self[:3])
        if self.folds.df > 0 and not np.any(self.trainings.df):
            squares = np.maximum(squares, self.between * t.isf(0.025, self.folds.df) ** 2)
        known = self.subjects.df + self.folds.df > 0
        return np.sqrt(squares) if known else np.full_like(squares, np.nan)

    def df(self) -> float:
        """Degrees of freedom for which Student's quantile x standard error is the half-width."""
        if not self.variance > 0:
            return float(self.subjects.df or self.folds.df)
        return float(stdtridf(0.975, self.half_width() / np.sqrt(self.variance)))


def decompose(folds: Sequence[Fold]) -> tuple[Floats, Spread]:
    """Estimate the mean of a contrast over all subjects, and where its variance comes from.

    In a fold, value = mean + subject + training + residual, all random and uncorrelated: the
    model of readers and cases in radiology (Obuchowski & Rockette, Communications in Statistics B
    24, 1995; Hillis, Statistics in Medicine 26, 2007), with trainings as readers. With n subjects
    and R trainings, variance of the trainings' means / R estimates the trainings' part plus
    residual variance / (n R). The latter is in the variance of the subjects' means already. So
    trainings count only if their means vary by more than the residual explains, but then in
    full: few trainings tell their variance badly, so the residual is the safe side.
    Variances are pooled over folds; what the folds' means differ beyond subjects and trainings
    is luck of the fold, and of its training where it has only one.
    """
    sizes = np.array([fold[0].shape[-2] for fold in folds])
    n, weights = sizes.sum(), sizes / sizes.sum()
    units = [sum(sample.mean(-1) for sample in fold) for fold in folds]
    means = np.stack([unit.mean(-1) for unit in units], axis=-1)
    mean = means @ weights
    df, df_folds = float(n - len(folds)), float(len(folds) - 1)
    subjects = sum(map(_squares, units)) / max(df, 1) / n
    trainings, residual = _of_trainings(folds, weights)
    between = (means - mean[..., None]) ** 2 @ weights**2 * len(folds) / max(df_folds, 1)
    beyond = np.maximum(between - subjects - trainings.variance, 0)
    sources = (Source(subjects, df), trainings, Source(beyond, df_folds))
    return mean, Spread(*sources, residual, between)


def _of_trainings(folds: Sequence[Fold], weights: Floats) -> tuple[Source, Floats]:
    """The trainings' part of the variance, and the residual's.

    Samples may vary differently; their degrees of freedom are Welch's (Biometrika 34, 1947).
    """
    total = noise = squares = np.zeros(folds[0][0].shape[:-2])
    for samples in zip(*folds, strict=True):  # of the same arm, fold by fold
        n, repeats = np.array([sample.shape[-2:] for sample in samples]).T
        df = (repeats - 1).sum()
        if df == 0:
            continue
        variance = sum(_squares(x.mean(-2)) for x in samples) / df * (weights**2 / repeats).sum()
        rests = (x - x.mean(-1, keepdims=True) for x in samples)
        rest = sum(((x - x.mean(-2, keepdims=True)) ** 2).sum((-2, -1)) for x in rests)
        rest = rest / max(((n - 1) * (repeats - 1)).sum(), 1)
        noise = noise + rest * (weights**2 / repeats / n).sum()
        total, squares = total + variance, squares + variance**2 / df
    welch = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    return Source(np.where(total > noise, total, 0), welch), noise


def _squares(values: Floats) -> Floats:
    """Sum of squared deviations from the mean, over the last axis."""
    return np.asarray(((values - values.mean(-1, keepdims=True)) ** 2).sum(-1))
