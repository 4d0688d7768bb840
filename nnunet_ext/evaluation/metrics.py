"""Segmentation metrics of one case, computed by MONAI.

Which metrics, and how they are defined, follows Metrics Reloaded (Maier-Hein, Reinke et al.,
Nature Methods 21, 2024): one that counts voxels, one that counts boundary, and distances. The
normalised surface Dice is that of Nikolov et al. (J Med Internet Res 23, 2021), with the
surface at sub-voxel resolution.
"""

import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunet_ext._common.errors import UserError

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

MEASURES = ("dice", "nsd", "hd95", "assd")

Region: TypeAlias = int | tuple[int, ...]
"""A label, or labels that are measured as one structure."""

Mask: TypeAlias = NDArray[np.bool_]


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


def measure_case(
    case: Mapping[str, Any],
    evaluation: Path,
    reader: "BaseReaderWriter",
    ignore: int | None,
    ending: str,
) -> list[dict[str, Any]]:
    """Measure a case that nnU-Net has evaluated.

    Args:
        case: An element of ``metric_per_case`` in nnU-Net's ``summary.json``.
        evaluation: Folder with the predictions.
        reader: nnU-Net's reader of these files.
        ignore: Label of the truth that does not count.
        ending: Of the files' names.

    Returns:
        For each label: case, label, dice (nnU-Net's own), nsd, hd95, assd, empty, truth,
        prediction.

    Raises:
        UserError: If prediction and truth do not match.
    """
    # by name, so that a results folder can be moved
    prediction = evaluation / Path(case["prediction_file"]).name
    truth = Path(case["reference_file"])
    regions: dict[str, Region] = {key: ast.literal_eval(key) for key in case["metrics"]}
    measured = measure_files(truth, prediction, reader, list(regions.values()), ignore)
    return [
        {
            "case": prediction.name.removesuffix(ending),
            "label": key,
            **asdict(measured[region]),
            "dice": case["metrics"][key]["Dice"],
            "truth": str(truth),
            "prediction": str(prediction),
        }
        for key, region in regions.items()
    ]


def measure_files(
    truth: Path,
    prediction: Path,
    reader: "BaseReaderWriter",
    regions: Sequence[Region],
    ignore: int | None = None,
) -> dict[Region, Measures]:
    """Compare two files; otherwise as :func:`measure`.

    Raises:
        UserError: If a file cannot be read, or they do not match.
    """
    try:
        true, properties = reader.read_seg(str(truth))
        predicted, _ = reader.read_seg(str(prediction))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{prediction} or {truth} cannot be read: {error}") from None
    try:
        return measure(true[0], predicted[0], properties["spacing"], regions, ignore)
    except ValueError as error:
        raise UserError(f"{prediction} does not match {truth}: {error}") from None


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
    steps = [float(step) for step in spacing]  # MONAI refuses a mixture with integers
    if truth.ndim == 3 and 1 in truth.shape:
        flat = truth.shape.index(1)
        truth, prediction = truth.take(0, flat), prediction.take(0, flat)
        del steps[flat]
    counted = True if ignore is None else truth != ignore
    return {
        region: _measure_masks(
            np.isin(truth, region) & counted, np.isin(prediction, region) & counted, steps
        )
        for region in regions
    }


def _measure_masks(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> Measures:
    masks = {"prediction": prediction, "truth": truth}
    empty = [name for name, mask in masks.items() if not mask.any()]
    if len(empty) == 2:
        return Measures(math.nan, math.nan, math.nan, math.nan, "both")
    if empty:
        diagonal = math.hypot(*(n * step for n, step in zip(truth.shape, spacing, strict=True)))
        return Measures(0.0, 0.0, diagonal, diagonal, empty[0])
    # MONAI also crops, but slowly; what it needs around the masks, it pads
    (box,) = find_objects((truth | prediction).astype(np.uint8))
    truth, prediction = truth[box], prediction[box]
    dice = 2 * np.sum(truth & prediction) / (np.sum(truth) + np.sum(prediction))
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 warn of an argument that they pass themselves
        warnings.simplefilter("ignore", FutureWarning)
        nsd = _surface_dice(truth, prediction, spacing)
        distances = _border_distances(truth, prediction, spacing)
    hd95 = max(np.percentile(directed, 95) for directed in distances)
    assd = np.concatenate(distances).mean(dtype=float)
    return Measures(float(dice), nsd, float(hd95), float(assd), "")


def _surface_dice(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> float:
    import torch
    from monai.metrics import compute_surface_dice

    return compute_surface_dice(
        torch.tensor(prediction)[None, None],
        torch.tensor(truth)[None, None],
        class_thresholds=[min(spacing)],
        include_background=True,
        spacing=spacing,
        use_subvoxels=True,
    ).item()


def _border_distances(
    truth: Mask, prediction: Mask, spacing: Sequence[float]
) -> list[NDArray[np.floating[Any]]]:
    """From each border voxel of a mask to the nearest one of the other, for both masks."""
    # MONAI's complete metrics would search the nearest voxels once for each of them
    from monai.metrics import get_mask_edges, get_surface_distance

    one, other = get_mask_edges(truth, prediction)
    return [
        np.asarray(get_surface_distance(start, end, spacing=spacing))
        for start, end in ((one, other), (other, one))
    ]
