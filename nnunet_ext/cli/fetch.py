"""``nnunet-ext fetch``: tasks of the Medical Segmentation Decathlon, ready to be converted."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

    from nnunet_ext._common.console import print_plain, resumable
    from nnunet_ext.nnunet import decathlon

    console = Console(highlight=False)
    if show_list or not tasks:
        heading = f"{'task':24}{'cases':>9}{'size':>8}  {'licence':14}shows"
        print_plain(console, heading, "bold")
        for each in decathlon.TASKS.values():
            cases, shows = f"{each.training} + {each.test}", f"{each.shows}; {each.modality}"
            line = f"{each.name:24}{cases:>9}{each.size:>8}  {decathlon.LICENCE:14}{shows}"
            print_plain(console, line)
        print_plain(console, "\nCases: with labels + without. The licence asks you to cite:")
        print_plain(console, f"{decathlon.REFERENCE}, {decathlon.HOMEPAGE}")
        return
    for name in tasks:  # a wrong name must not come to light after hours
        decathlon.find_task(name)
    with resumable():
        for name in tasks:
            folder = fetch_shown(console, name, out.expanduser())
            archive = folder.with_name(f"{name}.tar")
            if archive.exists():
                print_plain(console, f"  no longer needed: {archive}")
            command = f"nnUNetv2_convert_MSD_dataset -i {shlex.quote(str(folder))}"
            print_plain(console, f"  next: {command}")


def fetch_shown(console: "Console", name: str, out: Path) -> Path:
    """Fetch a task unless it is there, showing terms and progress; return its folder."""
    from nnunet_ext._common.console import print_plain
    from nnunet_ext.nnunet import decathlon

    print_plain(console, name, style="bold")
    print_plain(console, f"  {decathlon.terms(name)}")
    there = (out / name).is_dir()
    with _shown(console) as progress:
        folder = decathlon.fetch_task(name, out, progress)
    print_plain(console, f"  is {'already' if there else 'now'} in {folder}")
    return folder


@contextmanager
def _shown(console: "Console") -> Iterator["Progress"]:
    """Show a download: a bar on a terminal, else a line for every tenth."""
    from rich import progress
    from rich.filesize import decimal

    columns = (progress.BarColumn(24), progress.DownloadColumn(), progress.TransferSpeedColumn())
    first, last = "  {task.description}", progress.TimeRemainingColumn()
    live = console.is_terminal
    bar = progress.Progress(
        first, *columns, last, console=console, transient=True, disable=not live
    )
    seen = 0

    def show(done: int, total: int | None) -> None:
        nonlocal seen
        stage = THEN if done == total else "downloading"
        bar.update(task, completed=done, total=total, description=stage)
        reached = 10 * done // total if total else done // 10**9
        if reached > seen and not live:
            seen = reached
            of = f" of {decimal(total)}, {10 * reached} %" if total else ""
            then = f", {THEN}" if done == total else ""
            console.print(f"  {decimal(done)}{of}{then}", soft_wrap=True)

    with bar:
        task = bar.add_task("downloading", total=None)
        yield show
