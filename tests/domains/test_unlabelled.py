import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.domains.unlabelled import images_in, unlabelled_cases

MakeRaw = Callable[..., Path]


def test_images_are_grouped_by_case_in_the_order_of_channels(tmp_path: Path) -> None:
    names = ("b_0001.nii.gz", "b_0000.nii.gz", "a_1_0000.nii.gz")
    for name in (*names, "b.nii.gz", "c_0000.png", "c_000.nii.gz"):
        (tmp_path / name).touch()
    found = images_in(tmp_path, ".nii.gz")
    assert {case: [path.name for path in paths] for case, paths in found.items()} == {
        "a_1": ["a_1_0000.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_a_folder_that_does_not_exist_has_no_images(tmp_path: Path) -> None:
    assert images_in(tmp_path / "imagesUn", ".nii.gz") == {}


@pytest.fixture
def raw(make_raw: MakeRaw) -> Path:
    """A data set of one labelled case with two channels, and an empty imagesUn."""
    folder = make_raw("Dataset001_Bern", ["a"], channels=2)
    (folder / "imagesUn").mkdir()
    return folder


def touch(raw: Path, *names: str) -> None:
    for name in names:
        (raw / "imagesUn" / name).touch()


def test_cases_without_labels(raw: Path) -> None:
    touch(raw, "u_0000.nii.gz", "u_0001.nii.gz")
    assert unlabelled_cases(raw) == images_in(raw / "imagesUn", ".nii.gz")


def test_no_images_are_refused(raw: Path) -> None:
    touch(raw, ".DS_Store", "._u_0000.nii.gz")
    with pytest.raises(UserError, match=r"imagesUn must hold .* it is empty\. .*CASE_0000\.nii"):
        unlabelled_cases(raw)
    touch(raw, "u_0000.mha")
    with pytest.raises(UserError, match=r"but holds u_0000\.mha\. Put them there"):
        unlabelled_cases(raw)
    shutil.rmtree(raw / "imagesUn")
    with pytest.raises(UserError, match="there is no such folder"):
        unlabelled_cases(raw)


def test_a_case_that_has_labels_is_refused(raw: Path) -> None:
    touch(raw, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    with pytest.raises(UserError, match=r"a has an image in .*imagesUn and is a training case"):
        unlabelled_cases(raw)


def test_a_missing_channel_is_refused(raw: Path) -> None:
    touch(raw, "u_0000.nii.gz", "u_0001.nii.gz", "v_0001.nii.gz")
    with pytest.raises(UserError, match="1 files of case v, but training case a has 2"):
        unlabelled_cases(raw)
