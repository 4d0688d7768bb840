"""Reading the labels of a case and their prediction, so that voxel meets voxel."""

import ast
import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext._common.errors import UserError
from nnunet_ext.evaluation.metrics import Region
from nnunet_ext.nnunet.datasets import label_names

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

Grid: TypeAlias = NDArray[np.float64]
"""Where voxels lie: matrix (n + 1, n + 1) from their indices, last axis first, to places."""

SAME_PLACE = 0.05
"""Distance in voxels up to which two grids are one; headers are rounded."""
SHOWN = 5
"""So many values stand for all in a message."""


@dataclass(frozen=True)
class Scheme:
    """What labels mean, and how files of them are read."""

    regions: dict[str, Region]  # name of a structure -> its label or labels
    # all that may be in a file; None if nnU-Net has evaluated them, and they are taken as they are
    values: frozenset[int] | None
    ignore: int | None  # label of the truth that does not count
    ending: str  # of the files' names
    reader: "BaseReaderWriter"  # nnU-Net's, of these files


@dataclass(frozen=True)
class Pair:
    """Labels of a case, true and predicted, of two or three axes."""

    truth: NDArray[Any]
    prediction: NDArray[Any]
    spacing: tuple[float, ...]  # size of a voxel along each axis
    reoriented: bool  # whether the truth was stored in another orientation


def scheme_of(dataset_json: Mapping[str, Any], where: str, example: Path) -> Scheme:
    """What a dataset.json says of labels.

    Args:
        dataset_json: Its content.
        where: How error messages name it.
        example: A file with labels, which the reader must be able to read.

    Raises:
        UserError: If a key is missing or wrong, or nnU-Net has no reader of such files.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    try:
        ending, labels = dataset_json["file_ending"], dict(dataset_json["labels"])
        regions = {name: ast.literal_eval(key) for key, name in label_names(dataset_json).items()}
        values = {int(value) for each in labels.values() for value in np.atleast_1d(each)}
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            f'{where}: "labels" or "file_ending" is missing or wrong: {error}'
        ) from None
    try:
        with redirect_stderr(io.StringIO()):  # only TIFFs have several readers, which it tries
            reader = determine_reader_writer_from_dataset_json(
                dict(dataset_json), str(example) if ending == ".tif" else None, verbose=False
            )()
    except RuntimeError as error:
        raise UserError(f"{where}: {error}") from None
    return Scheme(regions, frozenset({0} | values), labels.get("ignore"), ending, reader)


def read_pair(truth: Path, prediction: Path, scheme: Scheme) -> Pair:
    """Read a case whose labels come from somewhere else than the prediction.

    Truth that is stored in another orientation is turned; spacing and origin must agree.

    Raises:
        UserError: If a file cannot be read, holds other values than dataset.json has, or the
            two do not lie in the same place; names file and values.
    """
    (true, grid, _), (predicted, wanted, spacing) = (
        _placed(path, scheme) for path in (truth, prediction)
    )
    reoriented = False
    if scheme.values is None:
        grid = wanted
    elif len(grid) == len(wanted):
        true, grid, reoriented = _turned(true, grid, wanted)
    found = _difference(true.shape, grid, predicted.shape, wanted)
    if found:
        what, theirs, ours = found
        raise UserError(
            f"{prediction} does not match {truth}: its {what} is {_shown(ours)}, that of the "
            f"labels {_shown(theirs)}. Resample one of them, or correct its header."
        )
    return Pair(true, predicted, spacing, reoriented)


def _placed(path: Path, scheme: Scheme) -> tuple[NDArray[Any], Grid, tuple[float, ...]]:
    """Labels, where they lie, and the size of a voxel along each of their axes."""
    try:
        labels, properties = scheme.reader.read_seg(str(path))
    except Exception as error:  # damaged files raise anything
        reason = str(error).strip().splitlines()[-1:] or [repr(error)]
        raise UserError(f"{path} cannot be read: {reason[0]}") from None
    if len(labels) != 1:
        raise UserError(f"{path} has {len(labels)} channels; labels have one.")
    labels = labels[0]
    if scheme.values is not None and path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        stored = nibabel.load(path)
        # SimpleITK reads what is not finite as 0
        if stored.get_data_dtype().kind == "f" and not np.isfinite(stored.dataobj).all():
            raise UserError(f"{path} has values that are not whole numbers: NaN or infinite.")
    if scheme.values is not None:
        _refuse_other_values(path, labels, scheme.values)
    grid = _grid(properties)
    axes = len(grid) - 1
    return labels.reshape(labels.shape[-axes:]), grid, tuple(properties["spacing"])[-axes:]


def _refuse_other_values(path: Path, labels: NDArray[Any], allowed: Collection[int]) -> None:
    found = pd.unique(labels.ravel())
    broken = found[~(np.isfinite(found) & (found == np.rint(found)))]
    if len(broken):
        raise UserError(
            f"{path} has values that are not whole numbers: {_shown(sorted(broken), ', ')}. Is it "
            "an image, or were labels interpolated?"
        )
    others = sorted(set(found.astype(int)) - set(allowed))
    if others:
        raise UserError(
            f"{path} has the values {_shown(others, ', ')}, but dataset.json names only the labels "
            f"{_shown(sorted(allowed), ', ')}. Labels must be stored as these numbers."
        )


def _shown(values: Sequence[Any], between: str = " x ") -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN and between == ", " else ""
    first = values[:SHOWN] if more else values
    return between.join(f"{round(float(value), 4) + 0.0:.10g}" for value in first) + more


def _grid(properties: Mapping[str, Any]) -> Grid:
    medical, nibabels = properties.get("sitk_stuff"), properties.get("nibabel_stuff")
    if nibabels is not None:
        return np.asarray(nibabels.get("reoriented_affine", nibabels["original_affine"]))
    # pictures and TIFFs have no place and no direction
    spacing = medical["spacing"] if medical else properties["spacing"][::-1]
    axes = len(spacing)
    grid = np.diag([*spacing, 1.0])
    if medical:
        grid[:axes, :axes] = np.reshape(medical["direction"], (axes, axes)) * spacing
        grid[:axes, axes] = medical["origin"]
    return grid


def _turned(labels: NDArray[Any], grid: Grid, wanted: Grid) -> tuple[NDArray[Any], Grid, bool]:
    """Labels with axes in the order and sense of another grid, their own grid then, and if so."""
    from nibabel.orientations import (
        apply_orientation,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    change = ornt_transform(io_orientation(grid), io_orientation(wanted))
    if (change == np.array([[axis, 1] for axis in range(len(change))])).all():
        return labels, grid, False
    turned = grid @ inv_ornt_aff(change, labels.T.shape)
    return apply_orientation(labels.T, change).T, turned, True


def _difference(
    shape: tuple[int, ...],
    grid: Grid,
    other_shape: tuple[int, ...],
    other: Grid,
) -> tuple[str, list[float], list[float]] | None:
    """What tells two grids apart, and its values in both, last axis first; None if nothing."""
    if shape != other_shape or len(grid) != len(other):
        return "shape", list(shape[::-1]), list(other_shape[::-1])
    steps, other_steps = (np.linalg.norm(each[:-1, :-1], axis=0) for each in (grid, other))
    corners = np.array([[*at, 1] for at in product(*((0, n - 1) for n in shape[::-1]))]).T
    near = SAME_PLACE * other_steps.min()
    if np.abs((grid - other) @ corners).max() <= near:
        return None
    if not np.allclose(steps, other_steps, rtol=1e-3):
        what, ours, theirs = "spacing", steps, other_steps
    elif np.abs(grid[:-1, -1] - other[:-1, -1]).max() > near:
        what, ours, theirs = "origin", grid[:-1, -1], other[:-1, -1]
    else:
        what, ours, theirs = "direction", grid[:-1, :-1] / steps, other[:-1, :-1] / other_steps
    return what, ours.ravel().tolist(), theirs.ravel().tolist()
