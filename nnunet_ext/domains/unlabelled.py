"""Where images without labels lie, so that nnU-Net's own commands never meet them."""

import re
from pathlib import Path

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object
from nnunet_ext.nnunet.datasets import DATASET_JSON, is_hidden, training_cases

FOLDER = "imagesUn"
"""Folder of a raw data set; the files in it are named like those in imagesTr."""


def images_in(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> its images, one per channel, of a folder that may not exist."""
    pattern = re.compile(r"(?P<case>.+)_\d{4}" + re.escape(ending))
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{ending}")):
        match = pattern.fullmatch(path.name)
        if match and not is_hidden(path):
            cases.setdefault(match["case"], []).append(path)
    return cases


def unlabelled_cases(raw: Path) -> dict[str, list[Path]]:
    """Case -> its images, one per file, of those cases of a raw data set that have no labels.

    Raises:
        UserError: If there are none, or one is a training case as well or has another number of
            files than these.
    """
    ending = read_object(raw / DATASET_JSON).get("file_ending", "")
    folder = raw / FOLDER
    cases = images_in(folder, ending)
    if not cases:
        others = [path.name for path in sorted(folder.glob("*")) if not is_hidden(path)]
        there = "it is empty" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"{folder} must hold images without labels, but "
            f"{f'holds {others[0]}' if others else there}. Put them there, named like those in "
            f"imagesTr: CASE_0000{ending}."
        )
    labelled = training_cases(raw)
    both = [case for case in cases if case in labelled]
    if both:
        raise UserError(
            f"{both[0]} has an image in {folder} and is a training case, too. Case names must "
            "be unique: rename or remove one."
        )
    example, files = next((case, files["images"]) for case, files in labelled.items())
    odd = next((case for case, images in cases.items() if len(images) != len(files)), None)
    if odd is not None:
        raise UserError(
            f"{folder} has {len(cases[odd])} files of case {odd}, but training case {example} has "
            f"{len(files)}. Every case needs one file for each channel of dataset.json."
        )
    return cases
