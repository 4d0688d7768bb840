"""The matrix of what works: its cells, one of them in earnest, and its page."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext import registry
from nnunet_ext._common.errors import UserError
from studies import support


def test_every_trainer_has_every_column_and_every_cell_a_file_of_its_own(tmp_path: Path) -> None:
    cells = list(support.cells(tmp_path))
    assert len({cell.record for cell in cells}) == len(cells)
    names = {(cell.trainer, cell.column) for cell in cells if cell.row in registry.TRAINERS}
    columns = [column for column in support.COLUMNS if column != "own plans"]
    assert names >= {(name, column) for name in registry.TRAINERS for column in columns}
    assert {(n, "own plans") in names for n in ("CateNormTrainer", "MindTheGapTrainer")} == {True}


@pytest.mark.parametrize(
    ("only", "found"),
    [
        (["CateNormTrainer/2d"], ["CateNormTrainer/2d"]),
        (["*/own plans"], [f"{row}/own plans" for row in support.ROWS if "Norm" in row][:1]),
    ],
)
def test_cells_are_chosen_by_name(tmp_path: Path, only: list[str], found: list[str]) -> None:
    chosen = [cell.name for cell in support.cells(tmp_path, only)]
    assert chosen[: len(found)] == found


def test_a_cell_works_is_refused_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception | None) -> Any:
        def run(_cell: support.Cell) -> None:
            if error:
                raise error

        return run

    states = {}
    for said in (
        None,
        UserError("nnUNetv2_train failed: No cascade.\nIts output is in x.log"),
        UserError("nnUNetv2_train failed with exit code 1. The end of its output:\n  x"),
        AssertionError("other labels"),
    ):
        monkeypatch.setitem(support.COLUMNS, "2d", (raising(said), {}))
        record = support.run_cell(support.Cell("CateNormTrainer", "2d", tmp_path))
        states[record["state"]] = record["why"]
    assert states[support.WORKS] == ""
    assert states[support.REFUSED] == "No cascade."
    assert states[support.FAILS] == "AssertionError: other labels"


def test_the_page_shows_all_cells_and_says_why(tmp_path: Path) -> None:
    cell = {"row": "CateNormTrainer", "column": "2d", "seconds": 1, "torch": "2"}
    records: list[dict[str, Any]] = [
        {**cell, "state": "works", "why": ""},
        {**cell, "row": "MindTheGapTrainer", "state": "refused", "why": "No cascade."},
        {**cell, "row": "Mind the Gap, no Step A", "state": "refused", "why": "No cascade."},
    ]
    page = support.page(records)
    assert "3 of" in page
    assert "1 work, 2\nare refused" in page
    assert "| 2d | works |  |  | refused (1) |" in page
    assert page.rstrip().endswith("1. No cascade.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("ExtensionTrainer/PNG in colours", "works"),
        ("MindTheGapTrainer/3d_cascade_fullres", "refused"),
        ("RAMDSIRTrainer/--c after SIGKILL in every phase", "works"),
    ],
)
def test_cells_in_earnest(tmp_path: Path, name: str, state: str) -> None:
    (cell,) = support.cells(tmp_path, [name])
    record = support.run_cell(cell)
    assert record["state"] == state, record["why"] + cell.log.read_text()[-3000:]
    assert json.loads(cell.record.read_text()) == record
