"""The two copies of dataset.json, raw and preprocessed, kept in step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object, write_jsons
from nnunet_ext.domains.assignment import DOMAINS_KEY
from nnunet_ext.nnunet.datasets import (
    DATASET_JSON,
    PREPROCESSED,
    RAW,
    is_hidden,
    nnunet_folder,
    training_cases,
)


def dataset_json_paths(dataset: str) -> list[Path]:
    """Where dataset.json of a data set lies, links resolved: raw, then preprocessed."""
    folders = [nnunet_folder(variable) / dataset for variable in (RAW, PREPROCESSED)]
    paths = [folder / DATASET_JSON for folder in folders]
    # a link stays a link when the file that it leads to is replaced
    existing = [path.resolve() for path in paths if path.is_file()]
    if not existing:
        raise UserError(f"There is neither {paths[0]} nor {paths[1]}.")
    return existing


def case_names(dataset: str) -> list[str]:
    """All training cases of a data set, in alphabetical order."""
    raw = nnunet_folder(RAW) / dataset
    if raw.is_dir():
        return sorted(training_cases(raw))
    # raw images may have been put away after preprocessing
    ending = read_object(dataset_json_paths(dataset)[0])["file_ending"]
    truth = nnunet_folder(PREPROCESSED) / dataset / "gt_segmentations"
    files = (path for path in truth.glob(f"*{ending}") if not is_hidden(path))
    return sorted(path.name.removesuffix(ending) for path in files)


def save_domains(dataset: str, domains: Mapping[str, str]) -> list[Path]:
    """Write the domains into all copies of dataset.json that have others, in one go.

    Returns:
        The files that were written.

    Raises:
        UserError: If one of them cannot be written; then none is.
    """
    found = {path: read_object(path) for path in dataset_json_paths(dataset)}
    contents: dict[Path, dict[str, Any]] = {
        path: content | {DOMAINS_KEY: dict(sorted(domains.items()))}
        for path, content in found.items()
        if content.get(DOMAINS_KEY) != domains
    }
    try:
        write_jsons(contents)
    except OSError as error:
        raise UserError(f"Cannot write {error.filename}: {error.strerror}.") from None
    return list(contents)
