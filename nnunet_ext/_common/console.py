"""Small things that everything printed here shares."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXAMPLES = 3
"""So many names stand for all of them."""


def print_plain(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: no markup, no highlighting, no line breaks of rich's."""
    console.print(Text(text, style=style), soft_wrap=True)


def print_table(
    console: Console, heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> None:
    """Print a table without lines, and nothing where there are no rows."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in heading:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if rows:
        console.print(table)


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def duration(seconds: float) -> str:
    """A time span as people read it, ``7 s``, ``4:05 min`` or ``2:10 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


@contextmanager
def resumable() -> Iterator[None]:
    """Make Ctrl-C end the command with a line on how to go on, and a shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Run the same command again to go on from here.", err=True)
        raise typer.Exit(130) from None
