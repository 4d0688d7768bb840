"""Shows how far a benchmark is: a live table on a terminal, a line per event elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nnunet_ext._common.console import duration, print_plain
from nnunet_ext.benchmark.layout import Cell, State
from nnunet_ext.benchmark.schedule import Progress

MOST_ROWS = 24
"""With more cells than this, only those that run or have failed get a row."""

STYLES = {"done": "green", "failed": "bold red", "running": "bold", "missing": "dim"}

Show = Callable[[Progress], None]


@contextmanager
def progress_shown(console: Console) -> Iterator[Show]:
    """Give a function that shows progress."""
    if not console.is_terminal:
        yield _Lines(console).show
        return
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda progress: live.update(_board(progress))


def _board(progress: Progress) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("arm", "configuration", "seed", "fold", "status", "epoch", "time"):
        table.add_column(heading, overflow="fold")
    for cell, state in progress.states.items():
        status = "running" if cell in progress.running else state.status
        if len(progress.states) > MOST_ROWS and status not in ("running", "failed"):
            continue
        shown = state.stage or status if status == "running" else status
        fold = "test set" if cell.fold is None else str(cell.fold)
        cells = [cell.arm, cell.configuration, str(cell.seed), fold, shown, _epoch(state)]
        cells.append(duration(state.seconds) if state.seconds else "")
        table.add_row(*(Text(text, STYLES[status]) for text in cells))
        if status == "failed":
            table.add_row("", "", "", "", Text(state.reason.splitlines()[0], "red"))
    return Group(table, Text(summary(progress), "bold"))


def _epoch(state: State) -> str:
    if not state.epoch and not state.epochs:
        return ""
    return f"{state.epoch}/{state.epochs}" if state.epochs else str(state.epoch)


def summary(progress: Progress) -> str:
    """One line: how many cells run, are done, have failed, and the estimated time left."""
    done, failed = progress.with_status("done"), progress.with_status("failed")
    waiting = progress.with_status("missing", "running")
    left = progress.seconds_left
    eta = (
        ""
        if left is None or not (waiting or progress.running)
        else f"; about {duration(left)} left"
    )
    return (
        f"{len(done)} of {len(progress.states)} done, {len(progress.running)} running, "
        f"{len(waiting)} waiting, {len(failed)} failed{eta}"
    )


class _Lines:
    """Prints a line whenever a cell starts or ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seen: dict[Cell, str] = {}

    def show(self, progress: Progress) -> None:
        for cell, state in progress.states.items():
            status = "running" if cell in progress.running else state.status
            if status == self.seen.get(cell, "missing"):
                continue
            first = cell not in self.seen
            self.seen[cell] = status
            if first and status == "done":
                print_plain(self.console, f"{cell}: done already")
                continue
            more = {
                "running": "",
                "done": f" in {duration(state.seconds)}; {summary(progress)}",
                "failed": f": {state.reason}",
            }
            print_plain(self.console, f"{cell}: {status}{more.get(status, '')}")
