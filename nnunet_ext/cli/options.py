"""Options that several commands share."""

from typing import Annotated

import typer

LabelsOf = Annotated[
    str | None,
    typer.Option(metavar="D", help="Data set or dataset.json; default: beside predictions."),
]
SubjectPattern = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Its only group names the patient of a case."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Default: nnU-Net's nnUNet_def_n_proc.")]
