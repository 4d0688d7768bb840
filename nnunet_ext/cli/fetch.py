"""``nnunet-ext fetch``: tasks of the Medical Segmentation Decathlon, ready to be converted."""

import shlex
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from nnunet_ext._common.console import resumable, say
from nnunet_ext.nnunet import decathlon

Tasks = Annotated[
    list[str] | None,
    Argument(metavar="TASK", help="Tasks to download; without one, all are listed."),
]
List = Annotated[bool, Option("--list", help="Show all ten tasks and download nothing.")]


def command(
    tasks: Tasks = None,
    out: Annotated[Path, Option(help="Folder to put the tasks into.")] = Path(),
    show_list: List = False,
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
    if show_list or not tasks:
        say(f"{'task':24}{'cases':>9}{'size':>8}  {'licence':14}shows", "bold")
        for each in decathlon.TASKS.values():
            cases, shows = f"{each.training} + {each.test}", f"{each.shows}; {each.modality}"
            say(f"{each.name:24}{cases:>9}{each.size:>8}  {decathlon.LICENCE:14}{shows}")
        say("\nCases: with labels + without. The licence asks you to cite:")
        say(f"{decathlon.REFERENCE}, {decathlon.HOMEPAGE}")
        return
    for name in tasks:  # a wrong name must not come to light after hours
        decathlon.find_task(name)
    with resumable():
        for name in tasks:
            folder = fetch_shown(name, out.expanduser())
            archive = folder.with_name(f"{name}.tar")
            if archive.exists():
                say(f"  no longer needed: {archive}")
            say(f"  next: nnUNetv2_convert_MSD_dataset -i {shlex.quote(str(folder))}")


def fetch_shown(name: str, out: Path) -> Path:
    """Fetch a task unless it is there, showing its terms; return its folder."""
    say(name, "bold")
    say(f"  {decathlon.terms(name)}")
    there = (out / name).is_dir()
    folder = decathlon.fetch_task(name, out)
    say(f"  is {'already' if there else 'now'} in {folder}")
    return folder
