"""Raw data sets whose images are a line of text: joining and assigning never look inside."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_raw(
    folder: Path,
    cases: Iterable[str],
    channels: int = 1,
    ending: str = ".nii.gz",
    images: str = "imagesTr",
    **content: Any,
) -> Path:
    """Write a raw data set.

    Args:
        folder: Where; its name is the data set's.
        cases: Names of the cases.
        channels: Images per case.
        ending: Of all files.
        images: Name of the folder with the images.
        content: Keys of dataset.json that differ from a data set of one organ.
    """
    for part in (images, "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in cases:
        for channel in range(channels):
            file = folder / images / f"{case}_{channel:04d}{ending}"
            file.write_text(f"{folder.name} {case} {channel}")
        (folder / "labelsTr" / f"{case}{ending}").write_text(f"{folder.name} {case}")
    described = {
        "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ending,
        **content,
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder
