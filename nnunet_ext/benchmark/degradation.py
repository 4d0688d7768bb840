"""Degraded copies of test images, to measure how much a model depends on image quality."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.nnunet.images import read_image
from nnunet_ext.settings import STRICT

if TYPE_CHECKING:
    from numpy.typing import NDArray

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Degradation:
    """What is done to an image: first blur, then contrast, gamma and noise."""

    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0  # shrinks intensities to the mean
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # between the extremes
    blur: NotNegative = 0.0  # sigma in voxels along the axis of the finest spacing
    noise: NotNegative = 0.0  # sigma over that of the undegraded image


def degrade(
    image: "NDArray[Any]", spacing: Sequence[float], degradation: Degradation, seed: int
) -> "NDArray[Any]":
    """Blur an image, lower its contrast, bend its intensities, add noise, in this order.

    Args:
        image: (*S), or (C, *S) for channels that keep their relation: mean, extremes and
            standard deviation are then those of all channels together.
        spacing: Distance of neighbouring voxels along each axis of S.
        degradation: How much of what.
        seed: Decides the noise.

    Returns:
        An array like ``image``; integers are rounded and clipped to what their type holds.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    degraded = image.astype(np.result_type(image.dtype, np.float32))
    noise = degradation.noise * degraded.std(dtype=np.float64)
    if degradation.blur > 0:
        sigmas = [degradation.blur * min(spacing) / distance for distance in spacing]
        degraded = gaussian_filter(degraded, [0.0] * (image.ndim - len(spacing)) + sigmas)
    if degradation.contrast != 1:
        mean = degraded.mean(dtype=np.float64)
        degraded = mean + degradation.contrast * (degraded - mean)
    low, high = degraded.min(), degraded.max()
    if degradation.gamma != 1 and high > low:
        degraded = low + (high - low) * ((degraded - low) / (high - low)) ** degradation.gamma
    if noise > 0:
        degraded = degraded + np.random.default_rng(seed).normal(0, noise, image.shape)
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        degraded = np.clip(np.rint(degraded), limits.min, limits.max)
    return degraded.astype(image.dtype)


def write_degraded(source: Path, target: Path, degradation: Degradation, seed: int) -> None:
    """Write a degraded copy of an image in a format of nnU-Net's, 2D or 3D, grey or coloured.

    The noise depends on the seed and the name of the file, not on the order of files.
    """
    image = read_image(source)
    digest = sha256(f"{seed} {source.name}".encode()).digest()
    seed_of_file = int.from_bytes(digest[:8], "big")
    image.save(degrade(image.voxels, image.spacing, degradation, seed_of_file), target)
