"""``nnunet-ext run``: an nnU-Net command that is sure to know our trainers and planners."""

import runpy
import sys
from typing import Annotated

from typer import Argument

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.commands import nnunet_commands

Name = Annotated[
    str, Argument(metavar="COMMAND", help="nnU-Net's command, such as nnUNetv2_train.")
]
Arguments = Annotated[
    list[str] | None,
    Argument(metavar="ARGUMENTS", help="Passed on as they are, options included."),
]


def command(name: Name, arguments: Arguments = None) -> None:
    """Run an nnU-Net command where it would not find nnunet_ext by itself.

    Not needed after a plain `pip install`. It serves installations whose start-up file
    Python does not read, such as `pip install --target` with PYTHONPATH.

    \b
    Example:
      nnunet-ext run nnUNetv2_train 4 3d_fullres 0 -tr CateNormTrainer
    """
    known = nnunet_commands()
    if name not in known:
        hint = did_you_mean(name, known) or f" There are: {', '.join(sorted(known))}."
        raise UserError(f'"{name}" is not a command of nnU-Net.{hint}')
    sys.argv = ["nnunet-ext", name, *(arguments or [])]
    # A spawned worker repeats the import of its parent's __main__ by name, before it unpickles
    # anything. Running it as __main__ thus activates nnunet_ext in all workers as well.
    runpy.run_module("nnunet_ext.nnunet.launch", run_name="__main__", alter_sys=True)
