"""Running nnU-Net's commands: their output is read, kept, and shown when they fail."""

import multiprocessing
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet import commands


@pytest.fixture
def python_as_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make "commands of nnU-Net" Python snippets: ``-c CODE``."""
    monkeypatch.setattr(commands, "LAUNCHER", (sys.executable,))


@pytest.mark.usefixtures("python_as_nnunet")
def test_output_is_read_line_by_line_and_logged(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "logs" / "step.log"
    code = "import os; print('a\\rb\\n\\nc', os.environ['WORD'])"
    commands.run_command(["-c", code], {"WORD": "d"}, log, lines.append)
    assert lines == ["a", "b", "c d"]
    assert "c d" in log.read_text()


@pytest.mark.usefixtures("python_as_nnunet")
def test_failure_shows_the_end_of_the_output_and_the_log(tmp_path: Path) -> None:
    code = "print('x' * 5); raise SystemExit('no space left')"
    with pytest.raises(UserError, match=r"exit code 1(.|\n)*no space left(.|\n)*step\.log"):
        commands.run_command(["-c", code], {}, tmp_path / "step.log", print)


@pytest.mark.usefixtures("python_as_nnunet")
def test_failure_that_explains_itself_is_shown_without_traceback(tmp_path: Path) -> None:
    code = "from nnunet_ext._common import errors; raise errors.UserError('two domains are needed')"
    with pytest.raises(UserError) as error:
        commands.run_command(["-c", code], {}, tmp_path / "step.log", print)
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
        commands.run_command(["-c", code], {}, tmp_path / "step.log", interrupt)
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


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_forked_worker_that_waits_for_a_lock_can_be_terminated() -> None:
    fork = multiprocessing.get_context("fork")
    lock, begun = fork.Lock(), fork.Event()
    with commands.termination_interrupts(), commands.termination_interrupts(), lock:
        worker = fork.Process(target=_wait, args=(begun, lock))
        worker.start()
        assert begun.wait(10)
        worker.terminate()
        worker.join(10)
        # by the signal itself: a handler of Python's might have waited for the lock, too
        assert worker.exitcode == -signal.SIGTERM


def _wait(begun: multiprocessing.synchronize.Event, lock: AbstractContextManager[bool]) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    begun.set()
    with lock:
        pass
