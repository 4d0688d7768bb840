"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Dataset = Annotated[str, Argument(metavar="DATASET", help="Number or name of a data set.")]
Plans = Annotated[str, Option("-p", "--plans", metavar="PLANS", help="Name of the plans.")]
Labels = Annotated[
    Path | None,
    Option("-l", "--labels", metavar="FOLDER", help="True labels; default: labelsUn or labelsTs."),
]
LabelsOf = Annotated[
    str | None,
    Option(metavar="D", help="Data set or dataset.json; default: the one beside the predictions."),
]
SubjectPattern = Annotated[
    str | None,
    Option(metavar="REGEX", help="The only group of REGEX matches the patient in a case name."),
]
Processes = Annotated[int | None, Option(min=1, help="Processes; default: nnUNet_def_n_proc.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
Out = Annotated[Path | None, Option("-o", "--out", metavar="FOLDER", help="Folder to write to.")]
Images = Annotated[bool, Option(help="Show images of cases; not for data that must stay private.")]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace folds on which models were trained.")
]
