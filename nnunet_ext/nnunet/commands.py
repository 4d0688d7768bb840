"""Runs nnU-Net's own commands as child processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_ext._common.errors import UserError

LAUNCHER = (sys.executable, "-m", "nnunet_ext.cli.launch")
"""What `nnunet-ext run` does: also serves installs without the start-up file."""

TAIL_LINES = 12
GRACE_SECONDS = 10

LineReader = Callable[[str], None]


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    read_line: LineReader = lambda line: None,
    launcher: Sequence[str] | None = None,
) -> None:
    """Run a command of nnU-Net's; its output goes to a log and, line by line, to a reader.

    Args:
        command: Name of the command, for example ``nnUNetv2_train``, and its arguments.
        environment: Variables to set for it beside those of this process.
        log: File that its output is appended to.
        read_line: Called with every line of the output.
        launcher: What runs the command; default is :data:`LAUNCHER`.

    Raises:
        UserError: If the command fails; shows the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    started = _started([*(launcher or LAUNCHER), *command], environment)
    with log.open("a", encoding="utf-8") as file, started as process:
        file.write(f"$ {shlex.join(command)}\n")
        assert process.stdout is not None
        for line in process.stdout:  # a carriage return of a progress bar ends a line too
            file.write(line)
            file.flush()
            if line.strip():
                tail.append(line.rstrip())
                read_line(line.rstrip())
        code = process.wait()
    if code:
        raise UserError(_failure(command[0], code, list(tail), log))


def environment(device: str) -> dict[str, str]:
    """What nnU-Net's commands should find in their environment; what the user has set stays.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
    """
    cores = os.cpu_count() or 1
    # a GPU waits for augmentation; on a CPU the network needs the cores more
    augmenting = 1 if device == "cpu" else max(1, min(12, cores - 1))
    wished = {
        "nnUNet_def_n_proc": str(workers()),
        "nnUNet_n_proc_DA": str(augmenting),
        # nnU-Net sets the threads of training itself; its workers need one each
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # threads that wait by spinning take the cores from whatever else runs there;
        # with another program on both cores, training is twice as fast like this
        "OMP_WAIT_POLICY": "PASSIVE",
        "MPLBACKEND": "Agg",
    }
    return {name: os.environ.get(name, value) for name, value in wished.items()}


def workers() -> int:
    """Processes for conversion, preprocessing and export."""
    return max(2, min(8, (os.cpu_count() or 1) // 2))


def epoch_begun(line: str) -> int | None:
    """The number of the epoch, from 0, that a line of a trainer's output says begins."""
    match = re.search(r"(?:^|: )Epoch (\d+)\s*$", line)
    return int(match[1]) if match else None


def _failure(command: str, code: int, tail: Sequence[str], log: Path) -> str:
    ours = re.match(r"nnunet_ext\._common\.errors\.\w+: (.+)", tail[-1] if tail else "")
    if ours:  # explains itself; the traceback before it helps nobody
        return f"{command} failed: {ours[1]}\nIts output is in {log}"
    shown = "\n  ".join(tail)
    return (
        f"{command} failed with exit code {code}. The end of its output:\n  {shown}\n"
        f"All of it is in {log}"
    )


@contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """A running command that does not outlive this block, whatever ends it."""
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # a group of its own, so that its worker processes can be ended with it
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            _end(process)
            raise


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process and its workers, by force if they do not listen."""
    _signal_group(process, "SIGTERM")
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, "SIGKILL")  # also workers that the main process left behind


def _signal_group(process: "subprocess.Popen[str]", name: str) -> None:
    if sys.platform == "win32":
        process.terminate()
        return
    # all gone already (macOS says the latter)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, getattr(signal, name))


_handlers_before: list[dict[str, Any]] = []


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Within it, the signals that end a process raise KeyboardInterrupt, as Ctrl-C does.

    Without this, a command that runs would survive the end of this process. Forked workers have
    the handlers from before: their pool ends them by such a signal, and one that waits for a lock
    just then would never come to run a handler of Python's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    _handlers_before.append(
        {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    )
    try:
        yield
    finally:
        _restore_handlers()


def _restore_handlers() -> None:
    for name, handler in _handlers_before.pop().items():
        signal.signal(getattr(signal, name), handler)


def _restore_all_handlers() -> None:
    while _handlers_before:
        _restore_handlers()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_restore_all_handlers)
