"""Folds that hold out one domain each, or keep every subject's cases together."""

import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TypeAlias

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_json
from nnunet_ext.domains.assignment import cases_by_domain, named_cases, without_domain
from nnunet_ext.nnunet.datasets import RESULTS, nnunet_folder, number_of

SPLITS_FILE = "splits_final.json"

Split: TypeAlias = dict[str, list[str]]
"""``train`` and ``val`` cases of a fold, as in nnU-Net's ``splits_final.json``."""

PLANNING_WARNING = (
    "nnU-Net has planned with all cases: spacing, size and intensities of the held-out domain are "
    "in the fingerprint that spacing, patch size and normalisation come from. For a strict test, "
    "plan and preprocess a data set without that domain."
)


def leave_one_out(domains: Mapping[str, str]) -> list[Split]:
    """One fold per domain, which it holds out, in alphabetical order of the domains."""
    members = cases_by_domain(domains)
    if len(members) < 2:
        there_is = f'only "{next(iter(members))}"' if members else "none"
        raise UserError(
            f"Leaving one domain out needs at least two domains; there is {there_is}. `nnunet-ext "
            "domains DATASET` with --regex or --csv assigns domains."
        )
    return [
        {"train": [case for case in sorted(domains) if domains[case] != held_out], "val": cases}
        for held_out, cases in members.items()
    ]


def grouped_folds(
    cases: Collection[str],
    subject_of: Callable[[str], str],
    number: int = 5,
    stratify: Mapping[str, str] | None = None,
    seed: int = 12345,
) -> list[Split]:
    """Cross-validation folds that never part the cases of a subject.

    The largest subjects are placed first, each in the fold where it adds least to the sum of
    squares of the folds' cases, in all and by domain, relative to how many there are; subjects
    of one size come in random order. scikit-learn's ``StratifiedGroupKFold`` balances like this,
    but without domains it leaves folds of rather different size.

    Args:
        cases: All training cases.
        subject_of: Gives the subject of a case, e.g. ``__getitem__`` of what
            :func:`nnunet_ext.domains.assignment.subjects_from_pattern` finds.
        number: Of folds, at least 2.
        stratify: Domain of every case, if each fold shall get its share of each domain.
        seed: Another one gives other folds, the same one the same, whatever the cases' order.

    Returns:
        ``number`` folds, none empty; their held-out cases are all cases, each once.

    Raises:
        UserError: If there are fewer subjects than folds, fewer than two folds, or a case
            without domain.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases):
        members[subject_of(case)].append(case)
    if number < 2:
        raise UserError(f"{number} folds leave no case to train on; ask for at least 2.")
    if len(members) < 2:
        raise UserError(
            f"All {len(cases)} cases are of one subject, {next(iter(members), 'none')!r}, so no "
            "fold would have others to train on. Does the group of the regular expression match "
            "what tells subjects apart?"
        )
    if len(members) < number:
        raise UserError(
            f"{number} folds need at least as many subjects, but the {len(cases)} cases are of "
            f"{len(members)} subjects. Ask for at most {len(members)} folds."
        )
    missing = [] if stratify is None else without_domain(stratify, cases)
    if missing:
        raise UserError(
            f"{named_cases(missing)} have no domain, so folds cannot be balanced by domain. "
            "`nnunet-ext domains DATASET` with --regex or --csv assigns domains."
        )
    subjects = list(members.values())
    random.Random(seed).shuffle(subjects)
    held_out = _placed(sorted(subjects, key=len, reverse=True), number, stratify or {})
    return [
        {"train": [case for case in sorted(cases) if case not in fold], "val": sorted(fold)}
        for fold in held_out
    ]


def _placed(
    subjects: Iterable[Sequence[str]], number: int, domains: Mapping[str, str]
) -> list[set[str]]:
    def count_domains(cases: Iterable[str]) -> Counter[str | None]:
        # None stands for all cases; an empty fold therefore always comes first
        return Counter(key for case in cases for key in {None, domains.get(case)})

    subjects = list(subjects)
    total = count_domains(case for subject in subjects for case in subject)
    counts = [Counter[str | None]() for _ in range(number)]
    folds: list[set[str]] = [set() for _ in range(number)]
    for subject in subjects:
        added = count_domains(subject)
        growth = [
            sum(added[key] * (2 * there[key] + added[key]) / total[key] for key in added)
            for there in counts
        ]
        best = growth.index(min(growth))
        counts[best] += added
        folds[best].update(subject)
    return folds


def cases_of(splits: Sequence[Split]) -> set[str]:
    """All cases that folds name."""
    return {case for split in splits for part in split.values() for case in part}


def divided_subjects(
    splits: Sequence[Split], subject_of: Callable[[str], str]
) -> list[dict[str, list[str]]]:
    """For each fold: subject -> those of its cases that are held out while others train."""
    found = []
    for split in splits:
        trained = set(map(subject_of, split["train"]))
        divided: dict[str, list[str]] = defaultdict(list)
        for case in split["val"]:
            if subject_of(case) in trained:
                divided[subject_of(case)].append(case)
        found.append(dict(divided))
    return found


def nnunets_folds(cases: Iterable[str]) -> list[Split]:
    """The five folds by case that nnU-Net makes where there is no ``splits_final.json``."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # takes a second

    try:
        made = generate_crossval_split(sorted(cases))
    except ValueError:
        raise UserError("nnU-Net's own five folds need at least five cases.") from None
    return [{key: [str(case) for case in split[key]] for key in split} for split in made]


def read_splits(path: Path) -> list[Split]:
    """Read folds from a ``splits_final.json``.

    Raises:
        UserError: If it cannot be read, is something else, or a fold trains on no case.
    """
    splits = read_json(path)
    if not isinstance(splits, list) or not splits:
        raise UserError(f"{path} must hold a list of folds.")
    for fold, split in enumerate(splits):
        for part in ("train", "val"):
            names = split.get(part) if isinstance(split, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f'{path}: fold {fold} needs a list of cases under "{part}".')
        if not split["train"]:
            raise UserError(f"{path}: fold {fold} has no training cases.")
    return splits


def refuse_other_folds_of_models(
    preprocessed: Path, splits: list[Split], overwrite: bool = False
) -> None:
    """Refuse to replace folds on which models were trained, or to write where nothing is.

    Raises:
        UserError: Naming the models, or the folder that there is not.
    """
    if not preprocessed.is_dir():
        raise UserError(
            f"Folds go to {preprocessed}, which does not exist yet. First run: "
            f"nnUNetv2_plan_and_preprocess -d {number_of(preprocessed.name)}"
        )
    path = preprocessed / SPLITS_FILE
    if overwrite or (path.exists() and read_json(path) == splits):
        return
    trained = trained_folds(preprocessed.name)
    if trained:
        raise UserError(
            f"Models were trained on other folds of {preprocessed.name}: "
            f"{', '.join(map(str, trained[:3]))}{' and more' if trained[3:] else ''}. With "
            "new folds, it would be lost which cases these models were trained on. Move the models "
            f"away, or replace the folds with --overwrite, which keeps the old {SPLITS_FILE} as "
            ".bak."
        )


def write_splits(preprocessed: Path, splits: list[Split]) -> Path | None:
    """Write ``splits_final.json`` of a preprocessed data set.

    Returns:
        Where other folds that were there before are kept, or None.
    """
    path = preprocessed / SPLITS_FILE
    kept = None
    try:
        if path.exists() and read_json(path) != splits:
            names = (f"{SPLITS_FILE}.bak{number or ''}" for number in count())
            kept = next(path.with_name(name) for name in names if not path.with_name(name).exists())
            shutil.copyfile(path, kept)
        write_json(path, splits)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None
    return kept


def trained_folds(dataset: str) -> list[Path]:
    """Folders of nnU-Net's results that hold a model of a numbered fold.

    Raises:
        UserError: If ``nnUNet_results`` is not set, so that nobody can tell.
    """
    models = nnunet_folder(RESULTS, must_exist=False) / dataset
    checkpoints = models.glob("*/fold_[0-9]*/checkpoint_*.pth")
    return sorted({checkpoint.parent for checkpoint in checkpoints})
