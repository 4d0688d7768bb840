"""Step B of Mind the Gap: two critics that tell target from source.

Paper: arXiv 2205.11888 (see :mod:`nnunet_ext.networks.mind_the_gap.translator`); layers after the
authors' published Step B. Both learn to answer 0 for the source and 1 for the target.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import nn


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Keep the parameters of networks out of every graph that is built inside the block.

    Gradients pass through the networks to their input. The block need only span the forward
    pass: what a graph leaves out, a later backward pass cannot reach.
    """
    learning = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


_LEAK = 0.2
_HALVING_KERNEL = 4


class FeatureCritic(nn.Sequential):
    """Score every location of a feature map: (B, C, *S) to (B, 1, *S).

    Args:
        channels: Channels C of the features.
        dim: Spatial dimensions, 2 or 3.
    """

    def __init__(self, channels: int, dim: int) -> None:
        conv = convert_dim_to_conv_op(dim)
        widths = [max(1, channels // divisor) for divisor in (1, 2, 4, 8)]
        super().__init__(
            *_with_leaks(
                conv(before, after, 3, padding=1) for before, after in pairwise([*widths, 1])
            )
        )


class OutputCritic(nn.Sequential):
    """Score a whole segmentation: class probabilities (B, K, *S) to (B, 1, *S / 32).

    Five convolutions halve every axis that still has four voxels or more. Axes below, which the
    paper's square slices do not have, keep their size.

    Args:
        num_classes: Channels K of the probabilities.
        size: Spatial size S of what will be judged, that is the patch size.
        filters: Filters of the first convolution.
    """

    def __init__(self, num_classes: int, size: Sequence[int], filters: int = 64) -> None:
        conv: Any = convert_dim_to_conv_op(len(size))
        convolutions = []
        left = list(size)
        for before, after in pairwise([num_classes, *(filters * 2**i for i in range(4)), 1]):
            halves = [edge >= _HALVING_KERNEL for edge in left]
            kernel = [_HALVING_KERNEL if half else 3 for half in halves]
            stride = [2 if half else 1 for half in halves]
            convolutions.append(conv(before, after, kernel, stride, padding=1))
            left = [edge // step for edge, step in zip(left, stride, strict=True)]
        super().__init__(*_with_leaks(convolutions))


def _with_leaks(convolutions: Any) -> list[nn.Module]:
    """Put a leaky ReLU between each two."""
    layers = [layer for conv in convolutions for layer in (conv, nn.LeakyReLU(_LEAK))]
    return layers[:-1]
