"""``nnunet-ext compare``: the benchmark's report of models that are there already."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_ext._common.errors import UserError
from nnunet_ext.cli.options import LabelsOf, Processes, SubjectPattern

if TYPE_CHECKING:
    from nnunet_ext.benchmark.results import Results


def compare(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="NAME=FOLDER", help="The first name is the baseline."),
    ],
    labels: Annotated[
        Path | None,
        typer.Option("-l", "--labels", metavar="FOLDER", help="True labels of the predictions."),
    ] = None,
    dataset: LabelsOf = None,
    subject: SubjectPattern = None,
    margin: Annotated[
        float, typer.Option(min=0, help="Differences in Dice within it do not matter.")
    ] = 0.005,
    processes: Processes = None,
    images: Annotated[
        bool, typer.Option(help="Show cases; leave out for data that must not be spread.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", show_default="comparison_DATASET"),
    ] = None,
) -> None:
    """Compare finished models, or predictions of a test set, whatever trainer made them.

    FOLDER is a model folder of nnU-Net's (TRAINER__PLANS__CONFIGURATION), of which the validation
    of every fold counts, or a folder of predictions, with --labels. Folds are trainings, and so
    are several folders under one NAME, for example of several seeds: differences are tested
    against the luck of training only if there are at least two. Nothing is trained. Folders whose
    cases, labels or data sets differ are refused.

    \b
    Examples:
      nnunet-ext compare stock=nnUNetTrainer__nnUNetPlans__3d_fullres \\
          mine=MyTrainer__nnUNetPlans__3d_fullres
      nnunet-ext compare a=predicted_a_0 a=predicted_a_1 b=predicted_b_0 b=predicted_b_1 \\
          --labels labelsTs --subject "_(\\d+)$"
    """
    from nnunetv2.configuration import default_num_processes
    from rich.console import Console

    from nnunet_ext._common.console import print_plain
    from nnunet_ext.benchmark import compare as comparing
    from nnunet_ext.benchmark.collect import without_images
    from nnunet_ext.benchmark.report import write_report

    pairs = [(name, Path(folder)) for name, _, folder in (each.partition("=") for each in folders)]
    for each, (name, folder) in zip(folders, pairs, strict=True):
        if not name or not folder.name:
            raise UserError(f"{each}: expected NAME=FOLDER, for example stock=predicted.")
    if len({name for name, _ in pairs}) < 2:
        raise UserError("There is one name only; give at least two to compare, as NAME=FOLDER.")
    results = comparing.compare(
        pairs,
        labels=labels,
        dataset=dataset,
        subject=subject,
        margin=margin,
        processes=processes or default_num_processes,
    )
    results = results if images else without_images(results)
    page = write_report(results, out or Path(f"comparison_{results.title}"))
    console = Console(highlight=False)
    for problem in results.problems:
        print_plain(console, problem, "yellow")
    _show(results)
    print_plain(console, f"Report: {page}")


def _show(results: "Results") -> None:
    """Print Dice and verdicts."""
    from rich.console import Console

    from nnunet_ext._common.console import print_table
    from nnunet_ext.benchmark.tables import Tables, measured, verdict

    tables = Tables(results)
    rows = tables.comparison
    rows = rows[(rows["scope"] == "all") & (rows["metric"] == "dice")].to_dict("records")
    shown = [
        (row["arm"], cell.text, "\n".join(cell.details), "\n".join([found.text, *found.details]))
        for row in rows
        for cell, found in [(measured(row), verdict(row))]
    ]
    print_table(Console(highlight=False), ("", "Dice", "difference", "verdict"), shown)
