"""Pictures of an arm's worst, median and best cases: image, true and predicted labels."""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects, gaussian_filter

from nnunet_ext._common.pictures import (
    COLOURS,
    aspect_of,
    draw_labels,
    draw_slice,
    read_voxels,
    telling_slice,
)
from nnunet_ext.benchmark.analysis import samples
from nnunet_ext.benchmark.results import Results

INCHES, DPI = 2.6, 200
"""Width and height of a picture; it is shown at about half of these pixels."""
JPEG = {"quality": 82, "optimize": True}
MARGIN = 0.35
"""Of the part that is shown, around the labels, by their extent."""
LEAST = 32
"""Pixels that a shown part is wide at least."""
THIN = 28
"""A shown part is at most so many times wider than the structures in it."""

PLANES = ("axial", "coronal", "sagittal")


class Picture(NamedTuple):
    """Addresses (``data:``) of a picture and of what is laid over it, or "", and its caption."""

    image: str
    labels: str
    title: str
    details: Sequence[str]


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """Key of a label -> its colour."""
    return {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(labels)}


def overlays(scores: pd.DataFrame, results: Results, root: Path) -> Iterator[Picture]:
    """Draw the three worst, the median and the best case."""
    means = samples(scores, "dice", unit="case").groupby("subject", as_index=False)["value"].mean()
    ranked = means.sort_values(["value", "subject"])
    for role, i in pick(len(ranked)).items():
        case, dice = ranked.iloc[i][["subject", "value"]]
        yield _overlay(role, scores[scores["case"] == case], float(dice), results, root)


def pick(cases: int) -> dict[str, int]:
    """Role -> index of a case, from the worst to the best; fewer if there are fewer."""
    roles = {"worst": 0, "best": cases - 1, "median": cases // 2, "2nd worst": 1, "3rd worst": 2}
    chosen: dict[int, str] = {}
    for role, index in roles.items():
        if 0 <= index < cases:
            chosen.setdefault(index, role)
    return {role: index for index, role in sorted(chosen.items())}


def _overlay(role: str, scores: pd.DataFrame, dice: float, results: Results, root: Path) -> Picture:
    """Draw a case as the training has predicted it that comes closest to the case's mean."""
    keys = ["fold", "seed", "image", "truth", "prediction"]
    trainings = scores.groupby(keys, dropna=False, sort=True)["dice"].mean().reset_index()
    shown = trainings.loc[(trainings["dice"] - dice).abs().idxmin()]
    case = str(scores["case"].iloc[0])
    details = [f"Dice {dice:.3f}"]
    if len(trainings) > 1:
        details.append(f"shown: seed {shown['seed']}, {shown['dice']:.3f}")
    files = [root / shown[key] for key in ("image", "truth", "prediction")]
    try:
        image, labels, plane = _draw(files, label_colours([*results.labels]))
        details.append(plane)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()
        image = labels = ""
        details.append(f"cannot be drawn: {reason[-1] if reason else type(error).__name__}")
    return Picture(image, labels, f"{role}: {case}", details)


def _draw(files: Sequence[Path], colours: dict[str, str]) -> tuple[str, str, str]:
    """Draw a case; return slice and labels as ``data:`` addresses, and the name of the slice."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} does not exist")
    (image, spacing), (truth, _), (prediction, _) = map(read_voxels, files)
    if not image.shape[:3] == truth.shape == prediction.shape:
        raise ValueError(f"shapes {image.shape}, {truth.shape} and {prediction.shape} differ")
    axis, index = telling_slice(truth, prediction, spacing)
    picture, true, predicted = (
        np.take(volume, index, axis) for volume in (image, truth, prediction)
    )
    aspect = aspect_of(spacing, axis)
    rows, columns = _close_up(true, predicted, aspect)
    by_region = {_region(key): colour for key, colour in colours.items()}
    with style.context("default"):
        figure = Figure(figsize=(INCHES, INCHES), dpi=DPI)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        draw_slice(axes, picture[rows, columns], aspect)
        photograph = _encoded(figure, "jpeg", facecolor="white", pil_kwargs=JPEG)
        axes.images[0].set_visible(False)
        shown = predicted[rows, columns], true[rows, columns]
        draw_labels(axes, *shown, by_region, opacity=0.4, line=0.9)
        layer = _encoded(figure, "png", transparent=True, metadata={"Software": None})
    count = truth.shape[axis]
    where = f"{PLANES[axis]} slice {index + 1} of {count}" if count > 1 else "whole image"
    if (rows, columns) != (slice(0, true.shape[0]), slice(0, true.shape[1])):
        where += ", close-up" if count > 1 else ""
        where = where.replace("whole image", "close-up")
    return photograph, layer, where


def _encoded(figure: Figure, kind: str, **options: Any) -> str:
    """A figure as ``data:`` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _close_up(truth: NDArray[Any], prediction: NDArray[Any], aspect: float) -> tuple[slice, slice]:
    """Part of a slice around what is labelled, as square as the slice allows.

    Of thin structures, such as vessels, it is the part where the labels differ most.
    """
    labelled, wrong = (truth > 0) | (prediction > 0), truth != prediction
    if not labelled.any():
        return slice(0, truth.shape[0]), slice(0, truth.shape[1])
    steps = (aspect, 1.0)  # heights and widths in the same unit
    box = find_objects(labelled.astype(np.uint8))[0]
    extent = max((part.stop - part.start) * step for part, step in zip(box, steps, strict=True))
    side = max(extent * (1 + 2 * MARGIN), LEAST * max(steps))
    middle = [(part.start + part.stop) / 2 for part in box]
    # of a band, the area by half of the outline is the width
    width = 2 * labelled.sum() / (labelled & ~binary_erosion(labelled)).sum()
    if side > THIN * width:
        side = THIN * width
        interest = wrong + 1e-3 * labelled  # where nothing is wrong, most of the structure
        density = gaussian_filter(interest, [side / step / 4 for step in steps], mode="constant")
        middle = [float(at) for at in np.unravel_index(np.argmax(density), density.shape)]
    lengths = [min(size, round(side / step)) for size, step in zip(truth.shape, steps, strict=True)]
    starts = [
        min(max(0, round(at - length / 2)), size - length)
        for at, length, size in zip(middle, lengths, truth.shape, strict=True)
    ]
    rows, columns = (slice(a, a + n) for a, n in zip(starts, lengths, strict=True))
    return rows, columns


def _region(key: str) -> tuple[int, ...]:
    """Labels that a key of the scores stands for, ``"1"`` or ``"(1, 2)"``."""
    return tuple(int(label) for label in re.findall(r"\d+", key))
