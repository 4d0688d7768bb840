"""Runs nnU-Net's own commands as child processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO

from nnunet_ext._common.errors import UserError

LAUNCHER = (sys.executable, "-m", "nnunet_ext.nnunet.launch")
"""What `nnunet-ext run` does: also serves installs without the start-up file."""

PARENT, USAGE = "NNUNET_EXT_PARENT", "NNUNET_EXT_USAGE"
"""Variables: the process without which a command must not go on; where to write its usage."""

TAIL_LINES = 12
TAIL_BYTES = 10_000
GRACE_SECONDS = 10
EPOCH = re.compile(r"(?:^|: )Epoch (\d+)\s*$", re.MULTILINE)
"""What nnU-Net's trainers print when an epoch begins; the first is 0."""


def nnunet_commands() -> dict[str, metadata.EntryPoint]:
    """Return nnU-Net's console commands by name."""
    try:
        entry_points = metadata.distribution("nnunetv2").entry_points
    except metadata.PackageNotFoundError:
        raise UserError(
            "nnunetv2 is not installed for this Python; install it with: pip install nnunetv2"
        ) from None
    return {entry.name: entry for entry in entry_points if entry.group == "console_scripts"}


def run_command(
    command: Sequence[str],
    log: Path,
    variables: Mapping[str, str] | None = None,
    device: str = "cpu",
    usage: Path | None = None,
) -> None:
    """Run a command of nnU-Net's, which does not outlive this process.

    Args:
        command: Name of the command, for example ``nnUNetv2_train``, and its arguments.
        log: File that its output is appended to.
        variables: Of the environment, beside those of this process.
        device: ``cpu``, ``cuda`` or ``mps``.
        usage: Where its peak memory is written to.

    Raises:
        UserError: If the command fails; shows the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    changes = environment(device) | dict(variables or {}) | {PARENT: str(os.getpid())}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        start = file.tell()
        code = _call(command, changes | ({USAGE: str(usage)} if usage else {}), file)
    if code:
        raise UserError(_failure(command[0], code, tail(log, start).splitlines(), log))


def tail(log: Path, start: int = 0) -> str:
    """The last bytes of a log, none before ``start``; empty if there is no log."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").replace("\r", "\n")


def epochs_begun(log: Path) -> int:
    """How many epochs a training has begun, as the end of its log says."""
    found = EPOCH.findall(tail(log))
    return int(found[-1]) + 1 if found else 0


def environment(device: str) -> dict[str, str]:
    """What nnU-Net's commands should find in their environment; what the user has set stays."""
    cores = os.cpu_count() or 1
    # a GPU waits for augmentation; on a CPU the network needs the cores more
    augmenting = 1 if device == "cpu" else max(1, min(12, cores - 1))
    wished = {
        "nnUNet_def_n_proc": str(workers()),
        "nnUNet_n_proc_DA": str(augmenting),
        # nnU-Net sets the threads of training itself; its workers need one each
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        # threads that wait by spinning take the cores from whatever else runs there;
        # with another program on both cores, training is twice as fast like this
        "OMP_WAIT_POLICY": "PASSIVE",
        "MPLBACKEND": "Agg",
    }
    return {name: os.environ.get(name, value) for name, value in wished.items()}


def workers() -> int:
    """Processes for conversion, preprocessing and export."""
    return max(2, min(8, (os.cpu_count() or 1) // 2))


def _failure(command: str, code: int, output: Sequence[str], log: Path) -> str:
    lines = [line.rstrip() for line in output if line.strip()][-TAIL_LINES:]
    ours = re.match(r"nnunet_ext\._common\.errors\.\w+: (.+)", lines[-1] if lines else "")
    if ours:  # explains itself; the traceback before it helps nobody
        return f"{command} failed: {ours[1]}\nIts output is in {log}"
    shown = "\n  ".join(lines)
    return (
        f"{command} failed with exit code {code}. The end of its output:\n  {shown}\n"
        f"All of it is in {log}"
    )


def _call(command: Sequence[str], changes: Mapping[str, str], output: IO[str]) -> int:
    """Run a command and return its exit code; whatever ends this block ends the command."""
    with subprocess.Popen(
        [*LAUNCHER, *command],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **changes},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # a group of its own, so that its worker processes can be ended with it
        start_new_session=True,
    ) as process:
        try:
            return process.wait()
        except BaseException:
            for name in ("SIGTERM", "SIGKILL"):  # the second also for workers left behind
                if sys.platform == "win32":
                    process.terminate()
                    continue
                # all gone already (macOS says the latter)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, getattr(signal, name))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            raise


_ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Within it, the signals that end a process raise KeyboardInterrupt, as Ctrl-C does.

    Without this, a command that runs would go on for a while after the end of this process.
    """
    before = {ending: signal.signal(ending, signal.default_int_handler) for ending in _ENDINGS}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


def _endings_end() -> None:
    # nnU-Net forks workers to list cases; their pool ends them by such a signal, and one that
    # waits for a lock just then would never come to run a handler of Python's
    for ending in _ENDINGS:
        if signal.getsignal(ending) is signal.default_int_handler:
            signal.signal(ending, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_endings_end)
