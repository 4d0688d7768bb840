"""Slices with labels, as the demo and the benchmark's report show them."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.io import imsave

from nnunet_ext._common.pictures import draw_labels, draw_slice, read_voxels, telling_slice


def test_slice_shows_all_labels_across_the_coarse_axis() -> None:
    truth = np.zeros((8, 10, 12), np.uint8)
    truth[:, 2:8, 2:6] = 1
    truth[3:6, 4, 6] = 2
    axis, index = telling_slice(truth, truth, (1.0, 1.0, 3.0))
    assert (axis, index) == (2, 6)  # the big label is not there, the rare one is only there
    truth[:, 2:8, 6] = 1
    truth[3:6, 4, 6] = 2
    axis, index = telling_slice(truth, truth, (3.0, 1.0, 1.0))
    assert axis == 0
    assert index in range(3, 6)


def test_single_slice_is_seen_from_the_front_whatever_its_spacing() -> None:
    truth = np.zeros((1, 10, 12), np.uint8)
    assert telling_slice(truth, truth, (1.0, 3.0, 1.0)) == (0, 0)


def test_photographs_are_read_as_one_slice_in_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 4), dtype=np.uint8)
    imsave(tmp_path / "rgba.png", pixels, check_contrast=False)
    imsave(tmp_path / "labels.png", pixels[..., 0], check_contrast=False)
    colours, spacing = read_voxels(tmp_path / "rgba.png")
    assert np.array_equal(colours, pixels[None, ..., :3])
    assert spacing[0] > spacing[1] == spacing[2]
    assert np.array_equal(read_voxels(tmp_path / "labels.png")[0], pixels[None, ..., 0])


@pytest.mark.parametrize("shape", [(6, 8), (5, 6, 8)])
def test_medical_images_are_read_as_slices(tmp_path: Path, shape: tuple[int, ...]) -> None:
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([float(i + 1) for i in range(len(shape))])
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    array, spacing = read_voxels(tmp_path / "image.nrrd")
    assert np.array_equal(array, voxels.reshape(array.shape))
    assert array.ndim == 3
    assert spacing[1:] == (2.0, 1.0)


def test_stack_in_a_tiff_is_not_taken_for_a_photograph(tmp_path: Path) -> None:
    stack = np.zeros((5, 6, 8), np.uint8)
    imsave(tmp_path / "stack.tif", stack, check_contrast=False)
    assert read_voxels(tmp_path / "stack.tif")[0].shape == stack.shape


def drawn(filled: np.ndarray, outlined: np.ndarray, colours: dict[tuple[int, ...], str]) -> set:
    """Colours that are seen over a black square."""
    figure = Figure(figsize=(1, 1), dpi=100)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_slice(axes, np.zeros((10, 10)), 1.0)
    draw_labels(axes, filled, outlined, colours, opacity=1.0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    return {tuple(int(value) for value in pixel) for pixel in pixels[..., :3].reshape(-1, 3)}


def test_region_is_coloured_with_all_its_labels() -> None:
    empty, labels = np.zeros((10, 10), int), np.zeros((10, 10), int)
    labels[2:5, 2:8] = 1
    labels[5:8, 2:8] = 2
    red, blue = (255, 0, 0), (0, 0, 255)
    assert red in drawn(labels, empty, {(1, 2): "#ff0000"})
    seen = drawn(labels, empty, {(1, 2): "#ff0000", (2,): "#0000ff"})
    assert {red, blue} <= seen
    assert red in drawn(empty, labels, {(1, 2): "#ff0000"})
    assert drawn(empty, empty, {(1, 2): "#ff0000"}) == {(0, 0, 0)}
