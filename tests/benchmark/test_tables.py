"""The numbers of a report and the tables that show them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_ext._common.console import plural
from nnunet_ext.benchmark import analysis
from nnunet_ext.benchmark.analysis import METRICS, Analysis, samples
from nnunet_ext.benchmark.page import Cell, Table
from nnunet_ext.benchmark.results import Results
from nnunet_ext.benchmark.tables import Tables, arms_table, difference, number
from nnunet_ext.evaluation.statistics import difference as difference_of
from nnunet_ext.evaluation.statistics import holm, mean_interval, ranks
from tests.benchmark.synthetic_results import ARMS, make_results, without

CONFIGURATION = "3d_fullres"
WHERE = (CONFIGURATION, "clean")


def results_of(**options: Any) -> Results:
    return make_results(Path("nowhere"), images=False, **options)


def rows_of(table: Table) -> dict[tuple[str, str], dict[str, Cell]]:
    """Cells by group, arm and head."""
    return {
        (str(row[table.group]) if table.group else "", str(row["arm"])): {
            head: cell if isinstance(cell, Cell) else Cell(cell) for head, cell in row.items()
        }
        for row in table.frame.to_dict("records")
    }


def row_of(numbers: Analysis, scope: str, arm: str, **where: str) -> dict[str, Any]:
    where = {"configuration": CONFIGURATION, "evaluation": "clean", "metric": "dice"} | where
    frame = numbers.comparison
    for key, value in (where | {"scope": scope, "arm": arm}).items():
        frame = frame[frame[key] == value]
    (row,) = frame.to_dict("records")
    return row


def expected(results: Results, scores: pd.DataFrame, arm: str, **options: Any) -> Any:
    """What the statistics say of an arm; the first arm takes no seed, so nothing is paired."""
    options = {"paired": False, "margin": results.margin} | options
    return difference_of(samples(scores, "dice"), arm, results.baseline, **options)


def test_samples_are_means_over_labels_and_cases_of_each_training() -> None:
    scores = results_of(cases_per_subject=2, folds=1).scores
    found = samples(scores, "dice").set_index(["arm", "training", "subject"])["value"]
    mine = scores[(scores["arm"] == ARMS[1]) & (scores["seed"] == 1)]
    mine = mine[mine["subject"] == "subject_003"]
    value = found[ARMS[1], "seed 1, fold 0", "subject_003"]
    assert value == pytest.approx(mine.groupby("case")["dice"].mean().mean())
    assert len(found) == len(ARMS) * 2 * 12


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_numbers_are_those_of_the_statistics(metric: Any) -> None:
    results = results_of(cases_per_subject=2)
    values = samples(results.scores, metric.key)
    margin = results.margin if metric.key == "dice" else 0.0
    found = [
        difference_of(
            values, arm, ARMS[0], paired=False, margin=margin, higher_is_better=metric.higher
        )
        for arm in ARMS[1:]
    ]
    row = row_of(Tables(results), "all", ARMS[1], metric=metric.key)
    for column in ("difference", "low", "high", "p", "df"):
        assert row[column] == getattr(found[0], column)
    assert row["p_holm"] == holm(np.array([each.p for each in found], float))[0]
    assert row["subjects"] == row["pairs"] == 12
    assert (row["cases"], row["trainings"]) == (24, 4)
    mean = mean_interval(values[values["arm"] == ARMS[1]], metric.bounds)
    assert (row["mean"], row["mean_low"], row["mean_high"]) == (mean.mean, mean.low, mean.high)
    cell = rows_of(Tables(results).answer(*WHERE))["", ARMS[1]][metric.head("mm")]
    assert cell.text == number(mean.mean, metric.decimals)
    limits = [number(row[key], metric.decimals, True) for key in ("difference", "low", "high")]
    assert cell.details[0] == "{} [{}, {}]".format(*limits)


def test_trainings_of_seeded_arms_and_of_shared_weights_are_paired() -> None:
    results = results_of(folds=1, seeds=3)
    both = replace(results, baseline=ARMS[1])  # which takes the seed, as the third arm does
    row = row_of(Tables(both), "all", ARMS[2])
    assert row["low"] == expected(both, both.scores, ARMS[2], paired=True).low
    assert row["low"] != expected(both, both.scores, ARMS[2], paired=False).low
    row = row_of(Tables(results), "all", ARMS[2])
    assert row["low"] == expected(results, results.scores, ARMS[2], paired=False).low
    results.arms[ARMS[2]]["weights of"] = ARMS[0]
    row = row_of(Tables(results), "all", ARMS[2])
    assert row["low"] == expected(results, results.scores, ARMS[2], paired=True).low


def test_verdict_needs_the_adjusted_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_of(seeds=3, cases=40)
    row = row_of(Tables(results), "all", ARMS[2])
    assert row["verdict"] == "better"
    assert row["p"] < row["p_holm"] < 0.05
    monkeypatch.setattr(analysis, "holm", lambda p: np.where(np.isnan(p), p, 0.06))
    assert row_of(Tables(results), "all", ARMS[2])["verdict"] == "undecided"


def test_undecided_verdict_says_how_many_more_trainings_would_decide() -> None:
    results = results_of(seeds=2, folds=1, cases=40)
    luck = np.random.default_rng(0).normal(0, 0.02, (len(ARMS), 2))
    arms = results.scores["arm"].map({arm: i for i, arm in enumerate(ARMS)})
    results.scores["dice"] += luck[arms, results.scores["seed"]]
    tables = Tables(results)
    row = row_of(tables, "all", ARMS[1])
    assert row["verdict"] == "undecided"
    cell = rows_of(tables.answer(*WHERE))["", ARMS[1]]["verdict"]
    assert cell == Cell("undecided", (f"+{plural(int(row['further_trainings']), 'training')}",))


def test_equal_scores_are_equivalent_within_the_margin() -> None:
    results = results_of(arms=ARMS[:2], seeds=3)
    mine = results.scores[results.scores["arm"] == ARMS[0]]
    scores = pd.concat([mine, mine.assign(arm=ARMS[1], dice=mine["dice"] + 0.001)])
    results.arms[ARMS[0]]["seeds"] = "seeded"
    tables = Tables(replace(results, scores=scores.reset_index(drop=True)))
    assert row_of(tables, "all", ARMS[1])["verdict"] == "better"
    noise = np.random.default_rng(1).normal(0, 0.002, len(mine))
    scores = pd.concat([mine, mine.assign(arm=ARMS[1], dice=mine["dice"] + noise)])
    tables = Tables(replace(results, scores=scores.reset_index(drop=True)))
    assert row_of(tables, "all", ARMS[1])["verdict"] == "equivalent"
    tables = Tables(replace(tables.results, margin=0.0))
    assert row_of(tables, "all", ARMS[1])["verdict"] == "undecided"


def test_one_training_has_neither_p_value_nor_verdict_nor_tone() -> None:
    results = results_of(folds=1, seeds=1, cases=40)
    tables = Tables(results)
    row = row_of(tables, "all", ARMS[2])
    assert row["verdict"] == "one training"
    assert all(math.isnan(row[key]) for key in ("low", "high", "p", "p_holm"))
    cells = rows_of(tables.answer(*WHERE))["", ARMS[2]]
    assert cells["Dice ↑"].details == (f"{number(row['difference'], 3, True)} (no interval)",)
    assert cells["Dice ↑"].tone not in ("better", "worse", "equivalent")
    assert math.isnan(row_of(tables, "all", ARMS[0])["difference"])
    assert tables.ranking["rank_low"].isna().all()


def test_configurations_are_never_pooled() -> None:
    both = results_of(configurations=("2d", CONFIGURATION), test_cases=15, labels={"1": "x"})
    one = replace(both, scores=both.scores[both.scores["configuration"] == CONFIGURATION])
    for evaluation in ("clean", "test"):
        rows = [row_of(Tables(r), "all", ARMS[1], evaluation=evaluation) for r in (both, one)]
        for column in ("mean", "difference", "low"):
            assert rows[0][column] == rows[1][column]


def test_labels_and_domains_are_looked_at_one_by_one() -> None:
    results = results_of(domains=("A", "B"), cases=30)
    tables = Tables(results)
    for scope, column, value, name in (
        ("label", "label", "2", "posterior"),
        ("domain", "domain", "B", "B"),
    ):
        part = results.scores[results.scores[column] == value]
        row = row_of(tables, scope, ARMS[1], name=name)
        assert row["difference"] == expected(results, part, ARMS[1]).difference
        assert math.isnan(row["p_holm"])  # described, not tested


def test_unseen_domains_are_told_apart_from_seen_ones() -> None:
    results = results_of(domains=("A", "B", "C"), unseen="C", labels={"1": "vessel"}, cases=30)
    tables = Tables(results)
    part = results.scores[results.scores["domain"] == "C"]
    row = row_of(tables, "seen", ARMS[1], name="unseen")
    found = expected(results, part, ARMS[1])
    assert (row["subjects"], row["difference"]) == (10, found.difference)
    assert row_of(tables, "seen", ARMS[1], name="seen")["subjects"] == 20
    (table,) = tables.grouped(*WHERE, "seen")
    assert {group for group, _ in rows_of(table)} == {"unseen", "seen"}
    (table,) = tables.grouped(*WHERE, "domain")
    names = {group for group, _ in rows_of(table)}
    assert names == {"A", "B", "C (unseen)", "the worst of each arm"}


def test_a_single_label_or_domain_is_not_repeated() -> None:
    tables = Tables(results_of(labels={"1": "vessel"}, domains=("A",)))
    assert [*tables.grouped(*WHERE, "label"), *tables.grouped(*WHERE, "domain")] == []


def test_worst_domain_of_each_arm_is_named() -> None:
    tables = Tables(results_of(domains=("A", "B"), labels={"1": "vessel"}, cases=30))
    (table,) = tables.grouped(*WHERE, "domain")
    rows = rows_of(table)
    for arm in ARMS:
        for metric, head, pick in (("dice", "Dice ↑", min), ("hd95", "HD95 (mm) ↓", max)):
            means = {
                name: row_of(tables, "domain", arm, name=name, metric=metric)["mean"]
                for name in "AB"
            }
            worst = pick(means, key=lambda name: means[name])
            shown = number(means[worst], 3 if metric == "dice" else 2)
            assert rows["the worst of each arm", arm][head] == Cell(shown, (worst,))


def test_degradation_changes_each_arm_against_itself() -> None:
    results = results_of(degradations=("blur",))
    tables = Tables(results)
    row = row_of(tables, "change", ARMS[2], evaluation="blur")
    mine = results.scores[results.scores["arm"] == ARMS[2]]
    means = mine.groupby("evaluation")["dice"].mean()
    assert row["difference"] == pytest.approx(means["blur"] - means["clean"])
    assert row["low"] < row["difference"] < row["high"] < 0
    (table,) = tables.degradations(CONFIGURATION)
    rows = rows_of(table)
    assert {group for group, _ in rows} == {"clean", "blur"}
    change, limits = difference(row).split(" ", 1)
    assert rows["blur", ARMS[2]]["Dice vs. clean"] == Cell(change, (limits,))
    assert rows["clean", ARMS[2]]["Dice vs. clean"].text == ""


def test_ranks_are_those_of_the_statistics() -> None:
    results = results_of()
    found = ranks(samples(results.scores, "hd95"), higher_is_better=False)
    tables = Tables(results)
    ours = tables.ranking[tables.ranking["metric"] == "hd95"].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours[found.columns], found, check_dtype=False)
    (table,) = tables.ranks(*WHERE)
    best = found.iloc[0]
    cell = rows_of(table)["", best["arm"]]["HD95"]
    limits = f"[{best['rank_low']:.0f}, {best['rank_high']:.0f}]"
    assert cell == Cell(f"1 {limits}", (f"{100 * best['first']:.0f} % first",))


def test_shorter_distances_are_better() -> None:
    results = results_of(arms=ARMS[:2], seeds=3, cases=60)
    better = results.scores["arm"] == ARMS[1]
    results.scores.loc[better, "hd95"] /= 2
    results.scores.loc[better, "dice"] -= 0.3
    verdicts = {
        key: row_of(Tables(results), "all", ARMS[1], metric=key) for key in ("hd95", "dice")
    }
    assert verdicts["hd95"]["verdict"] == "better"
    assert verdicts["dice"]["verdict"] == "worse"


def test_arm_without_values_is_shown_as_missing() -> None:
    results = results_of()
    columns = [metric.key for metric in METRICS]
    results.scores.loc[results.scores["arm"] == ARMS[2], columns] = np.nan
    table = Tables(results).answer(*WHERE)
    row = table.frame.set_index("arm").loc[ARMS[2]]
    assert row[["cases", "trainings"]].tolist() == ["0", "0"]
    assert row.drop(["cases", "trainings"]).isna().all()
    assert "[" in rows_of(table)["", ARMS[1]]["Dice ↑"].details[0]


def test_difference_over_fewer_cases_says_so() -> None:
    results = without(without(results_of(), arm=ARMS[1], fold="1", seed=0), arm=ARMS[1], fold="1")
    tables = Tables(results)
    cell = rows_of(tables.answer(*WHERE))["", ARMS[1]]["Dice ↑"]
    assert cell.details[-1] == "over 12 in common"
    assert row_of(tables, "all", ARMS[1])["pairs"] == 12


def test_seed_that_lacks_cases_is_not_set_beside_the_others() -> None:
    results = without(results_of(cases_per_subject=2), arm=ARMS[1], fold="1", seed=1)
    rows = rows_of(Tables(results).seeds(*WHERE))
    assert [cell.text for cell in rows["", ARMS[1]].values()][2:] == ["–", "–"]  # noqa: RUF001
    full = [float(cell.text) for cell in [*rows["", ARMS[0]].values()][1:]]
    assert full[2] == pytest.approx(abs(full[0] - full[1]), abs=0.0011)
    mine = results.scores[(results.scores["seed"] == 1) & (results.scores["arm"] == ARMS[0])]
    assert full[1] == pytest.approx(mine["dice"].mean(), abs=6e-4)


def test_absent_labels_are_counted() -> None:
    results = results_of()
    assert [*Tables(results).empties(*WHERE)] == []
    mine = results.scores.index[results.scores["arm"] == ARMS[1]]
    results.scores.loc[mine[:6], "empty"] = ["prediction"] * 3 + ["truth"] * 2 + ["both"]
    (table,) = Tables(results).empties(*WHERE)
    cells = [cell.text for cell in rows_of(table)["", ARMS[1]].values()]
    assert cells == [ARMS[1], "3", "2", "1", str(len(mine) - 6)]


def test_cost_is_of_finished_trainings_and_relative_to_the_baseline() -> None:
    results = results_of()
    cells = results.cells
    cells.loc[cells["arm"] == ARMS[0], ["seconds_per_epoch", "seconds"]] = [10.0, 100.0]
    cells.loc[cells["arm"] == ARMS[1], ["seconds_per_epoch", "seconds"]] = [15.0, 7200.0]
    failed = (cells["arm"] == ARMS[1]) & (cells["fold"] == "0")
    cells.loc[failed, ["status", "seconds_per_epoch", "seconds"]] = ["failed", 999.0, 999.0]
    (table,) = Tables(results).costs(CONFIGURATION)
    shown = [*rows_of(table)["", ARMS[1]].values()][1:]
    assert [cell.text for cell in shown[:-1]] == ["2 of 4", "30", "15.0", "2:00 h", "4:00 h"]
    assert shown[2].details[-1] == "1.50 ×"  # noqa: RUF001
    assert shown[-1].details == ("GPU", "1.25 ×")  # noqa: RUF001


def test_memory_of_different_kinds_is_not_compared() -> None:
    results = results_of()
    results.cells.loc[results.cells["arm"] == ARMS[1], "memory_kind"] = "RAM"
    (table,) = Tables(results).costs(CONFIGURATION)
    assert [*rows_of(table)["", ARMS[1]].values()][-1].details == ("RAM",)


def test_prediction_of_a_test_set_is_no_training() -> None:
    results = results_of()
    prediction = results.cells.iloc[:1].assign(fold="all", seconds=1e6, epochs=None)
    cells = pd.concat([results.cells, prediction], ignore_index=True)
    (table,) = Tables(replace(results, cells=cells)).costs(CONFIGURATION)
    assert rows_of(table)["", ARMS[0]]["done"].text == "4 of 4"


def test_unfinished_runs_that_fail_alike_share_a_row() -> None:
    (table,) = Tables(without(results_of(), arm=ARMS[1])).unfinished()
    (cells,) = rows_of(table).values()
    assert [cell.text for cell in cells.values()][:5] == [
        *(ARMS[1], CONFIGURATION, "failed", "CUDA out of memory"),
        "fold 0, seed 0; fold 0, seed 1; fold 1, seed 0; fold 1, seed 1",
    ]
    assert cells["log"].text.startswith("cells/1_0_0/log.txt; ")
    assert [*Tables(results_of()).unfinished()] == []


def test_every_case_is_there_with_its_subject_and_domain_the_worst_first() -> None:
    results = results_of(cases_per_subject=2, domains=("A",))
    table = Tables(results).cases(*WHERE)
    assert list(table.frame) == ["case", "subject", "domain", *ARMS]
    for row in table.frame.to_dict("records")[:3]:
        mine = results.scores[results.scores["case"] == row["case"]]
        assert row[ARMS[0]] == number(mine[mine["arm"] == ARMS[0]]["dice"].mean(), 3)
    means = table.frame[list(ARMS)].astype(float).mean(axis=1)
    assert means.iloc[0] < means.iloc[-1]


def test_labels_with_the_same_name_are_told_apart() -> None:
    names = results_of(labels={"1": "lesion", "(1, 2)": "lesion", "3": ""}).label_names()
    assert list(names.values()) == ["lesion [1]", "lesion [(1, 2)]", " [3]"]


@pytest.mark.parametrize(
    ("value", "signed", "shown"),
    [
        (0.12345, False, "0.123"),
        (0.12345, True, "+0.123"),
        (-0.12345, True, "\N{MINUS SIGN}0.123"),
        (-0.0001, True, "0.000"),
        (math.nan, True, "\N{EN DASH}"),
    ],
)
def test_numbers_have_true_signs_and_none_at_zero(value: float, signed: bool, shown: str) -> None:
    assert number(value, 3, signed) == shown


def test_arm_with_the_weights_of_another_costs_no_training() -> None:
    results = results_of()
    results.arms[ARMS[1]]["weights of"] = ARMS[2]
    (table,) = Tables(results).costs(CONFIGURATION)
    assert [arm for _, arm in rows_of(table)] == [ARMS[0], ARMS[2]]
    trainer = rows_of(arms_table(results.arms))["", ARMS[1]]["trainer"]
    assert trainer.details == (f"weights of {ARMS[2]}",)
