"""The cells of a benchmark, their order, and what is known of them."""

from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.layout import Cell, Layout, State


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    content: dict[str, Any] = {
        "dataset": "Dataset777_Tiny",
        "plans": "TinyPlans",
        "configurations": ["tiny_base"],
        "folds": [0, 1],
        "seeds": 2,
        "arms": {
            "CateNorm, pass 2": {"trainer": "CateNormTrainer"},
            "first": {"trainer": "CateNormTrainer", "weights_of": "CateNorm, pass 2"},
        },
        "degradations": {"blur": {"blur": 1.0}},
    }
    spec.claim(tmp_path, spec.from_content(content, "test"))
    return Layout(tmp_path)


def test_every_arm_meets_every_fold_and_seed_once(layout: Layout) -> None:
    cells = list(layout.cells(test=True))
    assert len(set(cells)) == len(cells) == 2 * 2 * (2 + 1)
    assert len({cell.name for cell in cells}) == len(cells)
    assert not [cell for cell in layout.cells(test=False) if cell.fold is None]


def test_all_arms_come_before_the_next_fold_and_all_folds_before_the_next_seed(
    layout: Layout,
) -> None:
    order = [(cell.seed, cell.fold, cell.arm) for cell in layout.cells(test=False)]
    first, second = layout.benchmark.arms
    assert order[:5] == [
        (0, 0, first),
        (0, 0, second),
        (0, 1, first),
        (0, 1, second),
        (1, 0, first),
    ]


def test_cells_wait_for_what_they_need(layout: Layout) -> None:
    trained, borrowing = layout.benchmark.arms
    assert layout.needed_by(Cell(trained, "tiny_base", 1, 0)) == []
    assert layout.needed_by(Cell(borrowing, "tiny_base", 1, 0)) == [
        Cell(trained, "tiny_base", 1, 0)
    ]
    assert layout.needed_by(Cell(borrowing, "tiny_base", 1, None)) == [
        Cell(borrowing, "tiny_base", 1, fold) for fold in (0, 1)
    ]


def test_names_are_those_that_nnunet_can_take_apart(layout: Layout) -> None:
    cell = Cell("CateNorm, pass 2", "tiny_base", 1, 0)
    assert cell.trained_configuration == "tiny_base_CateNorm-pass-2_seed1"
    model = layout.model(cell, "CateNormTrainer")
    assert model.name.split("__") == ["CateNormTrainer", "TinyPlans", cell.trained_configuration]
    assert list(layout.evaluations(cell, "CateNormTrainer")) == ["clean", "blur"]


def test_states_survive_and_damaged_ones_count_as_none(layout: Layout) -> None:
    cell = next(layout.cells(test=False))
    assert layout.state(cell).status == "missing"
    layout.save(cell, State("done", seconds=3.0, commands=["nnUNetv2_train"]))
    assert layout.state(cell) == State("done", seconds=3.0, commands=["nnUNetv2_train"])
    (layout.folder(cell) / "state.json").write_text('{"stat')
    assert layout.state(cell) == State()


def test_a_cell_is_worked_on_as_long_as_its_lock_is_held(layout: Layout) -> None:
    cell = next(layout.cells(test=False))
    assert not layout.is_worked_on(cell)
    with layout.cell_lock(cell):
        assert layout.is_worked_on(cell)
    assert not layout.is_worked_on(cell)
