"""What is shown while a benchmark runs."""

from pathlib import Path

import pytest
from rich.console import Console

from nnunet_ext.benchmark.layout import Cell, State
from nnunet_ext.benchmark.live import progress_shown, summary
from nnunet_ext.benchmark.schedule import Progress

DONE, RUNNING, FAILED, WAITING = (Cell("arm [x]", "2d", seed, 0) for seed in range(4))


def progress(**states: State) -> Progress:
    known = {
        DONE: State("done", seconds=65),
        RUNNING: State("running", stage="training", epoch=2, epochs=9),
        FAILED: State("failed", "no space left\non the device"),
        WAITING: State(),
    }
    return Progress(known, [RUNNING], 3700.0)


def test_the_summary_counts_and_estimates() -> None:
    expected = "1 of 4 done, 1 running, 1 waiting, 1 failed; about 1:01 h left"
    assert summary(progress()) == expected


def test_a_pipe_gets_one_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    before = Progress({cell: State() for cell in progress().states}, [DONE], None)
    with progress_shown(Console(width=200)) as show:
        for each in (before, progress(), progress()):
            show(each)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "arm [x], 2d, seed 0, fold 0: running",
        "arm [x], 2d, seed 0, fold 0: done in 1:05 min; 1 of 4 done, 1 running, 1 waiting, "
        "1 failed; about 1:01 h left",
        "arm [x], 2d, seed 1, fold 0: running",
        "arm [x], 2d, seed 2, fold 0: failed: no space left",
        "on the device",
    ]


def test_a_terminal_gets_a_table_with_a_row_per_cell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with progress_shown(Console(width=120, force_terminal=True, color_system=None)) as show:
        show(progress())
    shown = capsys.readouterr().out
    for part in ("arm [x]", "training", "2/9", "1:05 min", "no space left", "1 of 4 done"):
        assert part in shown
