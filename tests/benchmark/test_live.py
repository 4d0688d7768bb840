"""What is shown while a benchmark runs."""

import pytest
from rich.console import Console

from nnunet_ext.benchmark.layout import Cell, State
from nnunet_ext.benchmark.live import progress_shown, summary
from nnunet_ext.benchmark.schedule import Scheduler

DONE, RUNNING, FAILED, WAITING = (Cell("arm [x]", "2d", seed, 0) for seed in range(4))


class Shown(Scheduler):
    """A scheduler that has got so far."""

    def __init__(self, states: dict[Cell, State], running: list[Cell], left: float | None) -> None:
        self.states, self.jobs, self.left = states, dict.fromkeys(running), left

    def seconds_left(self) -> float | None:
        return self.left


def progress() -> Scheduler:
    known = {
        DONE: State("done", seconds=65, commands=["nnUNetv2_train 4"]),
        RUNNING: State("running", epoch=2, epochs=9),
        FAILED: State("failed", "no space left\non the device"),
        WAITING: State(),
    }
    return Shown(known, [RUNNING], 3700.0)


def test_the_summary_counts_and_estimates() -> None:
    expected = "1 of 4 done, 1 running, 1 waiting, 1 failed; about 1:01 h left"
    assert summary(progress()) == expected


def test_a_pipe_gets_one_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    before = Shown({cell: State() for cell in progress().states}, [DONE], None)
    with progress_shown(Console(width=200)) as show:
        for each in (before, progress(), progress()):
            show(each)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "arm [x], 2d, seed 0, fold 0: running",
        "  $ nnUNetv2_train 4",
        "arm [x], 2d, seed 0, fold 0: done in 1:05 min; 1 of 4 done, 1 running, 1 waiting, "
        "1 failed; about 1:01 h left",
        "arm [x], 2d, seed 1, fold 0: running",
        "arm [x], 2d, seed 2, fold 0: failed: no space left",
        "on the device",
    ]


def test_what_is_done_already_is_said_without_its_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_shown(Console(width=200)) as show:
        show(progress())
    assert capsys.readouterr().out.startswith("arm [x], 2d, seed 0, fold 0: done already\narm")


def test_a_terminal_shows_what_is_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_shown(Console(width=120, force_terminal=True, color_system=None)) as show:
        show(progress())
    shown = capsys.readouterr().out
    for part in ("arm [x], 2d, seed 1, fold 0: epoch 2 of 9", "no space left", "1 of 4 done"):
        assert part in shown
