"""Small things that everything printed here shares."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXAMPLES = 3
"""So many names stand for all of them."""


def say(text: str, style: str = "", console: Console | None = None) -> None:
    """Print a line as it is: no markup, no highlighting, no line breaks of rich's."""
    show(Text(text, style=style), console, soft_wrap=True)


def show(what: Text | Table, console: Console | None = None, soft_wrap: bool = False) -> None:
    """Print what is laid out, on a console that something else uses or to standard output."""
    (console or Console(highlight=False)).print(what, soft_wrap=soft_wrap)


def lay_out(
    rows: Iterable[Sequence[str | Text]],
    fold: Collection[int],
    heading: Sequence[str] = (),
    gap: int = 0,
) -> Table:
    """Lay rows out as a table without lines; only the columns in ``fold`` are ever wrapped."""
    rows = list(rows)
    table = Table(box=None, padding=(0, 2, gap, 0), pad_edge=False, show_header=bool(heading))
    for column, title in enumerate(heading or [""] * max(map(len, rows), default=0)):
        table.add_column(title, no_wrap=column not in fold, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def show_table(
    heading: Sequence[str], rows: Sequence[Sequence[object]], console: Console | None = None
) -> None:
    """Print a table without lines, and nothing where there are no rows."""
    if rows:
        cells = [[str(cell) for cell in row] for row in rows]
        show(lay_out(cells, range(len(heading)), heading), console)


def say_json(content: Any) -> None:
    """Print what other programs are to read."""
    typer.echo(json.dumps(content, indent=2))


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def plural(count: int, word: str) -> str:
    """A count with its noun."""
    return f"{count} {word}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """A time span as people read it, ``7 s``, ``4:05 min`` or ``2:10 h``; a dash for NaN."""
    if math.isnan(seconds):
        return "\N{EN DASH}"
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
