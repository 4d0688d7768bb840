from pathlib import Path

from nnunet_ext.domains.unlabelled import images_in


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
