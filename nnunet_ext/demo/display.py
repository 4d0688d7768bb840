"""Shows what runs: a live bar on a terminal, plain lines in a pipe or a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nnunet_ext._common.console import duration, print_plain


class StepDisplay:
    """Where a running step tells how far it is.

    Args:
        console: Where plain lines go.
        bar: The live bar, or None where there is no terminal.
    """

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=None, detail="")

    def update(
        self,
        detail: str,
        done: float | None = None,
        total: float | None = None,
        *,
        milestone: bool = False,
    ) -> None:
        """Tell how far the step is.

        Args:
            detail: What it does now, short.
            done: How much of ``total`` is done.
            total: What is done in the end, if known.
            milestone: Worth a line of its own where there is no live bar.
        """
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, detail=detail, completed=done, total=total)
        elif milestone:
            print_plain(self._console, f"      {detail}")

    def command(self, command: str) -> None:
        """Show a command of nnU-Net's that the step runs."""
        print_plain(self._console, f"      $ {command}", style="dim")


class Display:
    """Prints the steps of a pipeline as they come.

    Args:
        console: Where to print.
        steps: How many steps there will be.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self._steps = steps
        self._number = 0

    @contextmanager
    def step(self, title: str) -> Iterator[StepDisplay]:
        """Show a step while it runs and how long it took."""
        self._print_title(title)
        start = time.monotonic()
        if self.console.is_terminal:
            with self._bar() as bar:
                yield StepDisplay(self.console, bar)
        else:
            yield StepDisplay(self.console, None)
        print_plain(self.console, f"      done in {duration(time.monotonic() - start)}")

    def skip(self, title: str) -> None:
        """Show a step that an earlier run has finished."""
        self._print_title(f"{title}: done already")

    def _print_title(self, title: str) -> None:
        self._number += 1
        print_plain(self.console, f"[{self._number}/{self._steps}] {title}", style="bold")

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("     "),
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            # file names may hold brackets, which are no markup
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
            transient=True,
        )
