"""Crops of both domains, drawn at random from preprocessed cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_ext.networks import DomainDiscriminator
from nnunet_ext.networks.mind_the_gap.translator import DIVISOR
from nnunet_ext.translation.intensities import IntensityRange, Voxels

MIN_CONTRAST = 0.02
"""Slices whose standard deviation, in a range of 2, is less are nearly constant."""

_ATTEMPTS = 20  # to find a crop that is not nearly constant


def is_flat(unit: Voxels) -> bool:
    """Whether every channel of voxels (C, *S) in the translator's range is nearly constant."""
    return float(unit.std(axis=tuple(range(1, unit.ndim))).max()) < MIN_CONTRAST


def crop_shape(largest: Sequence[int], longest: int, dim: int) -> tuple[int, ...]:
    """Shape of training crops.

    Args:
        largest: Longest extent of any case along each axis (3,).
        longest: No side is longer.
        dim: 2 for slices along the first axis, or 3.
    """
    least = DomainDiscriminator.SMALLEST
    return tuple(
        max(least, min(longest // DIVISOR, -(-edge // DIVISOR)) * DIVISOR)
        for edge in largest[3 - dim :]
    )


class CropBatches(Dataset[torch.Tensor]):
    """Batches of both domains by number of iteration; equal numbers give equal batches.

    A number may come with the range of the source that takes the place of the first of ``ranges``.

    Args:
        datasets: nnU-Net's data sets of source and target.
        ranges: Intensities of source and target.
        shape: Of a crop, two or three axes.
        batch: Crops of either domain in a batch.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        ranges: Sequence[IntensityRange],
        shape: Sequence[int],
        batch: int,
        seed: int = 0,
    ) -> None:
        self.datasets = datasets
        self.ranges = ranges
        self.shape = tuple(shape)
        self.batch = batch
        self.seed = seed

    def __getitem__(self, which: int | tuple[int, IntensityRange]) -> torch.Tensor:
        """Draw crops (2B, C, *S) in [-1, 1], those of the source first."""
        source, target = self.ranges
        iteration, source = which if isinstance(which, tuple) else (which, source)
        rng = np.random.default_rng((self.seed, iteration))
        crops = [
            self._draw(dataset, intensities, rng)
            for dataset, intensities in zip(self.datasets, (source, target), strict=True)
            for _ in range(self.batch)
        ]
        return torch.from_numpy(np.stack(crops))

    def _draw(self, dataset: Any, intensities: IntensityRange, rng: np.random.Generator) -> Voxels:
        for _ in range(_ATTEMPTS):
            voxels = dataset.load_case(rng.choice(dataset.identifiers))[0]
            extent = voxels.shape[-len(self.shape) :]
            starts = [
                rng.integers(max(0, have - want) + 1)
                for have, want in zip(extent, self.shape, strict=True)
            ]
            window: list[Any] = [slice(None)]
            if len(self.shape) == 2:
                window.append(rng.integers(voxels.shape[1]))
            window += [slice(s, s + want) for s, want in zip(starts, self.shape, strict=True)]
            unit = intensities.to_unit(voxels[tuple(window)])
            if not is_flat(unit):
                break
        flipped = tuple(axis for axis in range(1, unit.ndim) if rng.integers(2))
        return np.ascontiguousarray(np.flip(pad(unit, self.shape), flipped))


def pad(unit: Voxels, shape: Sequence[int]) -> Voxels:
    """Pad voxels (C, *S) by mirroring, evenly on both sides, up to a shape.

    A frame of one value, dark in both domains, would keep a translator from learning that all of
    the rest is to be inverted.
    """
    missing = [max(0, want - have) for have, want in zip(unit.shape[1:], shape, strict=True)]
    widths = [(0, 0), *((more // 2, more - more // 2) for more in missing)]
    return np.pad(unit, widths, mode="symmetric")
