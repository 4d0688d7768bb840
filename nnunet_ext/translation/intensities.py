"""The range of intensities of a domain, mapped to that of the translator."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext._common.errors import UserError

PERCENTILES = (0.5, 99.5)
_VOXELS = 20_000
"""So many of each case tell the percentiles."""

Voxels = NDArray[np.float32]


@dataclass(frozen=True)
class IntensityRange:
    """Intensities of each channel of a domain that become -1 and 1.

    ``low`` is above ``high`` where the domain is inverted.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def inverted(self) -> "IntensityRange":
        """The range that makes dark of bright."""
        return IntensityRange(self.high, self.low)

    def to_unit(self, voxels: Voxels) -> Voxels:
        """Map intensities (C, *S) to [-1, 1]; what lies outside the range is clipped."""
        low, width = self._low_and_width(voxels)
        unit = (voxels - low) / width * 2 - 1
        return unit.clip(-1, 1).astype(np.float32, copy=False)

    def from_unit(self, voxels: Voxels) -> Voxels:
        """Map [-1, 1] to intensities (C, *S)."""
        low, width = self._low_and_width(voxels)
        intensities = (voxels + 1) / 2 * width + low
        return intensities.astype(np.float32, copy=False)

    def _low_and_width(self, voxels: Voxels) -> tuple[Voxels, Voxels]:
        low, high = (
            np.array(values, np.float32).reshape(-1, *[1] * (voxels.ndim - 1))
            for values in (self.low, self.high)
        )
        return low, high - low


@dataclass(frozen=True)
class Survey:
    """What must be known of a domain before training.

    Attributes:
        intensities: Its range.
        largest: Longest extent of any case along each axis (3,).
    """

    intensities: IntensityRange
    largest: tuple[int, ...]


def survey(dataset: Any, name: str) -> Survey:
    """Look at all cases of a domain.

    Args:
        dataset: One of nnU-Net's data sets.
        name: Of the domain, for messages.

    Raises:
        UserError: If a case is not finite, or a channel has the same value nearly everywhere.
    """
    rng = np.random.default_rng(0)
    samples, shapes = [], []
    for case in tqdm(dataset.identifiers, f"Reading {name}", leave=False, disable=None):
        voxels = dataset.load_case(case)[0][:]
        flat = voxels.reshape(len(voxels), -1)
        if broken := int(np.count_nonzero(~np.isfinite(flat))):
            raise UserError(
                f"Case {case} of the {name} images is NaN or infinite in {broken} preprocessed "
                "voxels. Correct its raw image, then preprocess again."
            )
        samples.append(flat[:, rng.integers(flat.shape[1], size=min(_VOXELS, flat.shape[1]))])
        shapes.append(voxels.shape[1:])
    low, high = np.percentile(np.concatenate(samples, axis=1), PERCENTILES, axis=1)
    if not np.all(high > low):
        raise UserError(
            f"Channel {int(np.argmin(high - low))} of the {name} images has the same intensity "
            "nearly everywhere, so there is nothing to translate. Check these images."
        )
    return Survey(IntensityRange(_floats(low), _floats(high)), tuple(np.max(shapes, axis=0)))


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
