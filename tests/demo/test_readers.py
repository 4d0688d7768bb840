"""What the demo shows of nnU-Net's commands while they run."""

import time

import pytest
from rich.console import Console

from nnunet_ext._common.console import duration
from nnunet_ext.demo import readers
from nnunet_ext.demo.display import Display, StepDisplay


class Recorder(StepDisplay):
    """Remembers what a step shows."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True), None)
        self.shown: list[tuple[str, float | None, float | None]] = []

    def update(
        self,
        detail: str,
        done: float | None = None,
        total: float | None = None,
        *,
        milestone: bool = False,
    ) -> None:
        self.shown.append((detail, done, total))


def test_epochs_and_pseudo_dice_of_a_training_are_read() -> None:
    display = Recorder()
    read = readers.training_reader(display, epochs=5)
    for line in (
        "2026-01-02 03:04:05.678901: Epoch 1",
        "2026-01-02 03:04:05.678901: Pseudo dice [np.float32(0.8765), nan, 0.5]",
        "2026-01-02 03:04:05.678901: predicting siteA_003",
        "2026-01-02 03:04:05.678901: Epoch time: 3.4 s",
    ):
        read(line)
    assert display.shown == [
        ("epoch 2 of 5", 1, 5),
        ("epoch 2 of 5, pseudo Dice 0.88 nan 0.50", 2, 5),
        ("validating siteA_003", None, None),
    ]


def test_progress_bars_of_preprocessing_are_read() -> None:
    display = Recorder()
    read = readers.bar_reader(display)
    for line in ("Preprocessing...", " 50%|#####     | 3/6 [00:01<00:01,  2.00it/s]"):
        read(line)
    assert display.shown == [("preprocessing", None, None), ("preprocessing", 3, 6)]


def test_steps_are_plain_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(Console(width=40), steps=2)
    display.skip("Generate [a task]")
    with display.step("Train") as step:
        step.update("epoch 1", 1, 2)
        step.update("epoch 2 of 2, pseudo Dice 0.5 and more text than fits", milestone=True)
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] Generate [a task]: done already",
        "[2/2] Train",
        "      epoch 2 of 2, pseudo Dice 0.5 and more text than fits",
        "      done in 0 s",
    ]


def test_steps_show_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(Console(width=100, force_terminal=True), steps=1)
    with display.step("Train") as step:
        step.update("epoch 1 [x]", 1, 2)
        time.sleep(0.2)
    assert "epoch 1 [x]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "shown"), [(7.4, "7 s"), (59.6, "1:00 min"), (245, "4:05 min"), (7_800, "2:10 h")]
)
def test_durations_are_readable(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
