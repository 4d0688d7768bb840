"""``nnunet-ext run``: an nnU-Net command that is sure to know our trainers and planners."""

import runpy
import sys
from typing import Annotated

import typer

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.commands import nnunet_commands


def run(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="nnU-Net's command, such as nnUNetv2_train.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="Passed on as they are, options included."),
    ] = None,
) -> None:
    """Run an nnU-Net command where it would not find nnunet_ext by itself.

    Not needed after a plain `pip install`. It serves installations whose start-up file
    Python does not read, such as `pip install --target` with PYTHONPATH.

    \b
    Example:
      nnunet-ext run nnUNetv2_train 4 3d_fullres 0 -tr CateNormTrainer
    """
    _require_nnunet_command(command)
    sys.argv = ["nnunet-ext", command, *(arguments or [])]
    # A spawned worker repeats the import of its parent's __main__ by name, before it unpickles
    # anything. Running it as __main__ thus activates nnunet_ext in all workers as well.
    runpy.run_module("nnunet_ext.nnunet.launch", run_name="__main__", alter_sys=True)


def _require_nnunet_command(command: str) -> None:
    known = nnunet_commands()
    if command not in known:
        hint = did_you_mean(command, known) or f" There are: {', '.join(sorted(known))}."
        raise UserError(f'"{command}" is not a command of nnU-Net.{hint}')
