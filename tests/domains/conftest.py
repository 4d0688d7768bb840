"""Raw data sets whose images are a line of text: joining and assigning never look inside."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

MakeRaw = Callable[..., Path]


@pytest.fixture
def make_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRaw:
    """Write a raw data set; nnU-Net's folders are below ``tmp_path``."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))

    def make(
        name: str,
        cases: Iterable[str],
        channels: int = 1,
        ending: str = ".nii.gz",
        images: str = "imagesTr",
        **content: Any,
    ) -> Path:
        folder = tmp_path / "nnUNet_raw" / name
        for part in (images, "labelsTr"):
            (folder / part).mkdir(parents=True)
        for case in cases:
            for channel in range(channels):
                file = folder / images / f"{case}_{channel:04d}{ending}"
                file.write_text(f"{name} {case} {channel}")
            (folder / "labelsTr" / f"{case}{ending}").write_text(f"{name} {case}")
        described = {
            "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
            "labels": {"background": 0, "organ": 1},
            "file_ending": ending,
            **content,
        }
        (folder / "dataset.json").write_text(json.dumps(described))
        return folder

    return make
