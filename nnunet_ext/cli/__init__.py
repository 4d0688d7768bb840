"""The ``nnunet-ext`` command; this module stays light because every start goes through it."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``nnunet-ext`` and return its exit code.

    A user's mistake becomes one line on stderr and exit code 1; anything else that goes
    wrong is a bug and keeps its traceback. What is only shown may be read as far as one likes.

    Args:
        arguments: What stands behind ``nnunet-ext`` on the command line; ``None`` takes it
            from ``sys.argv``.
    """
    from nnunet_ext._common.errors import UserError
    from nnunet_ext.cli.app import app

    try:
        app(args=arguments, prog_name="nnunet-ext")
    except UserError as error:
        _print_error(error)
        return 1
    except SystemExit as leaving:
        shows = [*(sys.argv[1:] if arguments is None else arguments)][:1] == ["list"]
        # rich and typer leave with 1 where nobody reads on, as in `nnunet-ext list | head -1`
        if not shows or not isinstance(leaving.__context__, BrokenPipeError):
            raise
    return 0


def _print_error(error: Exception) -> None:
    from rich.console import Console
    from rich.text import Text

    # soft_wrap: one message is one line, also in a narrow terminal or a log file
    Console(stderr=True, soft_wrap=True).print(Text(f"Error: {error}", style="red"))
