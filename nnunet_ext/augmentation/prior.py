"""Class maps made as wrong as those that a network meets at test time.

In training a network's own prediction is better than on images that it never saw. nnU-Net's
cascade, which has the same problem with the segmentations of its previous stage, grows or shrinks
them and removes components; here maps are probabilities, are also shifted and blurred, and may
lose a class.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CHANCE_OF_BOUNDARY = 0.4
"""That the boundary of a class moves or blurs; nnU-Net's cascade has the same."""
CHANCE_OF_COMPONENT = 0.2
"""That a component of a class vanishes; nnU-Net's cascade has the same."""
CHANCE_OF_SHIFT = 0.2
"""That everything is shifted."""
CHANCE_OF_CLASS = 0.1
"""That a class vanishes."""
MOST_VOXELS = 8
"""So far boundaries move at most, as in nnU-Net's cascade."""
MOST_OF_AXIS = 1 / 16
"""And no farther than this share of an axis, so that thin stacks of slices keep their order."""
LARGE = 0.15
"""A component that fills a larger share of the patch stays, as in nnU-Net's cascade."""
GRID = 32
"""Cells along the longest axis of the grid on which components are found."""

Draw = Callable[[], float]
"""Gives a number from [0, 1)."""


@torch.compiler.disable
@torch.no_grad()
def disturbed(
    prior: Tensor,
    strength: float,
    *,
    regions: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change some class maps of a batch, each in ways of its own.

    Args:
        prior: Probabilities (B, K, *S) with two or three spatial axes.
        strength: From 0, nothing is changed, to 1, each kind of change has its full chance.
        regions: Whether channels are overlapping regions; otherwise they are classes that add up
            to 1, and the first is background.
        generator: Where everything is drawn from, on the CPU; default torch's own.

    Returns:
        A tensor like ``prior``, without gradient; classes still add up to 1.
    """
    maps = [_disturbed(each[None], strength, regions, generator) for each in prior.detach()]
    return torch.cat(maps)


def _disturbed(
    prior: Tensor, strength: float, regions: bool, generator: torch.Generator | None
) -> Tensor:
    def draw() -> float:
        return float(torch.rand((), generator=generator))

    first = 0 if regions else 1
    if prior.shape[1] == first:
        return prior
    chosen = first + int(draw() * (prior.shape[1] - first))
    one = prior[:, chosen : chosen + 1]
    if draw() < strength * CHANCE_OF_BOUNDARY:
        prior = _with(prior, chosen, _other_boundary(one, draw), regions)
    if draw() < strength * CHANCE_OF_COMPONENT:
        component = _component(prior[:, chosen : chosen + 1], generator)
        prior = _with(prior, chosen, prior[:, chosen : chosen + 1] * (1 - component), regions)
    if draw() < strength * CHANCE_OF_CLASS:
        prior = _with(prior, chosen, torch.zeros_like(one), regions)
    if draw() < strength * CHANCE_OF_SHIFT:
        prior = _shifted(prior, draw)
    return prior


def _with(prior: Tensor, number: int, changed: Tensor, regions: bool) -> Tensor:
    """Exchange one channel; other classes give way to it, and background fills what it leaves."""
    maps = list(prior.split(1, dim=1))
    before, maps[number] = maps[number], changed
    if regions:
        return torch.cat(maps, 1)
    room = ((1 - changed) / (1 - before).clamp_min(1e-6)).clamp_max(1)
    foreground = [m if n == number else m * room for n, m in enumerate(maps) if n > 0]
    others = torch.cat(foreground, 1)
    return torch.cat([(1 - others.sum(1, keepdim=True)).clamp_min(0), others], 1)


def _farthest(size: torch.Size) -> list[int]:
    """How far boundaries move at most along each axis, in voxels."""
    return [min(MOST_VOXELS, round(side * MOST_OF_AXIS)) for side in size]


def _other_boundary(one: Tensor, draw: Draw) -> Tensor:
    """Let a class (1, 1, *S) grow, shrink or lose its sharpness."""
    distance = draw()
    reach = [max(1, round(distance * most)) if most else 0 for most in _farthest(one.shape[2:])]
    kind = int(draw() * 3)
    if kind != 0:
        sign = 1 if kind == 1 else -1
        return sign * _pool(F.max_pool2d if one.ndim == 4 else F.max_pool3d, sign * one, reach)
    averaging: Callable[..., Tensor] = F.avg_pool2d if one.ndim == 4 else F.avg_pool3d
    return _pool(averaging, one, reach, count_include_pad=False)


def _pool(pooling: Callable[..., Tensor], one: Tensor, reach: list[int], **options: bool) -> Tensor:
    return pooling(one, [2 * r + 1 for r in reach], stride=1, padding=reach, **options)


def _component(one: Tensor, generator: torch.Generator | None) -> Tensor:
    """Mark (1, 1, *S) what hangs together with a random voxel of a class, or nothing if large.

    All on the device, and nothing is asked of it: a coarse grid is flooded from the voxel.
    """
    size = one.shape[2:]
    coarse = [max(1, round(side * GRID / max(size))) if max(size) > GRID else side for side in size]
    volumes = len(size) == 3
    reduce: Callable[..., Tensor] = F.adaptive_max_pool3d if volumes else F.adaptive_max_pool2d
    mask = reduce((one > 0.5).to(one.dtype), coarse)
    noise = torch.rand(mask.shape, generator=generator).to(mask.device)
    flood = torch.zeros_like(mask).flatten(1)
    flood[0, (noise * mask).argmax()] = 1
    flood = flood.view_as(mask) * mask
    pooling: Callable[..., Tensor] = F.max_pool3d if volumes else F.max_pool2d
    for _ in range(GRID):
        flood = pooling(flood, 3, stride=1, padding=1) * mask
    flood = flood * (flood.mean() <= LARGE)
    return F.interpolate(flood, size)


def _shifted(prior: Tensor, draw: Draw) -> Tensor:
    """Move all maps of an image; what enters at the border repeats it."""
    far = _farthest(prior.shape[2:])
    padding = [each for side in reversed(far) for each in (side, side)]
    padded = F.pad(prior, padding, mode="replicate")
    for axis, most in enumerate(far, start=2):
        start = min(int(draw() * (2 * most + 1)), 2 * most)
        padded = padded.narrow(axis, start, prior.shape[axis])
    return padded
