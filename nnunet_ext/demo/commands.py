"""Runs nnU-Net's own commands as child processes and reads their progress."""

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

from nnunet_ext.demo.display import StepDisplay
from nnunet_ext.errors import UserError

LAUNCHER = (sys.executable, "-m", "nnunet_ext.cli.launch")
"""What `nnunet-ext run` does: also serves installs without the start-up file."""

TAIL_LINES = 12
GRACE_SECONDS = 10

LineReader = Callable[[str], None]


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    display: StepDisplay,
    read_line: LineReader,
) -> None:
    """Run a command of nnU-Net's; its output goes to a log and, line by line, to a reader.

    Args:
        command: Name of the command, for example ``nnUNetv2_train``, and its arguments.
        environment: Variables to set for it beside those of this process.
        log: File that its output is appended to.
        display: Shows the command.
        read_line: Called with every line of the output.

    Raises:
        UserError: If the command fails; shows the end of its output.
    """
    shown = shlex.join(command)
    display.command(shown)
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with log.open("a", encoding="utf-8") as file, _started(command, environment) as process:
        file.write(f"$ {shown}\n")
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


def _failure(command: str, code: int, tail: Sequence[str], log: Path) -> str:
    ours = re.match(r"nnunet_ext\.errors\.\w+: (.+)", tail[-1] if tail else "")
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
        [*LAUNCHER, *command],
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


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Within it, the signals that end a process raise KeyboardInterrupt, as Ctrl-C does.

    Without this, a command that runs would survive the end of this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def bar_reader(display: StepDisplay) -> LineReader:
    """Read the progress bars that nnU-Net prints while it plans and preprocesses."""
    activity = "starting"

    def read(line: str) -> None:
        nonlocal activity
        bar = re.search(r"\d+%\|.*\| (\d+)/(\d+) ", line)
        if bar:
            display.update(activity, int(bar[1]), int(bar[2]))
        elif re.match(r"(Fingerprint|Experiment planning|Preprocessing)", line):
            activity = line.rstrip(".").lower()
            display.update(activity)

    return read


def training_reader(display: StepDisplay, epochs: int | None) -> LineReader:
    """Read epochs, pseudo Dice and validation from what nnU-Net's trainers print."""
    epoch = 0

    def read(line: str) -> None:
        nonlocal epoch
        message = re.sub(r"^[\d-]+ [\d:.]+: ", "", line).strip()
        shown = f"epoch {epoch + 1}" + (f" of {epochs}" if epochs else "")
        if match := re.fullmatch(r"Epoch (\d+)", message):
            epoch = int(match[1])
            shown = f"epoch {epoch + 1}" + (f" of {epochs}" if epochs else "")
            display.update(shown, epoch, epochs)
        elif message.startswith("Pseudo dice"):
            scores = " ".join(_numbers(message.removeprefix("Pseudo dice")))
            display.update(f"{shown}, pseudo Dice {scores}", epoch + 1, epochs, milestone=True)
        elif match := re.fullmatch(r"predicting (\S+)", message):
            display.update(f"validating {match[1]}")

    return read


def _numbers(text: str) -> list[str]:
    """The numbers in a list that nnU-Net prints, which may read ``[np.float32(0.5), nan]``."""
    inner = re.sub(r"\w*\.?float\d+\(([^)]*)\)", r"\1", text)
    return [f"{float(number):.2f}" for number in re.findall(r"nan|\d+\.?\d*(?:e-?\d+)?", inner)]


def prediction_reader(display: StepDisplay, cases: int) -> LineReader:
    """Count the cases that nnU-Net's prediction begins; it prints one such line for each."""
    begun = 0

    def read(line: str) -> None:
        nonlocal begun
        if line.startswith("perform_everything_on_device:"):
            begun += 1
            display.update(f"case {begun} of {cases}", begun - 1, cases, milestone=True)

    return read
