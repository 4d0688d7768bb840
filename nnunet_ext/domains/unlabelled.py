"""Where images without labels lie, so that nnU-Net's own commands never meet them."""

import re
from pathlib import Path

FOLDER = "imagesUn"
"""Folder of a raw data set; the files in it are named like those in imagesTr."""


def images_in(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> its images, one per channel, of a folder that may not exist.

    Args:
        folder: Holds images named like nnU-Net's, ``CASE_0000.nii.gz``.
        ending: Of the images' names, ``.nii.gz``.
    """
    pattern = re.compile(r"(?P<case>.+)_\d{4}" + re.escape(ending))
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{ending}")):
        if match := pattern.fullmatch(path.name):
            cases.setdefault(match["case"], []).append(path)
    return cases
