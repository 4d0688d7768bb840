"""The main module of a process started by ``nnunet-ext run``, and of its spawned workers.

As ``__main__`` it runs the nnU-Net command in ``sys.argv[1:]``. Workers import it under the
name ``__mp_main__``; then it only activates the discovery.
"""

import sys

from nnunet_ext.nnunet import discovery


def run_command() -> None:
    """Run the nnU-Net command in ``sys.argv[1:]``."""
    from nnunet_ext.cli.run import nnunet_commands

    del sys.argv[0]  # the command reads its name and its arguments as if it had been called
    nnunet_commands()[sys.argv[0]].load()()


discovery.activate(force=True)
if __name__ == "__main__":
    run_command()
