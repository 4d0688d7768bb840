"""``nnunet-ext folds``: folds that never part the cases of a patient."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Option

from nnunet_ext._common.console import say, show_table
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object
from nnunet_ext.cli.domains import place_folds
from nnunet_ext.cli.options import Dataset, Overwrite
from nnunet_ext.domains import assignment, splits, store
from nnunet_ext.nnunet.datasets import PREPROCESSED, find_dataset, nnunet_folder

Subject = Annotated[
    str, Option(metavar="REGEX", help="The only group of REGEX matches the patient in a case name.")
]
Check = Annotated[
    bool, Option("--check", help="Write nothing; list patients in both training and validation.")
]


class Strata(str, Enum):
    """What every fold can get its share of."""

    DOMAINS = "domains"


def command(
    dataset: Dataset,
    subject: Subject,
    number: Annotated[int, Option(help="Number of folds.")] = 5,
    stratify: Annotated[
        Strata | None, Option(help="Spread the cases of each domain evenly over the folds.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the random folds.")] = 12345,
    check: Check = False,
    overwrite: Overwrite = False,
) -> None:
    """Write folds of a data set that keep all cases of a patient together.

    nnU-Net's own folds are random by case: with several scans of a patient, most patients in
    validation are in training as well, and scores come out too high. Writes splits_final.json,
    which every trainer of nnU-Net uses. --check looks at the existing folds, or at those
    that nnU-Net would make, and ends with exit code 1 if one has a patient in both parts.

    \b
    Examples:
      nnunet-ext folds 102 --subject "_(\\d+)$" --stratify domains
      nnunet-ext folds 102 --subject "_(\\d+)$" --check
    """
    name = find_dataset(dataset)
    cases = store.case_names(name)
    subjects = assignment.subjects_from_pattern(subject, cases)
    preprocessed = nnunet_folder(PREPROCESSED) / name
    if check:
        _check(name, preprocessed / splits.SPLITS_FILE, subjects)
        return
    source, *_ = store.dataset_json_paths(name)
    domains = assignment.read_domains(read_object(source), str(source))
    made = splits.grouped_folds(
        cases, subjects.__getitem__, number, domains if stratify else None, seed
    )
    splits.refuse_other_folds_of_models(preprocessed, made, overwrite)
    count = len(set(subjects.values()))
    say(f"{name}: {len(made)} folds of {count} subjects, {len(subjects)} cases", "bold")
    members = assignment.cases_by_domain(domains)
    rows = []
    for fold, split in enumerate(made):
        held_out = set(split["val"])
        of_domains = [len(held_out.intersection(cases)) for cases in members.values()]
        patients = {subjects[case] for case in held_out}
        rows.append((fold, len(patients), len(held_out), *of_domains, len(split["train"])))
    show_table(("fold", "its subjects", "its cases", *members, "training cases"), rows)
    place_folds(preprocessed, made)


def _check(name: str, path: Path, subjects: Mapping[str, str]) -> None:
    if path.exists():
        where, found = str(path), splits.read_splits(path)
    else:
        where = f"nnU-Net's own folds of {name}, as there is no {path}"
        found = splits.nnunets_folds(subjects)
    if unknown := splits.cases_of(found) - set(subjects):
        cases = assignment.named_cases(sorted(unknown))
        raise UserError(
            f"{where} has cases that are not training cases of {name}: {cases}. Correct the file, "
            "or run this command without --check to write new folds."
        )
    divided = splits.divided_subjects(found, subjects.__getitem__)
    leaked = [sum(map(len, parted.values())) for parted in divided]
    held_out = [len(split["val"]) for split in found]
    patients = [", ".join(sorted(parted)) for parted in divided]
    say(where, "bold")
    heading = ("fold", "its cases", "of a patient in training", "patients")
    show_table(heading, list(zip(range(len(found)), held_out, leaked, patients, strict=True)))
    all_subjects = len(set(subjects.values()))
    if any(divided):
        raise UserError(
            f"{len(set().union(*divided))} of {all_subjects} patients are in both training and "
            f"validation of a fold, with {sum(leaked)} of {sum(held_out)} held-out cases. Run this "
            "command without --check to write folds that keep patients together."
        )
    say(f"None of the {all_subjects} patients is in both training and validation of a fold.")
