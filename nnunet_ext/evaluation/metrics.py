"""Segmentation metrics of one case.

Which metrics, and how they are defined, follows Metrics Reloaded (Maier-Hein, Reinke et al.,
Nature Methods 21, 2024): one that counts voxels, one that counts boundary, and distances. The
normalised surface Dice is that of Nikolov et al. (J Med Internet Res 23, 2021), with the
surface at sub-voxel resolution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects, label
from scipy.spatial import KDTree


@dataclass(frozen=True)
class Metric:
    """One of the measured metrics."""

    key: str  # its column in the scores
    name: str  # as it is shown
    decimals: int  # that are shown
    higher: bool  # is better
    bounds: tuple[float, float]

    def head(self, unit: str) -> str:
        """Name of its column."""
        measured = f" ({unit})" if unit and not self.higher else ""
        return f"{self.name}{measured} {'↑' if self.higher else '↓'}"


DICE = Metric("dice", "Dice", 3, True, (0, 1))
METRICS = (
    DICE,
    Metric("nsd", "NSD", 3, True, (0, 1)),
    Metric("hd95", "HD95", 2, False, (0, math.inf)),
    Metric("assd", "ASSD", 2, False, (0, math.inf)),
)
METRIC = {metric.key: metric for metric in METRICS}
MEASURES = tuple(METRIC)
LESION_MEASURES = ("recall", "precision", "f1")

Region: TypeAlias = int | tuple[int, ...]
"""A label, or labels that are measured as one structure."""

Mask: TypeAlias = NDArray[np.bool_]
Points: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Measures:
    """How well one region of one case was segmented.

    All are NaN where the region is in neither truth nor prediction. Where it is in one of them
    only, they are the worst that is possible: 0, and the length of the image's diagonal.

    Attributes:
        dice: Dice, from 0 to 1, counted as nnU-Net counts it.
        nsd: Normalised surface Dice, from 0 to 1: the share of both surfaces that is no farther
            from the other one than the smallest spacing of the image, that is one voxel along
            the finest axis. One voxel across thick slices is an error in this metric.
        hd95: The larger of the two directed 95th percentiles of the distances between the
            border voxels, in units of the spacing.
        assd: Mean of these distances, those of both directions pooled, in units of the spacing.
        empty: Who lacks the region: ``"prediction"``, ``"truth"``, ``"both"`` or ``""``.
    """

    dice: float
    nsd: float
    hd95: float
    assd: float
    empty: str


@dataclass(frozen=True)
class Lesions:
    """How many lesions of one structure of one case were found.

    A lesion is what hangs together, over corners too. One of the truth is found, and one of the
    prediction right, if it shares a voxel with the other side: the rule of ISLES 2022 (Hernandez
    Petzsche et al., Scientific Data 9, 2022). A prediction that floods the image finds
    everything; look at Dice, too.
    """

    true: int  # of the truth
    found: int  # of these
    predicted: int
    right: int  # of these

    @property
    def recall(self) -> float:
        """Share of the truth's lesions that were found, NaN if there are none."""
        return self.found / self.true if self.true else math.nan

    @property
    def precision(self) -> float:
        """Share of the prediction's lesions that are right, NaN if there are none."""
        return self.right / self.predicted if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 if only one side has lesions, NaN if neither."""
        if not (self.found and self.right):
            return 0.0 if self.true or self.predicted else math.nan
        return 2 / (1 / self.recall + 1 / self.precision)


def measure(
    truth: NDArray[Any],
    prediction: NDArray[Any],
    spacing: Sequence[float],
    regions: Sequence[Region],
    ignore: int | None = None,
) -> dict[Region, Measures]:
    """Compare a prediction with the truth, region by region.

    Args:
        truth: True labels, of two or three axes. Three of which one has length one are two.
        prediction: Predicted labels, of the same shape.
        spacing: Size of a voxel along each axis of the arrays, usually in mm.
        regions: What to measure.
        ignore: Label of the truth whose voxels count as background in both arrays.

    Raises:
        ValueError: If the shapes differ, or do not go with the spacing.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"The truth's shape is {truth.shape}, the prediction's {prediction.shape}")
    if truth.ndim not in (2, 3) or len(spacing) != truth.ndim:
        raise ValueError(
            f"Need two or three axes and a spacing for each, got shape {truth.shape} and "
            f"spacing {tuple(spacing)}"
        )
    steps = [float(step) for step in spacing]
    if truth.ndim == 3 and 1 in truth.shape:
        flat = truth.shape.index(1)
        truth, prediction = truth.take(0, flat), prediction.take(0, flat)
        del steps[flat]
    return {
        region: _measure_masks(*_masks(truth, prediction, region, ignore), steps)
        for region in regions
    }


def count_lesions(
    truth: NDArray[Any], prediction: NDArray[Any], regions: Sequence[Region], ignore: int | None
) -> dict[Region, Lesions]:
    """Count the lesions of each region; arguments are those of :func:`measure`."""
    found = {}
    for region in regions:
        masks = _masks(truth, prediction, region, ignore)
        both = masks[0] & masks[1]
        counts = []
        for mask in masks:
            lesions, number = label(mask, np.ones([3] * mask.ndim))
            counts += [number, len(np.unique(lesions[both]))]
        found[region] = Lesions(*counts)
    return found


def _masks(
    truth: NDArray[Any], prediction: NDArray[Any], region: Region, ignore: int | None
) -> tuple[Mask, Mask]:
    counted = True if ignore is None else truth != ignore
    return np.isin(truth, region) & counted, np.isin(prediction, region) & counted


def _measure_masks(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> Measures:
    masks = {"prediction": prediction, "truth": truth}
    empty = [name for name, mask in masks.items() if not mask.any()]
    if len(empty) == 2:
        return Measures(math.nan, math.nan, math.nan, math.nan, "both")
    if empty:
        diagonal = math.hypot(*(n * step for n, step in zip(truth.shape, spacing, strict=True)))
        return Measures(0.0, 0.0, diagonal, diagonal, empty[0])
    (box,) = find_objects((truth | prediction).astype(np.uint8))
    truth, prediction = truth[box], prediction[box]
    dice = 2 * np.sum(truth & prediction) / (np.sum(truth) + np.sum(prediction))
    borders = [np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in (truth, prediction)]
    distances = _directed_distances(*borders)
    hd95 = max(np.percentile(directed, 95) for directed in distances)
    assd = np.concatenate(distances).mean(dtype=float)
    nsd = _surface_dice(truth, prediction, spacing)
    return Measures(float(dice), nsd, float(hd95), float(assd), "")


def _directed_distances(one: Points, other: Points) -> list[NDArray[np.float32]]:
    """From each point to the nearest one of the other set, for both sets.

    In single precision, so that a distance of exactly the tolerance is not above it by rounding.
    """
    return [
        KDTree(end, leafsize=32).query(start)[0].astype(np.float32)
        for start, end in ((one, other), (other, one))
    ]


def _surface_dice(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> float:
    (one, one_areas), (other, other_areas) = (_surface(m, spacing) for m in (truth, prediction))
    near = np.concatenate(_directed_distances(one, other)) <= np.float32(min(spacing))
    areas = np.concatenate([one_areas, other_areas])
    return float(areas[near].sum() / areas.sum())


def _surface(mask: Mask, spacing: Sequence[float]) -> tuple[Points, NDArray[np.float64]]:
    """Where the surface runs between neighbouring voxels: (N, axes) positions, (N,) areas."""
    padded = np.pad(mask, 1)
    if mask.ndim == 2:  # a contour is the surface of a slab of thickness 1
        padded = np.stack([padded, padded], axis=-1)
    codes = np.zeros([length - 1 for length in padded.shape], np.uint8)
    for bit, corner in enumerate(np.ndindex(2, 2, 2)):
        part = tuple(slice(at, at + n) for at, n in zip(corner, codes.shape, strict=True))
        codes |= padded[part].astype(np.uint8) << np.uint8(bit)
    cells = np.argwhere((codes != 0) & (codes != 255))
    owners, elements = _surface_elements()
    steps = np.array([*spacing, 1.0][:3])
    sizes = np.linalg.norm(elements * steps.prod() / steps, axis=1)
    areas = np.bincount(owners, sizes, minlength=256)
    return cells[:, : mask.ndim] * spacing, areas[codes[tuple(cells.T)]]


@cache
def _surface_elements() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Triangles of the surface in a cell of 2 x 2 x 2 voxels, for each way to fill it.

    By the marching cubes of Lorensen and Cline (SIGGRAPH 1987), where a cell and its complement
    have one surface; their cases, and with them ours, are also Nikolov et al.'s.

    Returns:
        (N,) codes of the cells, bit i being voxel i, and (N, 3) vectors perpendicular to their
        triangles, as long as these are large.
    """
    from skimage.measure import marching_cubes

    owners, elements = [], []
    for code in range(1, 255):
        fewer = code if code.bit_count() <= 4 else 255 - code
        cell = np.array([fewer >> bit & 1 for bit in range(8)], float).reshape(2, 2, 2)
        points, triangles, *_ = marching_cubes(cell, 0.5, method="lorensen")
        first, second, third = points[triangles].astype(float).swapaxes(0, 1)
        owners += [code] * len(triangles)
        elements.append(np.cross(second - first, third - first) / 2)
    return np.array(owners, np.uint8), np.concatenate(elements)
