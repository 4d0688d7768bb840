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
    str | None, Option(metavar="D", help="Data set or dataset.json; default: beside predictions.")
]
SubjectPattern = Annotated[
    str | None, Option(metavar="REGEX", help="Its only group names the patient of a case.")
]
Processes = Annotated[int | None, Option(min=1, help="Default: nnU-Net's nnUNet_def_n_proc.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
Out = Annotated[Path | None, Option("-o", "--out", metavar="FOLDER", help="Where it goes.")]
Images = Annotated[bool, Option(help="Show cases; leave out for data that must not be spread.")]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace folds on which models were trained.")
]
