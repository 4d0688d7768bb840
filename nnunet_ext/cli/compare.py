"""``nnunet-ext compare``: the benchmark's report of models that are there already."""

from pathlib import Path
from typing import Annotated

from nnunetv2 import configuration
from typer import Argument, Option

from nnunet_ext._common.console import say, show_table
from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import compare as comparing
from nnunet_ext.benchmark.report import write_report
from nnunet_ext.benchmark.results import MARGIN, without_images
from nnunet_ext.benchmark.tables import Tables, measured, verdict
from nnunet_ext.cli.options import Images, Labels, LabelsOf, Out, Processes, SubjectPattern

Folders = Annotated[
    list[str],
    Argument(metavar="NAME=FOLDER", help="Models or predictions; the first name is the baseline."),
]
Margin = Annotated[float, Option(min=0, help="Differences in Dice up to this do not matter.")]


def command(
    folders: Folders,
    labels: Labels = None,
    dataset: LabelsOf = None,
    subject: SubjectPattern = None,
    margin: Margin = MARGIN,
    processes: Processes = None,
    images: Images = True,
    out: Out = None,
) -> None:
    """Compare finished models, or predictions of a test set, whatever trainer made them.

    FOLDER is a model folder of nnU-Net's (TRAINER__PLANS__CONFIGURATION), of which the validation
    of every fold counts, or a folder of predictions, with --labels. Folds are trainings, and so
    are several folders under one NAME, for example of several seeds: differences are tested
    against the variation between trainings only if there are at least two. Nothing is trained.
    Folders whose cases, labels or data sets differ are refused. The report goes to
    comparison_DATASET.

    \b
    Examples:
      nnunet-ext compare stock=nnUNetTrainer__nnUNetPlans__3d_fullres \\
          mine=MyTrainer__nnUNetPlans__3d_fullres
      nnunet-ext compare a=predicted_a_0 a=predicted_a_1 b=predicted_b_0 b=predicted_b_1 \\
          --labels labelsTs --subject "_(\\d+)$"
    """
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
        processes=processes or configuration.default_num_processes,
    )
    results = results if images else without_images(results)
    page = write_report(results, out or Path(f"comparison_{results.title}"))
    for problem in results.problems:
        say(problem, "yellow")
    rows = Tables(results).comparison
    rows = rows[(rows["scope"] == "all") & (rows["metric"] == "dice")].to_dict("records")
    shown = [
        (row["arm"], cell.text, "\n".join(cell.details), "\n".join([found.text, *found.details]))
        for row in rows
        for cell, found in [(measured(row), verdict(row))]
    ]
    show_table(("", "Dice", "difference", "verdict"), shown)
    say(f"Report: {page}")
