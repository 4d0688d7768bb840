"""Global intensity non-linear augmentation (GIN): the same anatomy in contrasts never seen.

Paper: Ouyang et al., Causality-inspired single-source domain generalization for medical image
segmentation, IEEE TMI 42(4), 2023, arXiv 2111.12525. A stack of a few random convolutions maps
intensities to others; unlike brightness, gamma or amplitude mixing it can reorder tissues, so
that what was bright becomes dark. Nothing in it is trained.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunet_ext._common.precision import full_precision

DEPTH = 4
"""Convolutions of the stack, as in the authors' implementation."""
HIDDEN = 2
"""Channels between two convolutions, as in the authors' implementation."""
WIDTH = 3
"""Voxels of a wide kernel along each axis; a narrow one has one."""
WIDE = 0.5
"""Chance of each convolution to be wide."""
LEAK = 0.01
"""Slope of the leaky ReLU for negative values."""
TINY = 1e-5
"""Keeps images that are zero everywhere from being divided by their norm."""


def gin(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    depth: int = DEPTH,
    in_plane: bool = False,
    probability: float = 1.0,
) -> Tensor:
    r"""Give each image other intensities by random shallow convolutions of its own.

    With a stack :math:`g` of ``depth`` convolutions with standard normal weights and shifts and
    leaky ReLUs between, and :math:`\alpha` uniform in [0, 1],

    .. math:: y = \alpha\, g(x) + (1 - \alpha)\, x, \qquad y \leftarrow y\, \|x\| / \|y\|

    with the norm over the voxels of each channel. All channels of an image pass through its stack
    together. Widths of kernels are drawn for each image; the authors draw them for a batch.

    Args:
        images: (B, C, *S) with two or three spatial axes, of any range.
        generator: Where everything is drawn from, on the CPU; default torch's own. Equal states
            give equal results on equal devices.
        depth: Number of convolutions, at least 1.
        in_plane: Kernels are one voxel wide along the first of three axes, for thick slices.
        probability: Chance of each image to be changed.

    Returns:
        A tensor of the same shape and type, without gradient.

    Raises:
        ValueError: If ``images`` have another number of axes, or ``depth`` is below 1.
    """
    if images.ndim not in (4, 5):
        raise ValueError(f"gin wants images (B, C, *S) of 2 or 3 axes, got {tuple(images.shape)}.")
    if depth < 1:
        raise ValueError(f"gin wants a depth of at least 1, got {depth}.")
    numbers, weights = torch.rand(2, len(images), generator=generator)
    chosen = (numbers < probability).nonzero()[:, 0].tolist()
    changed = images.detach().clone()
    if not chosen:
        return changed
    with torch.no_grad(), full_precision(images.device):
        source = changed[chosen].float()
        others = _convolved(source, generator, depth, in_plane)
        shape = (-1, *[1] * (images.ndim - 1))
        mixed = source.lerp(others, weights[chosen].view(shape).to(images.device))
        changed[chosen] = (mixed * (_norm(source) / _norm(mixed).clamp_min(TINY))).to(images.dtype)
    return changed


def _convolved(
    images: Tensor, generator: torch.Generator | None, depth: int, in_plane: bool
) -> Tensor:
    """Pass images (B, C, *S) through stacks of their own, which are groups of one convolution."""
    batch, channels, *size = images.shape
    volumes = len(size) == 3
    convolve = F.conv3d if volumes else F.conv2d
    # with so few channels, CPUs convolve many times faster like this
    layout = torch.channels_last_3d if volumes else torch.channels_last
    numbers = [channels, *[HIDDEN] * (depth - 1), channels]
    x = images.reshape(1, -1, *size)
    for layer, (before, after) in enumerate(pairwise(numbers)):
        is_wide = torch.rand(batch, generator=generator) < WIDE
        kernel = [WIDTH if is_wide.any() else 1] * len(size)
        if in_plane and volumes:
            kernel[0] = 1
        weight = torch.randn(batch, after, before, *kernel, generator=generator)
        # a narrow kernel among wide ones is one of which only the centre counts
        centre = torch.zeros(kernel)
        centre[tuple(side // 2 for side in kernel)] = 1
        weight[~is_wide] *= centre
        shift = torch.randn(batch * after, generator=generator)
        x = convolve(
            x.contiguous(memory_format=layout),
            weight.flatten(0, 1).to(images.device),
            shift.to(images.device),
            padding=[side // 2 for side in kernel],
            groups=batch,
        )
        if layer < depth - 1:
            x = F.leaky_relu_(x, LEAK)
    return x.reshape(images.shape)


def _norm(images: Tensor) -> Tensor:
    norm = images.flatten(2).norm(dim=2)
    return norm.view(*norm.shape, *[1] * (images.ndim - 2))
