"""Records of results: written, read again, and made a page again."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import results as records
from nnunet_ext.benchmark.report import write_report
from nnunet_ext.benchmark.results import Results
from tests.benchmark.synthetic_results import ARMS, make_results, without


def written(folder: Path) -> Results:
    """Results whose record lies in the folder."""
    results = make_results(folder, images=False, domains=("A", "NA"), cases=6)
    results = without(results, arm=ARMS[1], seed=1)
    results.scores.loc[:2, "dice"] = float("nan")
    records.write(results, folder)
    return results


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = written(tmp_path)
    (after,) = records.read(tmp_path)
    for field in fields(Results):
        old, new = (getattr(each, field.name) for each in (before, after))
        if isinstance(old, pd.DataFrame):
            assert list(new) == list(records.COLUMNS[field.name])
            pd.testing.assert_frame_equal(old[list(new)], new, check_dtype=False)
        else:
            # JSON has no integers as keys
            assert json.loads(json.dumps(old)) == new


@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_page_is_made_again_from_its_record(tmp_path: Path, several: bool) -> None:
    parts = [make_results(tmp_path, images=False, cases=6)]
    parts += [replace(parts[0], title="Dataset998_Other")] * several
    first = write_report(parts, tmp_path / "first")
    found = records.read(first.parent)
    assert sorted(each.title for each in found) == sorted(each.title for each in parts)
    ordered = sorted(found, key=lambda each: [part.title for part in parts].index(each.title))
    again = write_report(ordered, tmp_path / "again")
    assert again.read_text() == first.read_text()


def test_a_record_of_scores_alone_is_enough(tmp_path: Path) -> None:
    before = written(tmp_path)
    benchmark = {
        "dataset": "Dataset999_Synthetic",
        "arms": {arm: {} for arm in ARMS},
        "baseline": ARMS[1],
        "margin": 0.01,
    }
    (tmp_path / records.BENCHMARK).write_text(json.dumps(benchmark))
    for name in ("runs.csv", "curves.csv", records.ENVIRONMENT, records.RECORD):
        (tmp_path / name).unlink()
    (found,) = records.read(tmp_path)
    assert (found.baseline, found.margin) == (ARMS[1], 0.01)
    assert len(found.scores) == len(before.scores)
    assert len(found.trainings()) == 2 * 2 * 3 - 2  # as many as have scores
    html = write_report(found, tmp_path / "page").read_text()
    assert "of 10 trainings done" in html


@pytest.mark.parametrize("damage", ["no record", "no column", "no JSON"])
def test_what_is_no_record_is_refused(tmp_path: Path, damage: str) -> None:
    if damage != "no record":
        written(tmp_path)
    if damage == "no column":
        (tmp_path / "record.json").write_text('{"title": "x"}')
    if damage == "no JSON":
        (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserError, match=str(tmp_path)):
        records.read(tmp_path)
