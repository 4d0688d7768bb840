"""What can be said of trainers ("arms") when cases and trainings are both samples.

Trained again, an arm scores differently, often by more than two arms differ; on other patients,
too. :mod:`nnunet_ext.evaluation.variance` says how much of a mean's variance is due to which;
every interval, p-value, verdict and rank builds on it. docs/statistics.md shows how well.

A frame of *scores* has the columns ``subject``, ``training``, ``value`` and ``arm``. Several values
of a training for a subject (its cases) are averaged; NaNs are missing. A training is a seed on a
fold: any label that is unique within its arm. Trainings that share most subjects form a fold (a
test set predicted by all is one). A subject counts if each training of its fold, of all arms
concerned, has a value for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit
from scipy.stats import rankdata, t

from nnunet_ext.evaluation.variance import Floats, Fold, Source, Spread, decompose

MOST_TRAININGS = 50
"""Per arm: how far :attr:`Difference.further_trainings` looks."""


@dataclass(frozen=True)
class Interval:
    """A mean and the limits of its 95 % interval, NaN where they are unknown."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """What can be said of an arm against a baseline.

    The verdict is "one training" where an arm has only one, whose luck cannot be told from merit;
    "better" or "worse" if the interval excludes zero; "equivalent" if it does not, but lies within
    the margin; else "undecided". Further trainings are how many more per arm would decide between
    the last three if the difference and the variances were exactly as estimated, equally many for
    each fold; None if it is decided, or no number up to :data:`MOST_TRAININGS` in all would.
    """

    arm_mean: float  # over the subjects compared, NaN if there are none
    baseline_mean: float
    difference: float  # arm minus baseline
    low: float  # limits of its 95 % interval, NaN where they are unknown
    high: float
    p: float | None  # two-sided, below 0.05 where the interval excludes zero; None without one
    df: float | None  # degrees of freedom of both
    subjects: int  # compared
    trainings_arm: int  # seeds x folds that predicted them
    trainings_baseline: int
    verdict: str
    further_trainings: int | None


def difference(
    scores: pd.DataFrame,
    arm: str,
    baseline: str,
    *,
    paired: bool = False,
    margin: float = 0.0,
    higher_is_better: bool = True,
) -> Difference:
    """Compare an arm with a baseline.

    Args:
        scores: A frame of scores, which may hold other arms.
        arm: Whose merit is asked for.
        baseline: What it is compared with.
        paired: Whether trainings of the same label share their luck in both arms (start weights,
            order of the data), so that the differences of pairs are the sample. If labels
            differ, or pairs are fewer than folds + 2, two samples are assumed all the same: of
            two pairs one degree of freedom is left, and no interval both useful and sure.
        margin: Largest absolute difference of the means that does not matter.
        higher_is_better: False for distances.

    Raises:
        ValueError: If there are no scores of one of the two.
    """
    for name in (arm, baseline):
        if name not in set(scores["arm"]):
            raise ValueError(f"No scores of {name!r}, only of {', '.join(scores['arm'].unique())}")
    tables = _folds(scores[scores["arm"].isin([arm, baseline])])
    pairs = [(table[arm], table[baseline]) for table in tables]
    subjects = len({subject for table in tables for subject in table.index})
    ours, theirs = (sum(pair[i].shape[1] for pair in pairs) for i in (0, 1))
    folds: list[Fold] = [(one.to_numpy(), -other.to_numpy()) for one, other in pairs]
    arm_mean, minus = (_mean([fold[i] for fold in folds]) for i in (0, 1))
    found, half, p, df, further = arm_mean + minus, math.nan, None, None, None
    verdict = "one training" if min(ours, theirs) == 1 else "undecided"
    if min(ours, theirs) > 1:
        same = all(one.columns.equals(other.columns) for one, other in pairs)
        if paired and same and ours >= len(folds) + 2:
            folds = [(one + negated,) for one, negated in folds]
        spread = decompose(folds)[1]
        half = float(spread.half_width())
    if not math.isnan(half):
        df = spread.df()
        error = math.sqrt(spread.variance)
        p = float(2 * t.sf(abs(found) / error, df)) if error else float(found == 0)
        verdict = _verdict(found if higher_is_better else -found, half, margin)
        if verdict == "undecided":
            further = _further_trainings(abs(found), spread, margin, min(ours, theirs), len(folds))
    limits = (found - half, found + half)
    return Difference(
        arm_mean, -minus, found, *limits, p, df, subjects, ours, theirs, verdict, further
    )


def _verdict(gain: float, half: float, margin: float) -> str:
    if abs(gain) > half:
        return "better" if gain > 0 else "worse"
    return "equivalent" if abs(gain) + half <= margin else "undecided"


def _further_trainings(
    gain: float, spread: Spread, margin: float, trainings: int, folds: int
) -> int | None:
    """How many more trainings per arm would decide; see :class:`Difference`."""
    means = folds
    if trainings == folds:  # luck of trainings and folds cannot be told apart: take it for theirs
        spread = spread._replace(trainings=spread.folds, folds=Source(np.zeros(()), 0))
        means = 1
    own = np.maximum(spread.subjects.variance - spread.residual, 0)
    for more in range(folds, MOST_TRAININGS - trainings + 1, folds):
        left = trainings / (trainings + more)
        growth = (trainings + more - means) / (trainings - means)
        variance, df = spread.trainings
        then = spread._replace(
            subjects=Source(own + left * spread.residual, spread.subjects.df),
            trainings=Source(left * variance, growth * df),
        )
        if _verdict(gain, float(then.half_width()), margin) != "undecided":
            return more
    return None


def mean_interval(scores: pd.DataFrame, bounds: tuple[float, float] | None = None) -> Interval:
    """Estimate an arm's mean over subjects and trainings.

    With bounds, the interval is in range, see :func:`limits`.

    Args:
        scores: A frame of scores of one arm; the column ``arm`` is not needed. With a single
            training, the interval is about this one on other subjects, not about the arm.
        bounds: Least and largest possible value, the latter may be infinite; None for none.

    Returns:
        The limits are NaN for fewer than two subjects, the mean too if there is none. Of equal
        values the interval is a point.

    Raises:
        ValueError: If the mean is out of bounds.
    """
    tables = _folds(scores.assign(arm=0))
    if not tables:
        return Interval(math.nan, math.nan, math.nan)
    found, spread = decompose([[table.to_numpy()] for table in tables])
    mean, half = float(found), float(spread.half_width())
    least, most = bounds or (-math.inf, math.inf)
    if not least <= mean <= most:
        raise ValueError(f"Mean {mean:g} is not between {least:g} and {most:g}")
    if bounds is None or not half > 0:
        return Interval(mean, mean - half, mean + half)
    low, high = limits(found, spread.half_width(), bounds)
    return Interval(mean, float(low), float(high))


def limits(mean: Floats, half: Floats, bounds: tuple[float, float]) -> tuple[Floats, Floats]:
    """Bend intervals of means that lie between bounds, so that their limits do as well.

    They are made symmetric on the scale of the logit, or of the logarithm if there is no upper
    bound, with the half-width that follows there from the delta method.
    """
    least, most = bounds
    above = mean - least
    if math.isinf(most):
        factor = np.exp(half / above)
        return least + above / factor, least + above * factor
    share = above / (most - least)
    bent = half / above / (1 - share)
    low, high = (expit(logit(share) + sign * bent) for sign in (-1, 1))
    return least + (most - least) * low, least + (most - least) * high


def holm(p: Floats) -> Floats:
    """Adjust p-values for their number by Holm's step-down method; NaNs are no tests."""
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaNs are sorted to the end
    adjusted = np.full_like(p, np.nan)
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def ranks(
    scores: pd.DataFrame, higher_is_better: bool = True, resamples: int = 9_999, seed: int = 0
) -> pd.DataFrame:
    """Rank the arms by their mean over the subjects that all have.

    Arms with equal means share the better rank. How sure ranks are is told by ranking means that
    might have been (Wiesenfarth et al., Scientific Reports 11, 2021): subjects and trainings
    are drawn anew. As few trainings drawn with replacement would vary too little, means are
    drawn from Student's distributions with the variances and degrees of freedom of
    :func:`decompose`, jointly for the subjects, whom arms have in common. Ranks are averaged over
    data sets, of which as many are drawn with replacement.

    Args:
        scores: A frame of scores, with a column ``dataset`` if there are several. Data sets
            without subjects that all arms have are left out.
        higher_is_better: False for distances.
        resamples: How often to draw.
        seed: Makes the result repeatable.

    Returns:
        One row per arm, the best first: ``arm``, ``mean`` and ``rank`` (averaged over data sets),
        ``rank_low`` and ``rank_high`` (2.5 and 97.5 % quantiles over the draws), ``first``
        (share of draws that the arm wins; arms that tie share it). The last three are NaN where
        an arm has only one training, or there is only one subject.
    """
    arms = scores["arm"].unique()
    columns = ["arm", "mean", "rank", "rank_low", "rank_high", "first"]
    parts = [part for _, part in scores.groupby("dataset")] if "dataset" in scores else [scores]
    parts = [part for part in parts if part["arm"].nunique() == len(arms)]
    tables = [found for part in parts if (found := _folds(part))]
    if not tables:
        return pd.DataFrame({"arm": arms}).reindex(columns=columns)
    random = np.random.default_rng(seed)
    values = [[[table[arm].to_numpy() for arm in arms] for table in folds] for folds in tables]
    # observed means first, then those drawn: data sets, 1 + resamples, arms
    means = np.stack([_draw(folds, resamples, random) for folds in values])
    each = rankdata(-means if higher_is_better else means, method="min", axis=-1)
    rank, drawn = each[:, 0].mean(0), each[:, 1:]
    if len(drawn) > 1:
        chosen = random.integers(len(drawn), size=(len(drawn), resamples))
        drawn = drawn[chosen, np.arange(resamples)]
    drawn = drawn.mean(0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="inverted_cdf")
    best = np.where(np.isnan(drawn), np.nan, drawn == drawn.min(axis=1, keepdims=True))
    first = (best / best.sum(axis=1, keepdims=True)).mean(0)
    numbers = (means[:, 0].mean(0), rank, low, high, first)
    result = pd.DataFrame({"arm": arms, **dict(zip(columns[1:], numbers, strict=True))})
    return result.sort_values("rank", kind="stable", ignore_index=True)


def _draw(folds: Sequence[Fold], draws: int, random: np.random.Generator) -> Floats:
    """The arms' means (1 + draws, arms), observed and as they might have been; NaN if unknown."""
    units = [np.stack([values.mean(1) for values in fold], axis=1) for fold in folds]
    means = np.concatenate(units).mean(0)
    # what arms have in common does not change ranks, but would seem luck of the folds
    levels = [unit.mean(1, keepdims=True) for unit in units]
    rests = np.concatenate([unit - unit.mean(0) for unit in units])
    n, df = len(rests), len(rests) - len(folds)
    luck = np.full((draws, len(means)), np.nan)
    if df > 0:
        # normal with the sample's covariance, made Student's by a common factor
        luck = random.standard_normal((draws, n)) @ rests / math.sqrt(df * n)
        luck *= np.sqrt(df / random.chisquare(df, (draws, 1)))
    for i in range(len(means)):
        ours = [(fold[i] - level,) for fold, level in zip(folds, levels, strict=True)]
        _, spread = decompose(ours)
        if sum(fold[i].shape[1] for fold in folds) == 1:
            luck[:] = np.nan
        for variance, freedom in spread[1:3]:
            if variance > 0:
                luck[:, i] += np.sqrt(variance) * random.standard_t(freedom, draws)
    return np.concatenate([means[None], means + luck])


def _folds(scores: pd.DataFrame) -> list[pd.DataFrame]:
    """Complete values of each fold that has all arms: subjects x (arm, training)."""
    if scores.empty:
        return []
    scores = scores.assign(training=pd.factorize(scores["training"])[0])
    table = scores.groupby(["arm", "training", "subject"])["value"].mean().unstack([0, 1])
    seen = table.notna().to_numpy(float)
    shared = seen.T @ seen
    likely = shared > np.minimum.outer(shared.diagonal(), shared.diagonal()) / 2
    count, fold = connected_components(likely, directed=False)
    parts = [table.loc[:, fold == i].dropna() for i in range(count)]
    arms = scores["arm"].nunique()
    return [part for part in parts if len(part) and len({arm for arm, _ in part}) == arms]


def _mean(folds: Sequence[Floats]) -> float:
    """Over the subjects, who count once, whatever their number of trainings."""
    return float(np.concatenate([values.mean(1) for values in folds]).mean()) if folds else math.nan
