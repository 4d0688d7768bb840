"""nnU-Net's folders, and the data sets in them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object
from nnunet_ext._common.near import did_you_mean

RAW = "nnUNet_raw"
PREPROCESSED = "nnUNet_preprocessed"
RESULTS = "nnUNet_results"
"""nnU-Net's environment variables."""

DATASET_JSON = "dataset.json"

_NAME = re.compile(r"Dataset(?P<number>\d{3})_(?P<short>.+)")


def nnunet_folder(variable: str, must_exist: bool = True) -> Path:
    """A folder that nnU-Net's environment names.

    Raises:
        UserError: If the variable is not set, or a folder that must exist does not.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"The environment variable {variable} is not set. Set it to nnU-Net's folder, "
            f"for example: export {variable}=/data/{variable}"
        )
    if must_exist and not Path(value).is_dir():
        raise UserError(
            f"{variable} is {value}, but there is no such folder. Create it or correct {variable}."
        )
    return Path(value)


def find_dataset(dataset: str, *variables: str) -> str:
    """Full name of a data set that nnU-Net's folders hold.

    Args:
        dataset: Number (4), name (Hippocampus) or full name (Dataset004_Hippocampus).
        variables: Where to look; default is among raw and preprocessed data sets.

    Raises:
        UserError: If there is none or several; says what there is.
    """
    variables = variables or (RAW, PREPROCESSED)
    folders = [nnunet_folder(variable) for variable in variables]
    paths = [path for folder in folders for path in folder.glob("Dataset*") if path.is_dir()]
    names = sorted({path.name for path in paths if _NAME.fullmatch(path.name)})
    if dataset in names:
        return dataset
    if dataset.isascii() and dataset.isdigit():
        found = [name for name in names if int(number_of(name)) == int(dataset)]
    else:
        found = [name for name in names if short_name(name) == dataset]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f'"{dataset}" fits several data sets: {", ".join(found)}. Give the full name.'
        )
    cure = " nnUNetv2_plan_and_preprocess -d DATASET puts one there."
    raise UserError(
        f'There is no data set "{dataset}" in {" or ".join(map(str, folders))}.'
        f"{did_you_mean(dataset, names)} There are: {', '.join(names) or 'none'}."
        f"{cure if variables == (PREPROCESSED,) else ''}"
    )


def number_of(name: str) -> str:
    """The three digits of a data set's full name."""
    return _NAME.sub(r"\g<number>", name)


def short_name(name: str) -> str:
    """What stands behind the number in a data set's full name."""
    return _NAME.sub(r"\g<short>", name)


def is_hidden(path: Path) -> bool:
    """Whether a file is none of ours, such as the ``._case.nii.gz`` that macOS leaves behind."""
    return path.name.startswith(".")


def training_cases(raw: Path) -> dict[str, dict[str, Any]]:
    """Training cases of a raw data set, as nnU-Net finds them.

    Returns:
        Case -> its ``images`` (paths, one per channel) and ``label`` (path).

    Raises:
        UserError: If there are none, or dataset.json is damaged.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    described = read_object(raw / DATASET_JSON)
    try:
        cases: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(
            str(raw), described
        )
    except KeyError as error:
        raise UserError(f"{raw / DATASET_JSON} has no key {error}.") from None
    except FileNotFoundError as error:
        raise UserError(f"{raw} is not a raw data set: there is no {error.filename}.") from None
    # nnU-Net takes the ._case_0000.nii.gz of macOS for one of a case called ._case
    shown = {str(case): files for case, files in cases.items() if not is_hidden(Path(str(case)))}
    if not shown:
        raise UserError(
            f"{raw} has no training cases. Do the files in imagesTr end as file_ending in "
            f"{DATASET_JSON} says?"
        )
    return shown


def label_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Label or region as nnU-Net's summaries name it -> its name in dataset.json.

    Background and ignore label are left out.
    """
    labels = dataset_json["labels"]
    # to nnU-Net, lists are regions only where one of them has several values
    has_regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())

    def key(value: Any) -> str:
        if not isinstance(value, list):
            return str(value)
        return str(tuple(value) if has_regions else value[0])

    keys = {name: key(value) for name, value in labels.items()}
    return {k: name for name, k in keys.items() if k != "0" and name != "ignore"}
