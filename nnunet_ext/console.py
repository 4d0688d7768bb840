"""Small things that everything printed here shares."""

from rich.console import Console
from rich.text import Text


def print_plain(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: no markup, no highlighting, no line breaks of rich's."""
    console.print(Text(text, style=style), soft_wrap=True)


def duration(seconds: float) -> str:
    """A time span as people read it, ``7 s``, ``4:05 min`` or ``2:10 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
