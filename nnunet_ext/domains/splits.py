"""Folds that hold out one domain each."""

import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TypeAlias

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_json
from nnunet_ext.domains.assignment import cases_by_domain
from nnunet_ext.nnunet.datasets import RESULTS, nnunet_folder

SPLITS_FILE = "splits_final.json"

Split: TypeAlias = dict[str, list[str]]
"""``train`` and ``val`` cases of a fold, as in nnU-Net's ``splits_final.json``."""

PLANNING_WARNING = (
    "nnU-Net has planned with all cases: spacing, size and intensities of the held-out domain are "
    "in the fingerprint that spacing, patch size and normalisation come from. For a strict test, "
    "plan and preprocess a data set without that domain."
)


def leave_one_out(domains: Mapping[str, str]) -> list[Split]:
    """One fold per domain, which it holds out, in alphabetical order of the domains.

    Args:
        domains: Domain of every training case.

    Raises:
        UserError: If there are fewer than two domains.
    """
    members = cases_by_domain(domains)
    if len(members) < 2:
        there_is = f'only "{next(iter(members))}"' if members else "none"
        raise UserError(f"Leaving one domain out needs at least two domains; there is {there_is}.")
    return [
        {"train": [case for case in sorted(domains) if domains[case] != held_out], "val": cases}
        for held_out, cases in members.items()
    ]


def refuse_other_folds_of_models(preprocessed: Path, splits: list[Split]) -> None:
    """Refuse to replace folds on which models were trained.

    Args:
        preprocessed: Folder of the preprocessed data set.
        splits: The new folds.

    Raises:
        UserError: Naming the models.
    """
    path = preprocessed / SPLITS_FILE
    if path.exists() and read_json(path) == splits:
        return
    trained = trained_folds(preprocessed.name)
    if trained:
        raise UserError(
            f"Models were trained on other folds of {preprocessed.name}: "
            f"{', '.join(map(str, trained[:3]))}{' and more' if trained[3:] else ''}. With "
            "other folds, nobody could tell which cases these have seen. Move the models away, or "
            f"replace the folds all the same with --overwrite, which keeps the old {SPLITS_FILE} "
            "as .bak."
        )


def write_splits(preprocessed: Path, splits: list[Split]) -> Path | None:
    """Write ``splits_final.json`` of a preprocessed data set.

    Returns:
        Where other folds that were there before are kept, or None.

    Raises:
        UserError: If it cannot be written.
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
