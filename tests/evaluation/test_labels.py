"""Pairs of labels in every format of nnU-Net's; spoilt ones are in tests/cli/test_evaluate.py."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from skimage.io import imsave

from nnunet_ext._common.errors import UserError
from nnunet_ext.evaluation.labels import read_pair, scheme_of

LABELS = np.zeros((6, 7, 5), np.uint8)
LABELS[1:3, 2:4, 1:4], LABELS[3, 5, 4] = 1, 2
SPACING = (3.0, 0.8, 0.7)


def medical(path: Path, labels: Any) -> None:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING[: -labels.ndim - 1 : -1])
    sitk.WriteImage(image, str(path))


def stack(path: Path, labels: Any) -> None:
    tifffile.imwrite(path, labels, photometric="minisblack")
    path.with_suffix(".json").write_text(json.dumps({"spacing": SPACING}))


def picture(path: Path, labels: Any) -> None:
    imsave(path, labels, check_contrast=False)


def pair_of(folder: Path, ending: str, **described: Any) -> Any:
    content = {"labels": {"background": 0, "both": [1, 2]}, "file_ending": ending, **described}
    truth, prediction = (folder / f"{name}{ending}" for name in ("truth", "prediction"))
    return read_pair(truth, prediction, scheme_of(content, "dataset.json", prediction))


@pytest.mark.parametrize(
    ("ending", "write", "labels", "spacing"),
    [
        (".nii.gz", medical, LABELS, SPACING),
        (".mha", medical, LABELS, SPACING),
        (".nrrd", medical, LABELS[1], SPACING[1:]),
        (".tif", stack, LABELS, SPACING),
        (".tif", picture, LABELS[1], (999, 1, 1)),
        (".png", picture, LABELS[1], (999, 1, 1)),
    ],
)
def test_labels_of_every_format_are_read_with_their_spacing(
    tmp_path: Path, ending: str, write: Any, labels: Any, spacing: tuple[float, ...]
) -> None:
    write(tmp_path / f"truth{ending}", labels)
    write(tmp_path / f"prediction{ending}", labels[::-1].copy())
    pair = pair_of(tmp_path, ending)
    np.testing.assert_array_equal(pair.truth.squeeze(), labels)
    np.testing.assert_array_equal(pair.prediction.squeeze(), labels[::-1])
    assert pair.spacing == pytest.approx(spacing)
    assert not pair.reoriented


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO"])
def test_each_of_nnunets_readers_turns_what_is_stored_otherwise(
    tmp_path: Path, reader: str
) -> None:
    medical(tmp_path / "prediction.nii.gz", LABELS)
    stored = nibabel.load(tmp_path / "prediction.nii.gz")
    turned = stored.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    nibabel.save(turned, tmp_path / "truth.nii.gz")
    pair = pair_of(tmp_path, ".nii.gz", overwrite_image_reader_writer=reader)
    np.testing.assert_array_equal(pair.truth, pair.prediction)
    assert pair.reoriented == (reader != "NibabelIOWithReorient")  # which has done it


def test_stacks_of_other_spacing_do_not_match(tmp_path: Path) -> None:
    stack(tmp_path / "truth.tif", LABELS)
    stack(tmp_path / "prediction.tif", LABELS)
    (tmp_path / "truth.json").write_text(json.dumps({"spacing": (1, 1, 1)}))
    with pytest.raises(UserError, match=r"its spacing is 0.7 x 0.8 x 3, that of the labels 1 x 1"):
        pair_of(tmp_path, ".tif")


def test_colours_are_no_labels(tmp_path: Path) -> None:
    for name in ("truth", "prediction"):
        picture(tmp_path / f"{name}.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"truth.png has 3 channels; labels have one"):
        pair_of(tmp_path, ".png")


def test_a_format_that_nnunet_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.json: Unable to determine a reader"):
        pair_of(tmp_path, ".jpg")
