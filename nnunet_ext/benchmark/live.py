"""Shows how far a benchmark is: a line per event and, on a terminal, what is at work below them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from nnunet_ext._common.console import duration, say
from nnunet_ext.benchmark.layout import Cell, State, Status
from nnunet_ext.benchmark.schedule import Scheduler


@contextmanager
def progress_shown(console: Console) -> Iterator[Callable[[Scheduler], None]]:
    """Give a function that shows the progress."""
    seen: dict[Cell, tuple[str, int]] = {}

    def show(scheduler: Scheduler) -> None:
        """Print what is new, and on a terminal what runs."""
        for cell, state in scheduler.states.items():
            status, ran = scheduler.status(cell), len(state.commands)
            before, shown = seen.get(cell, ("", ran))
            for command in state.commands[shown:]:
                say(f"  $ {command}", "dim", console)
            seen[cell] = status, ran
            if status == before or status == "missing":
                continue
            more = {
                "running": "",
                "done": f" in {duration(state.seconds)}; {summary(scheduler)}",
                "failed": f": {state.reason}",
            }
            already = " already" if not before and status == "done" else more[status]
            say(f"{cell}: {status}{already}", console=console)
        if console.is_terminal:
            lines = [f"{cell}{_epoch(scheduler.states[cell])}" for cell in scheduler.jobs]
            line.update(Text("\n".join([*lines, summary(scheduler)])))

    with console.status("starting") as line:
        yield show


def _epoch(state: State) -> str:
    of = f" of {state.epochs}" if state.epochs else ""
    return f": epoch {state.epoch}{of}" if state.epoch else ""


def summary(scheduler: Scheduler) -> str:
    """One line: how many cells are done, run, wait and have failed, and the estimated time left."""
    names: tuple[Status, ...] = ("done", "running", "missing", "failed")
    done, running, waiting, failed = (len(scheduler.with_status(name)) for name in names)
    left = scheduler.seconds_left()
    eta = f"; about {duration(left)} left" if left else ""
    return (
        f"{done} of {len(scheduler.states)} done, {running} running, {waiting} waiting, "
        f"{failed} failed{eta}"
    )
