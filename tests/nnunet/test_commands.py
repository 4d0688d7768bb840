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
def test_output_is_logged_behind_the_command(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "step.log"
    code = "import os; print('a', os.environ['WORD'])"
    for word in ("b", "c"):
        commands.run_command(["-c", code], log, {"WORD": word})
    lines = log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("$ -c")] == ["a b", "a c"]
    assert lines[0].startswith("$ -c ")


def test_epochs_are_counted_from_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert commands.epochs_begun(log) == 0
    log.write_text("2026-01-02 03:04:05.678901: Epoch 7 \r\nEpoch time: 3 s\n" + "x" * 999)
    assert commands.epochs_begun(log) == 8
    log.write_text("Epoch 7\n" + "x" * commands.TAIL_BYTES)
    assert commands.epochs_begun(log) == 0


@pytest.mark.usefixtures("python_as_nnunet")
def test_failure_shows_the_end_of_the_output_and_the_log(tmp_path: Path) -> None:
    code = "print('x' * 5); raise SystemExit('no space left')"
    with pytest.raises(UserError, match=r"exit code 1(.|\n)*no space left(.|\n)*step\.log"):
        commands.run_command(["-c", code], tmp_path / "step.log")


@pytest.mark.usefixtures("python_as_nnunet")
def test_failure_that_explains_itself_is_shown_without_traceback(tmp_path: Path) -> None:
    code = "from nnunet_ext._common import errors; raise errors.UserError('two domains are needed')"
    with pytest.raises(UserError) as error:
        commands.run_command(["-c", code], tmp_path / "step.log")
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
    log = tmp_path / "step.log"

    def interrupt_when_it_works() -> None:
        while not commands.tail(log).rstrip().rpartition("\n")[2].isdigit():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_it_works, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        commands.run_command(["-c", code], log)
    assert _ends(int(log.read_text().split()[-1]))


ORPHAN = """
import os, sys, subprocess, time
parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"])
if {dead}:
    parent.wait()
variables = {{"NNUNET_EXT_PARENT": str(parent.pid if {dead} else os.getpid())}}
command = [sys.executable, "-m", "nnunet_ext.nnunet.launch", "nnUNetv2_sleep"]
child = subprocess.Popen(command, env=os.environ | variables, start_new_session=True)
print(child.pid, flush=True)
time.sleep({seconds})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="parents are POSIX")
@pytest.mark.parametrize(("dead", "seconds"), [(False, 0.5), (True, 60)])
def test_a_command_ends_with_the_process_that_has_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool, seconds: float
) -> None:
    """Also where that is dead before the command looks: then it is nobody's, or pid 1's."""
    (tmp_path / "sleeping.py").write_text("import time\ndef main(): time.sleep(60)\n")
    metadata = tmp_path / "nnunetv2-2.8.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.8.1\n")
    entry = "[console_scripts]\nnnUNetv2_sleep = sleeping:main\n"
    (metadata / "entry_points.txt").write_text(entry)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    code = ORPHAN.format(dead=dead, seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert _ends(int(first.stdout.readline()))
        first.kill()


def _ends(process: int) -> bool:
    """Whether a process ends soon; one that nobody waits for counts as ended."""
    for _ in range(300):
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True
        )
        if listed.stdout.strip()[:1] in ("", "Z"):
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
