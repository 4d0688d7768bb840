"""``nnunet-ext folds``: folds that never part the cases of a patient."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_ext._common.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from nnunet_ext.domains.splits import Split


class Strata(str, Enum):
    """What every fold can get its share of."""

    DOMAINS = "domains"


def folds(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Number or name of a data set.")
    ],
    subject: Annotated[
        str,
        typer.Option(
            metavar="REGEX", help="Its only group captures what names the patient in a case's name."
        ),
    ],
    number: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    stratify: Annotated[
        Strata | None, typer.Option(help="Give every fold its share of each of these.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one makes other folds.")] = 12345,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say which patients folds divide.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace folds on which models were trained.")
    ] = False,
) -> None:
    """Write folds of a data set that keep all cases of a patient together.

    nnU-Net's own folds are random by case: with several scans of a patient, most of those that
    validate have been seen in training, and scores are too good. Writes splits_final.json,
    which every trainer of nnU-Net uses. --check looks at the folds that there are, or at those
    that nnU-Net would make, and ends with exit code 1 if one of them divides a patient.

    \b
    Examples:
      nnunet-ext folds 102 --subject "_(\\d+)$" --stratify domains
      nnunet-ext folds 102 --subject "_(\\d+)$" --check
    """
    from rich.console import Console

    from nnunet_ext._common.files import read_object
    from nnunet_ext.cli.domains import place_folds
    from nnunet_ext.domains import assignment, splits, store
    from nnunet_ext.nnunet.datasets import PREPROCESSED, find_dataset, nnunet_folder

    console = Console(highlight=False)
    name = find_dataset(dataset)
    cases = store.case_names(name)
    subjects = assignment.subjects_from_pattern(subject, cases)
    preprocessed = nnunet_folder(PREPROCESSED) / name
    if check:
        _check(console, name, preprocessed / splits.SPLITS_FILE, subjects)
        return
    source, *_ = store.dataset_json_paths(name)
    domains = assignment.read_domains(read_object(source), str(source))
    made = splits.grouped_folds(
        cases, subjects.__getitem__, number, domains if stratify else None, seed
    )
    splits.refuse_other_folds_of_models(preprocessed, made, overwrite)
    _show(console, name, made, subjects, domains)
    place_folds(console, preprocessed, made)


def _show(
    console: "Console",
    name: str,
    made: "list[Split]",
    subjects: "Mapping[str, str]",
    domains: "Mapping[str, str]",
) -> None:
    from nnunet_ext._common.console import print_plain, print_table
    from nnunet_ext.domains.assignment import cases_by_domain

    number = len(set(subjects.values()))
    print_plain(
        console, f"{name}: {len(made)} folds of {number} subjects, {len(subjects)} cases", "bold"
    )
    members = {domain: set(cases) for domain, cases in cases_by_domain(domains).items()}
    rows = []
    for fold, split in enumerate(made):
        held_out = set(split["val"])
        of_domains = [len(cases & held_out) for cases in members.values()]
        held_subjects = {subjects[case] for case in held_out}
        counts = (fold, len(held_subjects), len(held_out), *of_domains, len(split["train"]))
        rows.append(tuple(map(str, counts)))
    heading = ("fold", "its subjects", "its cases", *members, "training cases")
    print_table(console, heading, rows)


def _check(console: "Console", name: str, path: "Path", subjects: "Mapping[str, str]") -> None:
    from nnunet_ext._common.console import print_plain, print_table
    from nnunet_ext.domains import splits
    from nnunet_ext.domains.assignment import named_cases

    if path.exists():
        where, found = str(path), splits.read_splits(path)
    else:
        where = f"nnU-Net's own folds of {name}, as there is no {path}"
        found = splits.nnunets_folds(subjects)
    unknown = {case for split in found for part in split.values() for case in part} - set(subjects)
    if unknown:
        raise UserError(f"{where} name no training cases: {named_cases(sorted(unknown))}.")
    divided = splits.divided_subjects(found, subjects.__getitem__)
    print_plain(console, where, "bold")
    rows = [
        (
            str(fold),
            str(len(split["val"])),
            str(sum(map(len, parted.values()))),
            ", ".join(sorted(parted)),
        )
        for fold, (split, parted) in enumerate(zip(found, divided, strict=True))
    ]
    heading = ("fold", "its cases", "of a patient in training", "patients")
    print_table(console, heading, rows)
    parted_subjects = {subject for parted in divided for subject in parted}
    if parted_subjects:
        held_out = sum(len(split["val"]) for split in found)
        leaked = sum(len(cases) for parted in divided for cases in parted.values())
        raise UserError(
            f"{len(parted_subjects)} of {len(set(subjects.values()))} patients are divided: "
            f"{leaked} of {held_out} held-out cases have one who is in training, too. Without "
            "--check, this command writes folds that keep patients together."
        )
    print_plain(console, f"No fold divides one of the {len(set(subjects.values()))} patients.")
