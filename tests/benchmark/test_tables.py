"""The numbers of a report and the tables that show them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_ext.benchmark.analysis import DICE, METRICS, Analysis, analyse
from nnunet_ext.benchmark.page import Cell, Table
from nnunet_ext.benchmark.results import Results
from nnunet_ext.benchmark.tables import Tables, duration, number
from nnunet_ext.evaluation.statistics import compare, rank, unit_values
from tests.benchmark.synthetic_results import ARMS, make_results, without

CONFIGURATION = "3d_fullres"


def results_of(**options: Any) -> Results:
    return make_results(Path("nowhere"), images=False, **options)


def tables_of(results: Results, folder: Path = Path("run/report")) -> Tables:
    colours = dict.fromkeys(results.arms, "#000000")
    return Tables(results, analyse(results), colours, Path("run"), folder)


def rows_of(table: Table | None) -> dict[tuple[str, str], list[Cell]]:
    assert table is not None
    return {(row.group, row.cells[0].text): list(row.cells[1:]) for row in table.rows}


def row_of(analysis: Analysis, scope: str, arm: str, **where: str) -> dict[str, Any]:
    where = {"configuration": CONFIGURATION, "evaluation": "clean", "metric": "dice"} | where
    frame = analysis.comparison
    for key, value in (where | {"scope": scope, "arm": arm}).items():
        frame = frame[frame[key] == value]
    (row,) = frame.to_dict("records")
    return row


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_differences_are_those_of_the_statistics(metric: Any) -> None:
    results = results_of(cases_per_subject=2)
    values = unit_values(results.scores, metric.key)
    expected = compare(values, ARMS[0]).set_index("arm").loc[ARMS[1]]
    row = row_of(analyse(results), "all", ARMS[1], metric=metric.key)
    for column in ("difference", "low", "high", "p", "p_holm"):
        assert row[column] == expected[column]
    assert row["units"] == row["pairs"] == 12
    assert row["cases"] == 24
    shown = rows_of(tables_of(results).answer(CONFIGURATION, "clean"))[("", ARMS[1])]
    cell = shown[1 + METRICS.index(metric)]
    decimals = metric.decimals
    assert cell.text == number(expected["arm_mean"], decimals)
    difference, low, high = (
        number(expected[key], decimals, signed=True) for key in ("difference", "low", "high")
    )
    assert cell.details[0] == f"{difference} [{low}, {high}]"


def test_configurations_are_never_pooled() -> None:
    both = results_of(configurations=("2d", CONFIGURATION), test_cases=15, labels={"1": "x"})
    one = replace(both, scores=both.scores[both.scores["configuration"] == CONFIGURATION])
    pooled, alone = analyse(both), analyse(one)
    for evaluation in ("clean", "test"):
        rows = [row_of(each, "all", ARMS[1], evaluation=evaluation) for each in (pooled, alone)]
        for column in ("mean", "difference", "low"):
            assert rows[0][column] == rows[1][column]


def test_labels_domains_and_seeds_are_looked_at_one_by_one() -> None:
    results = results_of(domains=("A", "B"), cases=30)
    analysis = analyse(results)
    for scope, column, value in (("label", "label", "2"), ("domain", "domain", "B")):
        part = results.scores[results.scores[column] == value]
        expected = compare(unit_values(part, "dice"), ARMS[0]).set_index("arm").loc[ARMS[1]]
        row = row_of(analysis, scope, ARMS[1], name=value)
        assert row["difference"] == expected["difference"]
        assert math.isnan(row["p"])  # described, not tested
    seed = results.scores[(results.scores["seed"] == 1) & (results.scores["arm"] == ARMS[1])]
    expected_mean = unit_values(seed, "dice")["value"].mean()
    assert row_of(analysis, "seed", ARMS[1], name="1")["mean"] == pytest.approx(expected_mean)


def test_unseen_domains_are_told_apart_from_seen_ones() -> None:
    results = results_of(domains=("A", "B", "C"), unseen="C", labels={"1": "vessel"}, cases=30)
    tables = tables_of(results)
    part = results.scores[results.scores["domain"] == "C"]
    expected = compare(unit_values(part, "dice"), ARMS[0]).set_index("arm").loc[ARMS[1]]
    row = row_of(tables.analysis, "seen", ARMS[1], name="unseen")
    assert (row["units"], row["difference"]) == (10, expected["difference"])
    assert row_of(tables.analysis, "seen", ARMS[1], name="seen")["units"] == 20
    assert {group for group, _ in rows_of(tables.seen(CONFIGURATION, "clean"))} == {
        "unseen",
        "seen",
    }
    names = {group for group, _ in rows_of(tables.domains(CONFIGURATION, "clean"))}
    assert names == {"A", "B", "C (unseen)", "the worst of each arm"}


def test_a_single_label_or_domain_is_not_repeated() -> None:
    tables = tables_of(results_of(labels={"1": "vessel"}, domains=("A",)))
    assert tables.labels(CONFIGURATION, "clean") is None
    assert tables.domains(CONFIGURATION, "clean") is None


def test_worst_domain_of_each_arm_is_named() -> None:
    tables = tables_of(results_of(domains=("A", "B"), labels={"1": "vessel"}, cases=30))
    rows = rows_of(tables.domains(CONFIGURATION, "clean"))
    for arm in ARMS:
        means = {name: row_of(tables.analysis, "domain", arm, name=name)["mean"] for name in "AB"}
        worst = min(means, key=lambda name: means[name])
        assert rows[("the worst of each arm", arm)][1] == Cell(
            number(means[worst], 3), details=(worst,)
        )


def test_degradation_changes_each_arm_against_itself() -> None:
    results = results_of(degradations=("blur",))
    row = row_of(analyse(results), "change", ARMS[2], evaluation="blur")
    mine = results.scores[results.scores["arm"] == ARMS[2]]
    means = mine.groupby("evaluation")["dice"].mean()
    assert row["difference"] == pytest.approx(means["blur"] - means["clean"])
    assert row["low"] < row["difference"] < row["high"] < 0
    shown = rows_of(tables_of(results).degradations(CONFIGURATION))[("blur", ARMS[2])]
    assert shown[-1].text == number(row["difference"], 3, signed=True)


def test_ranks_are_those_of_the_statistics() -> None:
    results = results_of()
    expected = rank(unit_values(results.scores, "hd95"), higher_is_better=False)
    ranking = analyse(results).ranking
    ours = ranking[ranking["metric"] == "hd95"].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours[expected.columns], expected, check_dtype=False)


def test_shorter_distances_are_better() -> None:
    by_key = {metric.key: metric for metric in METRICS}
    assert by_key["dice"].tone(0.1, 0.2) == by_key["hd95"].tone(-0.2, -0.1) == "better"
    assert by_key["dice"].tone(-0.2, -0.1) == by_key["assd"].tone(0.1, 0.2) == "worse"
    assert by_key["dice"].tone(-0.1, 0.1) == by_key["dice"].tone(math.nan, math.nan) == ""


def test_arm_without_values_is_shown_as_missing() -> None:
    results = results_of()
    columns = [metric.key for metric in METRICS]
    results.scores.loc[results.scores["arm"] == ARMS[2], columns] = np.nan
    rows = rows_of(tables_of(results).answer(CONFIGURATION, "clean"))
    assert [cell.text for cell in rows[("", ARMS[2])]] == ["0", *"––––"]  # noqa: RUF001
    assert "[" in rows[("", ARMS[1])][1].details[0]


def test_difference_over_fewer_cases_says_so() -> None:
    results = without(without(results_of(), arm=ARMS[1], fold="1", seed=0), arm=ARMS[1], fold="1")
    cell = rows_of(tables_of(results).answer(CONFIGURATION, "clean"))[("", ARMS[1])][1]
    assert cell.details[-1] == "over 12 in common"
    pairs = row_of(analyse(results), "all", ARMS[1])["pairs"]
    assert pairs == 12


def test_seed_that_lacks_cases_is_not_set_beside_the_others() -> None:
    results = without(results_of(cases_per_subject=2), arm=ARMS[1], fold="1", seed=1)
    rows = rows_of(tables_of(results).seeds(CONFIGURATION, "clean"))
    assert [cell.text for cell in rows[("", ARMS[1])][1:]] == ["–", "–"]  # noqa: RUF001
    full = [float(cell.text) for cell in rows[("", ARMS[0])]]
    assert full[2] == pytest.approx(abs(full[0] - full[1]), abs=0.0011)


def test_single_case_has_a_difference_but_no_interval() -> None:
    rows = rows_of(tables_of(results_of(cases=1, folds=1)).answer(CONFIGURATION, "clean"))
    assert rows[("", ARMS[1])][1].details[0].endswith("(no interval)")


def test_absent_labels_are_counted() -> None:
    results = results_of()
    assert tables_of(results).empties(CONFIGURATION, "clean") is None
    mine = results.scores.index[results.scores["arm"] == ARMS[1]]
    results.scores.loc[mine[:6], "empty"] = ["prediction"] * 3 + ["truth"] * 2 + ["both"]
    rows = rows_of(tables_of(results).empties(CONFIGURATION, "clean"))
    assert [cell.text for cell in rows[("", ARMS[1])]] == ["3", "2", "1", str(len(mine) - 6)]


def test_cost_is_of_finished_trainings_and_relative_to_the_baseline() -> None:
    results = results_of()
    cells = results.cells
    cells.loc[cells["arm"] == ARMS[0], ["seconds_per_epoch", "seconds"]] = [10.0, 100.0]
    cells.loc[cells["arm"] == ARMS[1], ["seconds_per_epoch", "seconds"]] = [15.0, 7200.0]
    failed = (cells["arm"] == ARMS[1]) & (cells["fold"] == "0")
    cells.loc[failed, ["status", "seconds_per_epoch", "seconds"]] = ["failed", 999.0, 999.0]
    shown = rows_of(tables_of(results).cost(CONFIGURATION))[("", ARMS[1])]
    assert [cell.text for cell in shown[:-1]] == [
        "2 of 4",
        "30",
        "15.0",
        "2 h 00 min",
        "4 h 00 min",
    ]
    assert shown[2].details[0] == "1.50 ×"  # noqa: RUF001
    assert shown[-1].details == ("GPU", "1.25 ×")  # noqa: RUF001


def test_memory_of_different_kinds_is_not_compared() -> None:
    results = results_of()
    results.cells.loc[results.cells["arm"] == ARMS[1], "memory_kind"] = "RAM"
    cell = rows_of(tables_of(results).cost(CONFIGURATION))[("", ARMS[1])][-1]
    assert cell.details == ("RAM",)


def test_prediction_of_a_test_set_is_no_training() -> None:
    results = results_of()
    prediction = results.cells.iloc[:1].assign(fold="all", seconds=1e6, epochs=None)
    cells = pd.concat([results.cells, prediction], ignore_index=True)
    tables = tables_of(replace(results, cells=cells))
    assert rows_of(tables.cost(CONFIGURATION))[("", ARMS[0])][0].text == "4 of 4"
    assert tables.runs().rows[-1].cells[2].text == "test set"


def test_unfinished_runs_that_fail_alike_share_a_row() -> None:
    results = without(results_of(), arm=ARMS[1])
    table = tables_of(results).unfinished()
    (cells,) = rows_of(table).values()
    assert [cell.text for cell in cells] == [
        CONFIGURATION,
        "failed",
        "fold 0, seed 0 and 1; fold 1, seed 0 and 1",
        "CUDA out of memory",
    ]
    assert len(cells[2].links) == 4
    assert tables_of(results_of()).unfinished() is None


def test_every_case_leads_to_the_files_that_it_comes_from() -> None:
    results = results_of(cases_per_subject=2, domains=("A",))
    table = tables_of(results).cases(CONFIGURATION, "clean")
    assert table.heads == ["case", "subject", "domain", *ARMS]
    scores = results.scores
    for row in table.rows[:3]:
        mine = scores[(scores["case"] == row.cells[0].text) & (scores["arm"] == ARMS[0])]
        shown = row.cells[3]
        assert shown.text == number(mine["dice"].mean(), 3)
        assert [float(text) for text, _ in shown.links] == pytest.approx(
            mine.groupby("seed")["dice"].mean().round(3).tolist()
        )
        assert shown.links[1][1] == "../" + mine["summary"].iloc[-1].replace(" ", "%20")
    values = [float(row.cells[3].text) + float(row.cells[4].text) for row in table.rows]
    assert values[0] < values[-1]  # worst first


def test_labels_with_the_same_name_are_told_apart() -> None:
    tables = tables_of(results_of(labels={"1": "lesion", "(1, 2)": "lesion", "3": ""}))
    names = [tables.label_name(key) for key in ("1", "(1, 2)", "3", "9")]
    assert names == ["lesion [1]", "lesion [(1, 2)]", " [3]", "9"]


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
    assert number(value, DICE.decimals, signed) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1.25, "1.2 s"), (42.4, "42 s"), (300, "5 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_are_as_precise_as_people_read_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_arm_with_the_weights_of_another_costs_no_training() -> None:
    results = results_of()
    results.arms[ARMS[1]]["weights of"] = ARMS[2]
    tables = tables_of(results)
    assert [row.cells[0].text for row in tables.cost(CONFIGURATION).rows] == [ARMS[0], ARMS[2]]
    assert rows_of(tables.arms())[("", ARMS[1])][0].details == (f"weights of {ARMS[2]}",)


def test_page_elsewhere_shows_the_same_without_links_that_would_lead_nowhere() -> None:
    results = results_of(cases=4)
    near, far = (
        tables_of(results, folder) for folder in (Path("run/report"), Path("elsewhere/published"))
    )
    linked, bare = (tables.cases(CONFIGURATION, "clean") for tables in (near, far))
    assert "link" in linked.caption
    assert "link" not in bare.caption
    for row, other in zip(linked.rows, bare.rows, strict=True):
        for cell, bare_cell in zip(row.cells, other.cells, strict=True):
            assert bare_cell.text == cell.text
            assert bare_cell.details == tuple(text for text, _ in cell.links)
            assert not bare_cell.links
    assert any(cell.links for row in near.runs().rows for cell in row.cells)
    assert not any(cell.links for row in far.runs().rows for cell in row.cells)
