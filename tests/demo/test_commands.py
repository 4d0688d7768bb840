"""Running nnU-Net's commands: their output is read, kept, and shown when they fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from nnunet_ext.demo import commands
from nnunet_ext.demo.display import Display, StepDisplay, duration
from nnunet_ext.errors import UserError


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


@pytest.fixture
def python_as_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make "commands of nnU-Net" Python snippets: ``-c CODE``."""
    monkeypatch.setattr(commands, "LAUNCHER", (sys.executable,))


@pytest.mark.usefixtures("python_as_nnunet")
def test_output_is_read_line_by_line_and_logged(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "logs" / "step.log"
    code = "import os; print('a\\rb\\n\\nc', os.environ['WORD'])"
    commands.run_command(["-c", code], {"WORD": "d"}, log, Recorder(), lines.append)
    assert lines == ["a", "b", "c d"]
    assert "c d" in log.read_text()


@pytest.mark.usefixtures("python_as_nnunet")
def test_failure_shows_the_end_of_the_output_and_the_log(tmp_path: Path) -> None:
    code = "print('x' * 5); raise SystemExit('no space left')"
    with pytest.raises(UserError, match=r"exit code 1(.|\n)*no space left(.|\n)*step\.log"):
        commands.run_command(["-c", code], {}, tmp_path / "step.log", Recorder(), print)


@pytest.mark.usefixtures("python_as_nnunet")
def test_failure_that_explains_itself_is_shown_without_traceback(tmp_path: Path) -> None:
    code = "from nnunet_ext.errors import UserError; raise UserError('two domains are needed')"
    with pytest.raises(UserError) as error:
        commands.run_command(["-c", code], {}, tmp_path / "step.log", Recorder(), print)
    assert "failed: two domains are needed" in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
@pytest.mark.usefixtures("python_as_nnunet")
def test_an_interruption_ends_the_command_and_its_workers(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(worker.pid)\n"
        "time.sleep(60)\n"
    )
    workers: list[int] = []

    def interrupt(line: str) -> None:
        workers.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.run_command(["-c", code], {}, tmp_path / "step.log", Recorder(), interrupt)
    assert _ends(workers[0])


def _ends(process: int) -> bool:
    """Whether a process ends soon; one that nobody waits for counts as ended."""
    for _ in range(50):
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True
        )
        if listed.stdout.strip() in ("", "Z"):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_termination_is_an_interruption() -> None:
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(KeyboardInterrupt), commands.termination_interrupts():
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before


def test_epochs_and_pseudo_dice_of_a_training_are_read() -> None:
    display = Recorder()
    read = commands.training_reader(display, epochs=5)
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
    read = commands.bar_reader(display)
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
    ("seconds", "shown"), [(7.4, "7 s"), (59.6, "1:00 min"), (245, "4:05 min")]
)
def test_durations_are_readable(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
