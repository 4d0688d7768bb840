"""``nnunet-ext fetch``: tasks of the Medical Segmentation Decathlon, ready to be converted."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_ext.cli.demo import INTERRUPTED

THEN = "now verifying and unpacking"
"""Follows the last byte; of the largest tasks that takes minutes."""

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_ext.nnunet.decathlon import Progress


def fetch(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="TASK", help="Tasks to download; without one, all are listed."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the task folders go.")] = Path(),
    show_list: Annotated[
        bool, typer.Option("--list", help="Show all ten tasks and download nothing.")
    ] = False,
) -> None:
    """Download, verify and unpack tasks of the Medical Segmentation Decathlon.

    An interrupted download goes on with the same command. The environment variable
    NNUNET_EXT_DECATHLON_URL names another mirror.

    \b
    Examples:
      nnunet-ext fetch --list
      nnunet-ext fetch Task04_Hippocampus
      nnunet-ext fetch Task02_Heart Task09_Spleen --out data
    """
    from rich.console import Console

    from nnunet_ext.nnunet import decathlon

    console = Console(highlight=False)
    if show_list or not tasks:
        _show_all(console)
        return
    for name in tasks:  # a wrong name must not come to light after hours
        decathlon.find_task(name)
    try:
        for name in tasks:
            fetch_shown(console, name, out.expanduser())
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Run the same command again to go on from here.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def fetch_shown(console: "Console", name: str, out: Path) -> Path:
    """Fetch a task unless it is there, showing terms and progress; return its folder."""
    from nnunet_ext._common.console import print_plain
    from nnunet_ext.nnunet import decathlon

    print_plain(console, name, style="bold")
    print_plain(console, f"  {decathlon.terms(name)}")
    folder = out / name
    if folder.is_dir():
        print_plain(console, f"  is already in {folder}")
    else:
        with _shown(console) as progress:
            decathlon.fetch_task(name, out, progress=progress)
        print_plain(console, f"  is now in {folder}")
    archive = out / decathlon.TASKS[name].archive
    if archive.exists():
        print_plain(console, f"  no longer needed: {archive}")
    print_plain(console, f"  next: nnUNetv2_convert_MSD_dataset -i {shlex.quote(str(folder))}")
    return folder


@contextmanager
def _shown(console: "Console") -> Iterator["Progress"]:
    """Show a download: a bar on a terminal, else a line for every tenth."""
    if not console.is_terminal:
        yield _tenths(console)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    first = (TextColumn("  {task.description}"), BarColumn(24), DownloadColumn())
    last = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*first, *last, console=console, transient=True) as bar:
        task = bar.add_task("downloading", total=None)

        def show(done: int, total: int | None) -> None:
            stage = THEN if done == total else "downloading"
            bar.update(task, completed=done, total=total, description=stage)

        yield show


def _tenths(console: "Console") -> "Progress":
    from rich.filesize import decimal

    from nnunet_ext._common.console import print_plain

    seen = 0

    def show(done: int, total: int | None) -> None:
        nonlocal seen
        reached = 10 * done // total if total else done // 10**9
        if reached > seen:
            seen = reached
            of = f" of {decimal(total)}, {10 * reached} %" if total else ""
            then = f", {THEN}" if done == total else ""
            print_plain(console, f"  {decimal(done)}{of}{then}")

    return show


def _show_all(console: "Console") -> None:
    from rich.table import Table

    from nnunet_ext._common.console import print_plain
    from nnunet_ext.nnunet import decathlon

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("task", "shows", "modality", "cases", "size", "licence"):
        fixed = column in ("task", "cases", "size")
        table.add_column(column, no_wrap=fixed, justify="right" if column == "size" else "left")
    for task in decathlon.TASKS.values():
        cases = f"{task.training} + {task.test}"
        table.add_row(task.name, task.shows, task.modality, cases, task.size, decathlon.LICENCE)
    console.print(table)
    print_plain(console, "\nCases: with labels + without. The licence asks you to cite:")
    print_plain(console, f"{decathlon.REFERENCE}, {decathlon.HOMEPAGE}")
