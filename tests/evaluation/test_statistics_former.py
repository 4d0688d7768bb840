"""Paired statistics: do intervals cover, tests hold, rankings know how sure they are?"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.random import Generator
from scipy.stats import ttest_1samp, wilcoxon

from nnunet_ext.evaluation.statistics import (
    Floats,
    bootstrap_mean,
    compare,
    holm,
    rank,
    signed_rank_p,
    unit_values,
)

NAN = math.nan


def values_of(**arms: list[float] | Floats) -> pd.DataFrame:
    """A frame of values: one list per arm, one entry per unit."""
    return pd.DataFrame(
        [
            {"arm": arm, "unit": f"u{i:03}", "value": value}
            for arm, values in arms.items()
            for i, value in enumerate(values)
        ]
    )


Sampler = Callable[[Generator, int], Floats]


def failing(mean: float, deviation: float, usual: float) -> Sampler:
    """One unit in ten fails, the others are normal with mean 0.01."""

    def sample(random: Generator, n: int) -> Floats:
        failed = random.normal(mean, deviation, n)
        return np.where(random.random(n) < 0.1, failed, random.normal(0.01, usual, n))

    return sample


# Differences of Dice as they may be between two arms, and the mean of their population
DIFFERENCES: dict[str, tuple[Sampler, float]] = {
    "normal": (lambda random, n: random.normal(0.01, 0.03, n), 0.01),
    "heavy tails": (lambda random, n: 0.01 + 0.02 * random.standard_t(5, n), 0.01),
    "skewed": (lambda random, n: 0.02 * random.gamma(2, size=n) - 0.03, 0.01),
    "failures": (failing(-0.1, 0.05, 0.03), -0.001),
    "catastrophes": (failing(-0.3, 0.1, 0.02), -0.021),
    "catastrophes of both": (failing(0.0, 0.3, 0.02), 0.009),
}


def coverage(differences: str, n: int) -> float:
    """Share of 2000 samples of n units whose interval contains the true mean."""
    random = np.random.default_rng(n)
    sample, mean = DIFFERENCES[differences]
    intervals = (bootstrap_mean(sample(random, n), resamples=999) for _ in range(2000))
    return sum(interval.low <= mean <= interval.high for interval in intervals) / 2000


@pytest.mark.parametrize("n", [12, 20, 40, 100])
@pytest.mark.parametrize("differences", ["normal", "heavy tails", "skewed", "failures"])
def test_95_percent_intervals_contain_the_true_difference_in_95_percent(
    differences: str, n: int
) -> None:
    assert 0.93 <= coverage(differences, n) <= 0.97


@pytest.mark.parametrize(
    ("differences", "n", "expected"),
    [
        ("catastrophes", 12, 0.72),
        ("catastrophes", 20, 0.87),
        ("catastrophes", 40, 0.96),
        ("catastrophes of both", 20, 0.99),
    ],
)
def test_coverage_of_rare_catastrophes_is_what_the_docstring_admits(
    differences: str, n: int, expected: float
) -> None:
    assert coverage(differences, n) == pytest.approx(expected, abs=0.02)


def test_interval_is_students_where_that_is_wider() -> None:
    values = np.array([0.1, 0.3])
    limits = ttest_1samp(values, 0).confidence_interval()
    interval = bootstrap_mean(values)
    assert (interval.low, interval.high) == pytest.approx((limits.low, limits.high))
    assert interval.estimate == pytest.approx(0.2)


def test_interval_follows_scale_and_shift_of_the_values() -> None:
    values = np.random.default_rng(1).gamma(1, size=15)
    one, other = bootstrap_mean(values), bootstrap_mean(3 - 2 * values)
    assert (other.low, other.high) == pytest.approx((3 - 2 * one.high, 3 - 2 * one.low))


def test_interval_stays_finite_where_one_value_is_far_from_equal_ones() -> None:
    values = np.array([0.0] * 11 + [-0.5])
    interval = bootstrap_mean(values)
    student = ttest_1samp(values, 0).confidence_interval()
    assert -0.3 < interval.low < student.low < 0 < student.high < interval.high < 0.2


def test_interval_of_equal_values_is_a_point() -> None:
    interval = bootstrap_mean(np.array([0.25] * 5))
    assert (interval.estimate, interval.low, interval.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(("values", "estimate"), [([], NAN), ([NAN], NAN), ([NAN, 0.5], 0.5)])
def test_fewer_than_two_values_have_no_interval(values: list[float], estimate: float) -> None:
    interval = bootstrap_mean(np.array(values))
    assert interval.estimate == pytest.approx(estimate, nan_ok=True)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_random_numbers_are_repeatable() -> None:
    values = np.random.default_rng(1).gamma(1, size=15)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)
    arms = values_of(a=values, b=values[::-1], c=values**2)
    assert rank(arms).equals(rank(arms))
    assert not rank(arms, seed=1).equals(rank(arms))


def test_signed_rank_p_is_scipys_and_counts_signs() -> None:
    differences = np.random.default_rng(2).normal(0.5, 1, 30)
    assert signed_rank_p(differences) == wilcoxon(differences).pvalue
    # all of six are positive: probability 2 / 2^6
    assert signed_rank_p(np.arange(1, 7)) == pytest.approx(1 / 32)


def test_differences_of_zero_do_not_count_for_either_arm() -> None:
    differences = np.array([0.0] * 3 + [1, 2, 3, 4, 5, 6])
    assert signed_rank_p(differences) == pytest.approx(1 / 32)
    assert signed_rank_p(np.zeros(4)) == 1
    assert math.isnan(signed_rank_p(np.array([0.5])))


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1, and never below the one before
    adjusted = holm(np.array([0.01, 0.04, NAN, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, NAN, 0.06, 0.02], nan_ok=True)
    assert holm(np.array([0.7, 0.8])) == pytest.approx([1, 1])


def test_arms_are_compared_with_the_baseline_pair_by_pair() -> None:
    random = np.random.default_rng(3)
    base = random.uniform(0.5, 0.9, 20)
    better = base + random.normal(0.05, 0.01, 20)
    frame = compare(values_of(same=base, base=base, better=better), "base")
    same, other = frame.to_dict("records")
    assert list(frame["arm"]) == ["same", "better"]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    interval = bootstrap_mean(better - base)
    assert (other["difference"], other["low"], other["high"]) == pytest.approx(
        (interval.estimate, interval.low, interval.high)
    )
    assert other["low"] > 0.04
    assert other["baseline_mean"] == pytest.approx(base.mean())
    assert other["arm_mean"] == pytest.approx(better.mean())
    assert other["p"] == wilcoxon(better - base).pvalue
    assert other["p_holm"] == 2 * other["p"]


def test_only_units_of_both_arms_are_compared() -> None:
    base = [0.1, 0.2, 0.3, NAN]
    frame = compare(values_of(base=base, some=[NAN, 0.3, 0.5, 0.9], short=[0.4]), "base")
    some, short = frame.to_dict("records")
    assert (some["units"], some["baseline_mean"], some["arm_mean"]) == pytest.approx((2, 0.25, 0.4))
    assert some["difference"] == pytest.approx(0.15)
    assert (short["units"], short["difference"]) == pytest.approx((1, 0.3))
    assert all(math.isnan(short[name]) for name in ("low", "high", "p", "p_holm"))
    assert some["p_holm"] == some["p"]


def test_arms_without_a_common_unit_are_not_comparable() -> None:
    frame = values_of(base=[0.1, NAN], other=[NAN, 0.2])
    (row,) = compare(frame, "base").to_dict("records")
    assert row.pop("arm") == "other"
    assert row.pop("units") == 0
    assert all(math.isnan(number) for number in row.values())
    assert rank(frame)[["mean", "rank", "rank_low", "rank_high", "first"]].isna().all(axis=None)


@pytest.mark.parametrize("columns", [[], ["arm", "unit", "value"]])
def test_nothing_compared_is_an_empty_table(columns: list[str]) -> None:
    nothing = pd.DataFrame(columns=columns)
    assert list(compare(nothing, "base")) == [
        *("arm", "units", "baseline_mean", "arm_mean", "difference", "low", "high", "p", "p_holm")
    ]
    assert list(rank(nothing)) == ["arm", "mean", "rank", "rank_low", "rank_high", "first"]
    assert list(unit_values(nothing, "dice")) == ["arm", "unit", "value"]
    assert compare(nothing, "base").empty
    assert rank(nothing).empty


def test_a_baseline_without_values_is_named() -> None:
    with pytest.raises(ValueError, match="No values of 'bse', only of base, other"):
        compare(values_of(base=[1], other=[2]), "bse")


def test_two_values_of_an_arm_for_a_unit_are_refused() -> None:
    twice = pd.concat([values_of(a=[1, 2])] * 2)
    with pytest.raises(ValueError, match="duplicate"):
        rank(twice)


def test_a_clear_winner_is_first_in_every_resample() -> None:
    random = np.random.default_rng(4)
    base = random.normal(0.8, 0.1, 30)
    arms = values_of(
        middle=base, twin=base + random.normal(0, 0.01, 30), best=base + 0.05, worst=base - 0.1
    )
    frame = rank(arms).set_index("arm")
    assert list(frame["rank"]) == [1, 2, 3, 4]
    assert tuple(frame.loc["best", ["rank_low", "rank_high", "first"]]) == (1, 1, 1)
    assert tuple(frame.loc["worst", ["rank_low", "rank_high", "first"]]) == (4, 4, 0)
    for arm in ("middle", "twin"):
        assert tuple(frame.loc[arm, ["rank_low", "rank_high", "first"]]) == (2, 3, 0)
    assert rank(arms, higher_is_better=False)["arm"][0] == "worst"


def test_arms_that_tie_share_the_better_rank_and_the_wins() -> None:
    values = list(np.random.default_rng(5).normal(size=9))
    frame = rank(values_of(a=values, b=[value - 9 for value in values], c=values))
    assert list(frame["arm"]) == ["a", "c", "b"]
    assert list(frame["rank"]) == [1, 1, 3]
    assert list(frame["first"]) == [0.5, 0.5, 0]


def test_ranking_uses_the_units_that_all_arms_have() -> None:
    frame = rank(values_of(a=[0.1, 0.5, 0.5], b=[NAN, 0.4, 0.6], c=[0.9, 0.3, 0.4]))
    assert list(frame["mean"]) == pytest.approx([0.5, 0.5, 0.35])


def scores(rows: list[tuple[str, int, str, str, int, float]]) -> pd.DataFrame:
    columns = ["arm", "seed", "case", "subject", "label", "dice"]
    return pd.DataFrame(rows, columns=columns).assign(fold=0)


def test_two_cases_of_a_subject_count_once() -> None:
    frame = scores(
        [
            ("a", 0, "x1", "x", 1, 0.2),
            ("a", 0, "x2", "x", 1, 0.4),
            ("a", 0, "y1", "y", 1, 0.9),
        ]
    )
    subjects = unit_values(frame, "dice")
    assert list(subjects["unit"]) == ["x", "y"]
    assert list(subjects["value"]) == pytest.approx([0.3, 0.9])
    assert list(unit_values(frame, "dice", unit="case")["unit"]) == ["x1", "x2", "y1"]


def test_means_are_taken_over_labels_then_seeds_then_cases() -> None:
    frame = scores(
        [
            ("a", 0, "x1", "x", 1, 0.2),
            ("a", 0, "x1", "x", 2, 0.4),  # seed 0: 0.3
            ("a", 1, "x1", "x", 1, NAN),
            ("a", 1, "x1", "x", 2, 0.5),  # seed 1: 0.5, x1: 0.4
            ("a", 0, "x2", "x", 1, 0.8),  # x2: 0.8
            ("a", 0, "y1", "y", 1, NAN),
        ]
    )
    values = unit_values(frame, "dice")
    assert list(values["value"]) == pytest.approx([0.6, NAN], nan_ok=True)


def test_predictions_of_one_case_by_several_folds_are_averaged() -> None:
    one = scores([("a", 0, "x", "x", 1, 0.2)])
    other = scores([("a", 0, "x", "x", 1, 0.6)]).assign(fold=None)
    values = unit_values(pd.concat([one, other]), "dice", unit="case")
    assert list(values["value"]) == pytest.approx([0.4])


def test_a_false_positive_counts_against_its_arm_only_if_the_case_has_another_label() -> None:
    frame = scores(
        [
            ("silent", 0, "both", "both", 1, 0.8),
            ("silent", 0, "both", "both", 2, NAN),
            ("silent", 0, "none", "none", 1, NAN),
            ("loud", 0, "both", "both", 1, 0.8),
            ("loud", 0, "both", "both", 2, 0.0),
            ("loud", 0, "none", "none", 1, 0.0),
        ]
    )
    (row,) = compare(unit_values(frame, "dice"), "silent").to_dict("records")
    assert row["units"] == 1
    assert row["difference"] == pytest.approx(-0.4)
