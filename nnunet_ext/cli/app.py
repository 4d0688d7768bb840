"""The sub-commands of ``nnunet-ext``, put together."""

from importlib import import_module
from typing import Annotated, Any, NamedTuple, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from nnunet_ext import __version__

COMMANDS = {
    "list": "Show trainers, planners and settings.",
    "doctor": "Check the installation, nnU-Net's folders and devices.",
    "run": "Run an nnU-Net command that does not find nnunet_ext.",
    "demo": "Plan, train, predict and score a small task.",
    "fetch": "Download tasks of the Medical Decathlon.",
    "benchmark": "Compare trainers on one data set.",
    "memory": "Estimate the GPU memory that a training takes.",
    "configure": "Write settings of your own into the plans.",
    "export-stock": "Copy a model for nnU-Net without nnunet_ext.",
    "domains": "Show or assign the scanner or site of each case.",
    "folds": "Write folds that keep a patient's cases together.",
    "join": "Join several data sets into one, each a domain.",
    "compare": "Compare models that are trained already.",
    "evaluate": "Score predictions against labels.",
}
"""Name -> what stands in the help. Each is the ``command`` of a module of its name."""

CONTEXTS = {"run": {"allow_interspersed_args": False, "ignore_unknown_options": True}}
"""Everything behind the command that ``run`` runs belongs to that, --help included."""


class Completion(NamedTuple):
    """What a shell may be offered for a word that is begun, as click and typer read it."""

    value: str
    help: str
    type: str = "plain"


class Commands(TyperGroup):
    """Imports only the command that is asked for, since some need a second for that."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        # lists and suggestions need the names alone
        self.commands = cast(Any, dict.fromkeys(COMMANDS))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        found = import_module(f"nnunet_ext.cli.{cmd_name.replace('-', '_')}").command
        if not isinstance(found, typer.Typer):
            function = found
            found = typer.Typer(add_completion=False, rich_markup_mode=None)
            found.command(cmd_name, context_settings=CONTEXTS.get(cmd_name))(function)
        return get_command(found)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Offer the commands that begin so, importing none; else options."""
        begun = [Completion(*each) for each in COMMANDS.items() if each[0].startswith(incomplete)]
        return begun or super().shell_complete(ctx, incomplete)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names with what they are for."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    # plain help keeps the line breaks of the examples, in terminals and in pipes
    rich_markup_mode=None,
    # a bug shows Python's own traceback, which can be pasted into an issue
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnunet-ext {__version__}")
        raise typer.Exit


@app.callback()
def nnunet_ext(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Five published segmentation methods inside nnU-Net v2's own commands.

    Training and prediction stay with nnU-Net (nnUNetv2_train ... -tr CateNormTrainer); this
    command shows what there is, checks the installation and writes settings.

    \b
    Example:
      nnunet-ext list CateNormTrainer
    """
