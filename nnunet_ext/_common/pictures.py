"""Pictures of one slice and its labels, to judge a segmentation by eye."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's, which colour-blind people can tell apart; labels beyond repeat them."""

LINE_COLOURS = tuple(COLOURS[i] for i in (6, 5, 2, 3, 1, 0))
"""The same without the yellow, which is too pale for lines on white."""

PHOTOGRAPHS = (".png", ".bmp", ".tif", ".tiff")
"""Formats that nnU-Net reads without a medical reader; they hold no orientation."""

SINGLE_SLICE = 999.0
"""Distance of the next slice where there is none, as in nnU-Net."""


def read_voxels(file: Path) -> "tuple[NDArray[Any], tuple[float, ...]]":
    """Read an image or its labels.

    Returns:
        Voxels as (slices, rows, columns), head to the top, with a last axis of 3 if they are
        colours, and the spacing of the first three axes.
    """
    import SimpleITK as sitk  # noqa: N813

    if file.suffix.lower() in PHOTOGRAPHS:
        from skimage.io import imread

        array = imread(file)
        if array.ndim == 3 and array.shape[-1] not in (3, 4):  # a stack, not a photograph
            return array, (1.0, 1.0, 1.0)
        return array[None, ..., :3] if array.ndim == 3 else array[None], (SINGLE_SLICE, 1.0, 1.0)
    image = sitk.ReadImage(str(file))
    if image.GetDimension() == 2:
        return sitk.GetArrayFromImage(image)[None], (SINGLE_SLICE, *image.GetSpacing()[::-1])
    image = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def telling_slice(
    truth: "NDArray[np.integer[Any]]",
    prediction: "NDArray[np.integer[Any]]",
    spacing: tuple[float, ...],
) -> tuple[int, int]:
    """Axis and index of the slice that shows most labels, and most of the rarest of them.

    Slices are taken as they were acquired, that is across the coarsest spacing.
    """
    import numpy as np

    axis = int(np.argmax(spacing)) if max(spacing) > 1.5 * min(spacing) else 0
    if 1 in truth.shape:
        axis = truth.shape.index(1)
    others = tuple(i for i in range(truth.ndim) if i != axis)
    reference = truth if truth.any() else prediction
    shares = [
        (reference == label).sum(axis=others) / (reference == label).sum()
        for label in np.unique(reference)
        if label
    ]
    if not shares:
        return axis, truth.shape[axis] // 2
    # the product's logarithm: a slice without some label cannot win through another's size
    score = np.sum([np.log(share + 1e-3) for share in shares], axis=0)
    return axis, int(np.argmax(score))


def aspect_of(spacing: tuple[float, ...], axis: int) -> float:
    """Height of a pixel by its width, in slices across ``axis``."""
    height, width = (step for i, step in enumerate(spacing) if i != axis)
    return height / width


def draw_slice(axes: "Axes", picture: "NDArray[Any]", aspect: float) -> None:
    """Draw pixels (rows, columns) or (rows, columns, 3), from the darkest to the brightest.

    Args:
        axes: Where to draw.
        picture: Pixels; the extreme half per cent on either side are cut off.
        aspect: Height of a pixel by its width.
    """
    import numpy as np

    low, high = np.percentile(picture, [0.5, 99.5])
    shown = np.clip((picture - low) / max(high - low, 1e-6), 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_labels(
    axes: "Axes",
    filled: "NDArray[Any]",
    outlined: "NDArray[Any]",
    colours: Mapping[Any, str],
    *,
    opacity: float = 0.3,
    line: float = 1.6,
) -> None:
    """Draw labels over a slice.

    Args:
        axes: Where the slice is drawn.
        filled: Labels (rows, columns) that are drawn as areas.
        outlined: Labels (rows, columns) that are drawn as lines.
        colours: Label, or a tuple of labels that make up a region -> colour.
        opacity: Of the areas.
        line: Width of the lines, in points.
    """
    import numpy as np
    from matplotlib.colors import to_rgba

    areas = np.zeros((*filled.shape, 4))
    for label, colour in colours.items():
        areas[np.isin(filled, label)] = to_rgba(colour, opacity)
        mask = np.isin(outlined, label)
        if mask.any() and not mask.all():
            axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=line)
    axes.imshow(areas, aspect=axes.get_aspect(), interpolation="nearest")
