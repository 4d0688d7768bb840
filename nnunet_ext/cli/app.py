"""The sub-commands of ``nnunet-ext``, put together."""

from typing import Annotated

import typer

from nnunet_ext import __version__
from nnunet_ext.cli.benchmark import benchmark
from nnunet_ext.cli.compare import compare
from nnunet_ext.cli.configure import configure
from nnunet_ext.cli.demo import demo
from nnunet_ext.cli.doctor import doctor
from nnunet_ext.cli.domains import domains
from nnunet_ext.cli.evaluate import evaluate
from nnunet_ext.cli.export_stock import export_stock
from nnunet_ext.cli.fetch import fetch
from nnunet_ext.cli.folds import folds
from nnunet_ext.cli.join import join
from nnunet_ext.cli.list import list_methods
from nnunet_ext.cli.memory import memory
from nnunet_ext.cli.run import run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # plain help keeps the line breaks of the examples, in terminals and in pipes
    rich_markup_mode=None,
    # a bug shows Python's own traceback, which can be pasted into an issue
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("list", short_help="Show trainers, planners and settings.")(list_methods)
app.command("doctor", short_help="Check the installation and its surroundings.")(doctor)
app.command(
    "run",
    short_help="Run an nnU-Net command that would not find us.",
    # everything behind COMMAND belongs to COMMAND, --help included
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)(run)
app.command("demo", short_help="Show the whole way on a small task.")(demo)
app.command("fetch", short_help="Download tasks of the Medical Decathlon.")(fetch)
app.add_typer(benchmark, name="benchmark", short_help="Compare trainers on one data set.")
app.command("memory", short_help="Tell how much memory a training takes.")(memory)
app.command("configure", short_help="Write settings of your own into the plans.")(configure)
app.command("export-stock", short_help="Copy a model for nnU-Net without nnunet_ext.")(export_stock)
app.command("domains", short_help="Say which case comes from which scanner or site.")(domains)
app.command("folds", short_help="Write folds that keep a patient's cases together.")(folds)
app.command("join", short_help="Make one data set of several, each a domain.")(join)
app.command("compare", short_help="Compare models that are trained already.")(compare)
app.command("evaluate", short_help="Score predictions against labels.")(evaluate)


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
