"""Statistics over subjects and trainings: do statements hold, and say so when they cannot?"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from nnunet_ext.evaluation.statistics import Difference, difference, holm, mean_interval, ranks
from nnunet_ext.evaluation.variance import Floats
from studies import statistics_coverage
from studies.statistics_coverage import Cell

NAN = math.nan
SIMULATED = statistics_coverage.run(300, seed=1)


def frame(fold: int = 0, **arms: Floats | Sequence[Sequence[float]]) -> pd.DataFrame:
    """Scores of a fold: for each arm an array, subjects x trainings."""
    return pd.DataFrame(
        [
            {"arm": arm, "subject": f"{fold}-{i:02}", "training": (j, fold), "value": value}
            for arm, values in arms.items()
            for i, row in enumerate(np.asarray(values, float))
            for j, value in enumerate(row)
        ]
    )


def of_trainings(subjects: int = 10, **arms: list[float]) -> pd.DataFrame:
    """Scores that are the same for all subjects: one value per training."""
    return frame(**{arm: np.tile(values, (subjects, 1)) for arm, values in arms.items()})


def noise(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("row", SIMULATED["comparisons"], ids=str)
def test_intervals_cover_the_truth_whatever_trainings_add(row: dict[str, Any]) -> None:
    # 300 samples: 3.5 standard errors are 4.4 % of coverage, 3 % of false positives
    assert row["coverage"] > 0.95 - 0.044
    assert row["false better"] < 0.025 + 0.03


def test_subjects_alone_do_not_cover_it_where_trainings_differ() -> None:
    former = [row["former coverage"] for row in SIMULATED["comparisons"] if row["spread"] == 3]
    assert max(former) < 0.9


@pytest.mark.parametrize(
    "cell",
    [
        Cell(12, 3, 1),
        Cell(12, 3, 1, paired=True),
        Cell(12, 2, 1, paired=True),
        Cell(12, 2, 3, folds=3),
        Cell(12, 1, 3, folds=3),
    ],
    ids=repr,
)
def test_the_simulation_judges_what_the_report_says(cell: Cell) -> None:
    drawn = statistics_coverage.simulate(cell, 2, np.random.default_rng(3))
    means, halves = statistics_coverage.intervals(cell, drawn)
    scores = pd.concat([frame(i, a=a[1], b=b[1]) for i, (a, b) in enumerate(drawn)])
    found = difference(scores, "a", "b", paired=cell.paired)
    assert found.difference == pytest.approx(means[1])
    assert found.high - found.low == pytest.approx(2 * halves[1])
    assert found.trainings_arm == found.trainings_baseline == cell.trainings * cell.folds


def test_without_luck_of_subjects_it_is_welchs_test_of_the_trainings() -> None:
    one, other = [0.1, 0.15, 0.3], [0.5, 0.51, 0.55, 0.52]
    found = difference(of_trainings(a=one, b=other), "a", "b")
    test = ttest_ind(one, other, equal_var=False)
    limits = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert (found.p, found.df) == pytest.approx((test.pvalue, test.df))
    assert found.verdict == "worse"


def test_pairs_of_trainings_are_compared_as_pairs_if_there_are_three() -> None:
    one, other = [0.1, 0.15, 0.3], [0.2, 0.26, 0.38]
    scores = of_trainings(a=one, b=other)
    found = difference(scores, "a", "b", paired=True)
    test = ttest_rel(one, other)
    limits = test.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((limits.low, limits.high, test.pvalue))
    assert found.verdict == "worse"
    assert difference(scores, "a", "b").verdict == "undecided"
    of_two = of_trainings(a=one[:2], b=other[:2])
    assert difference(of_two, "a", "b", paired=True) == difference(of_two, "a", "b")
    shifted = scores.assign(
        training=[(arm, x) for arm, x in zip(scores.arm, scores.training, strict=True)]
    )
    assert difference(shifted, "a", "b", paired=True) == difference(scores, "a", "b")


def test_subjects_alone_are_students_test() -> None:
    values = noise(8, 1)
    interval = mean_interval(frame(a=values).drop(columns="arm"))
    limits = ttest_1samp(values[:, 0], 0).confidence_interval()
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((limits.low, limits.high))


def test_residuals_are_not_counted_as_luck_of_trainings() -> None:
    # rows and columns of the residual add up to zero, so that trainings do not differ at all
    residual = np.array([[1, -1], [-1, 1]] * 5) * 0.1
    subjects = noise(10, 1)
    found = difference(frame(a=subjects + residual, b=np.zeros((10, 2))), "a", "b")
    limits = ttest_1samp(subjects[:, 0], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert found.df == pytest.approx(9)


def test_folds_with_one_training_are_the_sample_where_subjects_do_not_differ() -> None:
    gains = [0.1, 0.3, 0.15, 0.2, 0.2]
    scores = pd.concat(
        [frame(i, a=np.full((4, 1), gain), b=np.zeros((4, 1))) for i, gain in enumerate(gains)]
    )
    found = difference(scores, "a", "b")
    test = ttest_1samp(gains, 0)
    limits = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert (found.p, found.df) == pytest.approx((test.pvalue, 4))
    assert (found.subjects, found.trainings_arm) == (20, 5)


def test_a_subject_whose_cases_are_in_two_folds_counts_in_both() -> None:
    folds = [frame(i, a=noise(5, 2, seed=i), b=noise(5, 2, seed=9 + i)) for i in (0, 1)]
    apart = difference(pd.concat(folds), "a", "b")
    folds[1].loc[folds[1].subject == "1-00", "subject"] = "0-00"
    found = difference(pd.concat(folds), "a", "b")
    assert found.subjects == 9
    assert (found.low, found.high, found.trainings_arm) == (apart.low, apart.high, 4)


def test_trainings_that_differ_more_than_arms_leave_it_open_whatever_the_subjects() -> None:
    scores = of_trainings(200, a=[0.80, 0.83, 0.83], b=[0.81, 0.82, 0.82])
    found = difference(scores, "a", "b")
    assert found.difference == pytest.approx(0.0033, abs=1e-4)
    assert found.verdict == "undecided"
    assert found.p is not None
    assert found.p > 0.5


def statement(gain: float, higher: bool = True, margin: float = 0.01) -> Difference:
    base = 0.001 * noise(12, 3, seed=1)
    scores = frame(a=base[::-1] + gain, b=base)
    return difference(scores, "a", "b", margin=margin, higher_is_better=higher)


def test_verdicts() -> None:
    assert statement(0.1).verdict == "better"
    assert statement(-0.1).verdict == "worse"
    assert statement(-0.1, higher=False).verdict == "better"
    assert statement(0.1, higher=False).verdict == "worse"
    assert statement(0).verdict == "equivalent"
    assert statement(0, margin=1e-5).verdict == "undecided"
    for found in (statement(0.1), statement(0)):
        assert found.further_trainings is None
        assert found.arm_mean - found.baseline_mean == pytest.approx(found.difference)
        assert found.p is not None
        assert (found.p < 0.05) == (found.verdict == "better")


def test_equal_scores_are_equivalent() -> None:
    same = np.tile(noise(6, 1), (1, 3))
    found = difference(frame(a=same, b=same), "a", "b")
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == "equivalent"


def test_one_training_decides_nothing() -> None:
    found = difference(frame(a=noise(9, 1) + 5, b=noise(9, 3)), "a", "b")
    assert found.verdict == "one training"
    assert found.p is None
    assert found.df is None
    assert found.further_trainings is None
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.difference > 3
    assert (found.subjects, found.trainings_arm, found.trainings_baseline) == (9, 1, 3)


def test_further_trainings_by_hand() -> None:
    # difference 0.15, variance 0.005 of two trainings each; t^2 * 0.01 / R is 0.0257 for R = 3,
    # 0.0150 for 4, which is below 0.15^2
    scores = of_trainings(a=[0.15, 0.25], b=[0, 0.1])
    assert difference(scores, "a", "b").further_trainings == 2
    # for the interval to lie within 0.16 its half may be 0.01, for which 50 are too few
    assert difference(of_trainings(a=[0, 0.1], b=[0, 0.1]), "a", "b").further_trainings is None
    # no difference, t^2 * 0.01 / R: 0.0102 for R = 5, 0.0073 for 7, 0.0086 for 6
    found = difference(of_trainings(a=[0, 0.1], b=[0, 0.1]), "a", "b", margin=0.0929)
    assert found.further_trainings == 4


def test_folds_get_the_same_number_of_further_trainings() -> None:
    scores = pd.concat(
        [frame(i, a=[[x]] * 4, b=[[0.0]] * 4) for i, x in enumerate((0.1, -0.02, 0.14, 0.05))]
    )
    found = difference(scores, "a", "b")
    assert (found.verdict, found.further_trainings) == ("undecided", 4)


def test_a_subject_counts_once_and_only_with_values_of_all_trainings() -> None:
    scores = frame(a=[[1, 1], [2, 2], [3, NAN], [9, 9]], b=[[0, 0], [0, 0], [0, 0], [0, NAN]])
    more_cases = frame(a=[[3, 3]], b=[[0, 0]])
    found = difference(pd.concat([scores, more_cases]), "a", "b")
    assert found.subjects == 2
    assert (found.arm_mean, found.baseline_mean) == (2, 0)


def test_arms_without_a_common_subject_are_not_comparable() -> None:
    found = difference(frame(a=[[1, 1], [NAN, NAN]], b=[[NAN, NAN], [1, 2]]), "a", "b")
    assert (found.subjects, found.trainings_arm, found.verdict) == (0, 0, "undecided")
    assert found.p is None
    assert math.isnan(found.difference)
    assert math.isnan(found.low)


def test_one_subject_tells_nothing_about_others() -> None:
    found = difference(frame(a=noise(1, 3), b=noise(1, 3, seed=1)), "a", "b")
    assert found.verdict == "undecided"
    assert math.isnan(found.low)


def test_an_arm_without_scores_is_named() -> None:
    with pytest.raises(ValueError, match="No scores of 'bse', only of base, other"):
        difference(frame(base=[[1]], other=[[1]]), "other", "bse")


def test_intervals_of_a_mean_stay_in_range() -> None:
    dice = frame(a=[[0.99], [0.98], [0.6]]).drop(columns="arm")
    plain, bounded = mean_interval(dice), mean_interval(dice, (0, 1))
    assert plain.high > 1
    assert plain.mean == bounded.mean
    assert 0 < bounded.low < bounded.mean < bounded.high < 1
    low, middle, high = logit([bounded.low, bounded.mean, bounded.high])
    half = (plain.high - plain.mean) / plain.mean / (1 - plain.mean)
    assert (middle - low, high - middle) == pytest.approx((half, half))
    distance = mean_interval(dice.assign(value=[0.1, 0.2, 9]), (0, math.inf))
    assert 0 < distance.low < distance.mean < distance.high
    assert distance.low * distance.high == pytest.approx(distance.mean**2)


def test_means_without_an_interval() -> None:
    equal = mean_interval(frame(a=[[1.0]] * 3), (0, 1))
    assert (equal.mean, equal.low, equal.high) == (1, 1, 1)
    alone = mean_interval(frame(a=[[0.5]]), (0, 1))
    assert alone.mean == 0.5
    assert math.isnan(alone.low)
    assert math.isnan(mean_interval(frame(a=[[NAN]])).mean)
    with pytest.raises(ValueError, match=r"Mean 3 is not between 0 and 1"):
        mean_interval(frame(a=[[2], [4]]), (0, 1))


def test_coverage_of_means_is_that_of_a_skewed_small_sample_at_least() -> None:
    assert all(row["coverage"] > 0.88 for row in SIMULATED["means"])
    assert max(row["former beyond 1"] for row in SIMULATED["means"]) > 0.05


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1, and never below the one before
    adjusted = holm(np.array([0.01, 0.04, NAN, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, NAN, 0.06, 0.02], nan_ok=True)
    assert holm(np.array([0.7, 0.8])) == pytest.approx([1, 1])


def test_a_clear_winner_is_first_in_nearly_every_draw() -> None:
    base = noise(30, 3)
    arms = {"middle": base, "twin": base + 0.01 * noise(30, 3, seed=1), "best": base + 5}
    scores = frame(**arms, worst=base - 5)
    table = ranks(scores).set_index("arm")
    assert list(table["rank"]) == [1, 2, 3, 4]
    limits = table[["rank_low", "rank_high"]].to_numpy().tolist()
    assert limits == [[1, 1], [2, 3], [2, 3], [4, 4]]
    assert list(table["first"]) == pytest.approx([1, 0, 0, 0], abs=0.01)
    assert ranks(scores, higher_is_better=False)["arm"][0] == "worst"


def test_ranks_know_the_luck_of_trainings() -> None:
    scores = of_trainings(50, a=[0.8, 0.9, 0.85], b=[0.79, 0.89, 0.84])
    table = ranks(scores).set_index("arm")
    assert 0.5 < table.loc["a", "first"] < 0.7
    assert tuple(table.loc["a", ["rank", "rank_low", "rank_high"]]) == (1, 1, 2)
    alone = ranks(frame(a=noise(9, 1) + 9, b=noise(9, 3)))
    assert list(alone["rank"]) == [1, 2]
    assert alone[["rank_low", "rank_high", "first"]].isna().all(axis=None)


def test_ranks_agree_with_the_test_of_two_arms() -> None:
    scores = frame(a=noise(20, 4) + 0.3, b=noise(20, 4, seed=1))
    found = difference(scores, "a", "b")
    assert found.p is not None
    first = ranks(scores).set_index("arm").loc["a", "first"]
    assert 1 - first == pytest.approx(found.p / 2, abs=0.02)


def test_arms_that_tie_share_the_better_rank() -> None:
    values = noise(9, 2)
    table = ranks(frame(a=values, b=values - 9, c=values))
    assert list(table["arm"]) == ["a", "c", "b"]
    assert list(table["rank"]) == [1, 1, 3]
    assert list(table["first"]) == pytest.approx([0.5, 0.5, 0], abs=0.02)


def test_ranks_use_the_subjects_that_all_arms_have() -> None:
    rows = {"a": [[0.1], [0.5], [0.5]], "b": [[NAN], [0.4], [0.6]], "c": [[0.9], [0.3], [0.4]]}
    assert list(ranks(frame(**rows))["mean"]) == pytest.approx([0.5, 0.5, 0.35])


def test_ranks_are_averaged_over_data_sets_and_these_are_drawn_too() -> None:
    wins = frame(a=noise(9, 2) + 9, b=noise(9, 2)).assign(dataset="one")
    loses = frame(a=noise(9, 2) - 9, b=noise(9, 2)).assign(dataset="two")
    without = frame(a=noise(9, 2)).assign(dataset="three")
    table = ranks(pd.concat([wins, wins.assign(dataset="zero"), loses, without]))
    assert list(table["arm"]) == ["a", "b"]
    assert list(table["rank"]) == pytest.approx([4 / 3, 5 / 3])
    assert list(table["rank_low"]) == [1, 1]
    assert list(table["rank_high"]) == [2, 2]
    # more data sets drawn that it wins than that it loses: 20 of 27
    assert table["first"][0] == pytest.approx(20 / 27, abs=0.02)
    assert ranks(wins)["first"][0] > 0.98


def test_ranks_are_repeatable() -> None:
    scores = frame(a=noise(9, 2), b=noise(9, 2, seed=1))
    assert ranks(scores).equals(ranks(scores))
    assert not ranks(scores, seed=1).equals(ranks(scores))


def test_nothing_compared_is_an_empty_table() -> None:
    table = ranks(frame(a=[[1]]).iloc[:0])
    assert list(table) == ["arm", "mean", "rank", "rank_low", "rank_high", "first"]
    assert table.empty
    assert math.isnan(mean_interval(frame(a=[[1]]).iloc[:0]).mean)
