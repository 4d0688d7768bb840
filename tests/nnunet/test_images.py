"""In every format of nnU-Net's, its own readers find the new voxels and the old rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from numpy.typing import NDArray
from skimage.io import imread, imsave

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet.images import copy_image, read_image

RNG = np.random.default_rng(0)
SPACING = (0.7, 0.8, 3.0)
ORIGIN = (-10.0, 5.0, 2.0)
TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def medical(path: Path, shape: tuple[int, ...], dtype: str, *, vector: bool = False) -> None:
    image = sitk.GetImageFromArray(RNG.integers(0, 99, shape).astype(dtype), isVector=vector)
    if image.GetDimension() == 3:
        image.SetDirection(TURNED)
    image.SetSpacing((*SPACING, 1.0)[: image.GetDimension()])
    image.SetOrigin((*ORIGIN, 0.0)[: image.GetDimension()])
    sitk.WriteImage(image, path)


def picture(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    imsave(path, RNG.integers(0, 99, shape).astype(dtype), check_contrast=False)


def stack(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = RNG.integers(0, 99, shape).astype(dtype)
    tifffile.imwrite(path, array, photometric="minisblack")
    case = path.with_name(f"{path.stem.removesuffix('_0000')}.json")
    case.write_text(json.dumps({"spacing": SPACING}))


FILES = pytest.mark.parametrize(
    ("ending", "make", "shape", "dtype", "channels", "spacing"),
    [
        (".nii.gz", medical, (4, 5, 6), "int16", 1, SPACING[::-1]),
        (".mha", medical, (4, 5, 6), "float32", 1, SPACING[::-1]),
        (".nrrd", medical, (5, 6), "uint8", 1, SPACING[1::-1]),
        (".nii.gz", medical, (2, 4, 5, 6), "float32", 2, SPACING[::-1]),
        (".png", picture, (5, 6), "uint16", 1, (1, 1)),
        (".png", picture, (5, 6, 3), "uint8", 3, (1, 1)),
        (".bmp", picture, (5, 6, 3), "uint8", 3, (1, 1)),
        (".tif", picture, (5, 6, 3), "uint8", 3, (1, 1)),
        (".tif", picture, (5, 6), "float32", 1, (1, 1)),
        (".tif", stack, (4, 5, 6), "uint16", 1, SPACING),
        (".tiff", stack, (4, 5, 6), "float32", 1, SPACING),
    ],
)


def as_nnunet_reads(path: Path, ending: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    reader = determine_reader_writer_from_file_ending(ending, str(path), verbose=False)
    voxels, properties = reader().read_images((str(path),))
    return voxels, properties


@FILES
@pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net tries readers until one fits
def test_nnunet_finds_other_voxels_and_the_same_geometry(
    tmp_path: Path,
    ending: str,
    make: Any,
    shape: tuple[int, ...],
    dtype: str,
    channels: int,
    spacing: tuple[float, ...],
) -> None:
    source, target = tmp_path / f"case_0000{ending}", tmp_path / "to" / f"case_0000{ending}"
    target.parent.mkdir()
    make(source, shape, dtype)
    image = read_image(source)
    assert image.voxels.dtype == dtype
    assert len(image.voxels) == channels
    np.testing.assert_allclose(image.spacing, spacing)
    before, geometry = as_nnunet_reads(source, ending)
    np.testing.assert_array_equal(image.voxels.reshape(before.shape), before)

    image.save(image.voxels[..., ::-1] + image.voxels.dtype.type(1), target)
    after, same_geometry = as_nnunet_reads(target, ending)
    np.testing.assert_array_equal(after, before[..., ::-1] + 1)
    assert same_geometry == geometry
    assert read_image(target).voxels.dtype == dtype
    assert {path.name for path in target.parent.iterdir()} <= {target.name, "case.json"}


def test_colours_of_medical_formats_are_channels(tmp_path: Path) -> None:
    medical(tmp_path / "a.mha", (4, 5, 6, 3), "uint8", vector=True)
    image = read_image(tmp_path / "a.mha")
    assert image.voxels.shape == (3, 4, 5, 6)
    assert image.spacing == SPACING[::-1]
    image.save(image.voxels, tmp_path / "b.mha")
    np.testing.assert_array_equal(read_image(tmp_path / "b.mha").voxels, image.voxels)


def test_alpha_is_no_colour_and_stays(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (5, 6, 4), "uint8")
    image = read_image(tmp_path / "a.png")
    assert image.voxels.shape == (3, 5, 6)
    image.save(image.voxels + np.uint8(1), tmp_path / "b.png")
    before, after = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    np.testing.assert_array_equal(after[..., :3], before[..., :3] + 1)
    np.testing.assert_array_equal(after[..., 3], before[..., 3])


def test_a_mask_of_one_bit_keeps_label_one(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (6, 5), 1).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    image.save(image.voxels, tmp_path / "b.png")
    np.testing.assert_array_equal(imread(tmp_path / "b.png"), np.ones((5, 6)))


@pytest.mark.parametrize("link", [True, False])
def test_a_copy_takes_the_spacing_beside_a_stack_with_it(tmp_path: Path, link: bool) -> None:
    stack(tmp_path / "case.tif", (4, 5, 6), "uint8")
    (tmp_path / "to").mkdir()
    copy_image(tmp_path / "case.tif", tmp_path / "to" / "other.tif", link=link)
    assert (tmp_path / "to" / "other.tif").is_symlink() == link
    assert read_image(tmp_path / "to" / "other.tif").spacing == SPACING


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png", "a.tif", "a.xyz"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"Cannot read the image .*{name}: \S"):
        read_image(tmp_path / name)
    with pytest.raises(UserError, match="absent"):
        read_image(tmp_path / f"absent{name}")


@pytest.mark.parametrize(("name", "shape"), [("a.png", (5, 6, 2)), ("a.tif", (2, 3, 4, 5))])
def test_shapes_that_nnunet_refuses_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    array = RNG.integers(0, 99, shape).astype("uint8")
    if name.endswith("png"):
        imsave(tmp_path / name, array)
    else:
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack")
    with pytest.raises(UserError, match=r"its shape is \("):
        read_image(tmp_path / name)
