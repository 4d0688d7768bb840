"""Building blocks of ConDSeg: decoupling, dilated convolution, decoding by size.

Paper: Lei et al., "ConDSeg: A General Medical Image Segmentation Framework via Contrast-Driven
Feature Enhancement", AAAI 2025, arXiv 2412.08345. Its body was not available to us; the blocks
follow the behaviour of the authors' published implementation, which is 2D with batch
normalisation. Here they take the dimension, normalisation and activation of any network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    convert_dim_to_conv_op,
    get_matching_batchnorm,
)
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_ext.networks.condseg.recomputed import on_joined, on_prepared

PerAxis: TypeAlias = int | Sequence[int]
"""One number for all axes, or one for each."""

DILATIONS = (6, 12, 18)
"""Dilations of the authors' three dilated branches."""
CHANNEL_REDUCTION = 16
"""Channels over hidden channels of the channel attention."""
SPATIAL_KERNEL = 7
"""Kernel size of the spatial attention."""
HIDDEN_FACTOR = 4
"""Hidden over final channels of the decoupling, 512 over 128 in the authors' network."""
HAS_MKLDNN = torch.backends.mkldnn.is_available()
MIN_LEVELS = 3
"""Feature levels that the size-aware decoder needs: two pairs of neighbours."""


@dataclass(frozen=True)
class ConvStyle:
    """What the convolution blocks of a network are made of.

    Attributes:
        dim: Spatial dimensions, 2 or 3.
        norm: Makes the normalisation for so many channels; None for none.
        nonlin: Makes an activation.
    """

    dim: int
    norm: Callable[[int], nn.Module] | None
    nonlin: Callable[[], nn.Module]

    @classmethod
    def paper(cls, dim: int = 2) -> "ConvStyle":
        """Batch normalisation and ReLU, as the authors have them."""
        return cls(dim, get_matching_batchnorm(convert_dim_to_conv_op(dim)), nn.ReLU)

    @classmethod
    def planned(cls, encoder: Any) -> "ConvStyle":
        """The style of an encoder of dynamic_network_architectures."""
        kind = _QUICK.get(encoder.norm_op, encoder.norm_op)
        norm = kind and partial(kind, **(encoder.norm_op_kwargs or {}))
        nonlin = partial(encoder.nonlin, **(encoder.nonlin_kwargs or {}))
        return cls(convert_conv_op_to_dim(encoder.conv_op), norm, nonlin)

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: PerAxis,
        dilation: PerAxis = 1,
        bias: bool = False,
        groups: int = 1,
    ) -> nn.Module:
        """A convolution that keeps the spatial size; kernels are odd."""
        sizes, dilations = self.per_axis(kernel), self.per_axis(dilation)
        padding = [d * (k // 2) for k, d in zip(sizes, dilations, strict=True)]
        kind: Any = _Conv3d if self.dim == 3 else convert_dim_to_conv_op(self.dim)
        conv: nn.Module = kind(
            inputs,
            outputs,
            sizes,
            padding=padding,
            dilation=dilations,
            bias=bias,
            groups=groups,
        )
        return conv

    def block(
        self,
        inputs: int,
        outputs: int,
        kernel: PerAxis = 3,
        dilation: PerAxis = 1,
        activate: bool = True,
    ) -> nn.Sequential:
        """Convolution without bias, normalisation and, if asked for, activation."""
        conv = self.conv(inputs, outputs, kernel, dilation, bias=self.norm is None)
        return nn.Sequential(conv, *self.after_conv(outputs, activate))

    def after_conv(self, channels: int, activate: bool = True) -> list[nn.Module]:
        """Normalisation and, if asked for, activation."""
        layers = [] if self.norm is None else [self.norm(channels)]
        return [*layers, self.nonlin()] if activate else layers

    def per_axis(self, value: PerAxis) -> list[int]:
        """One number for each axis."""
        return [value] * self.dim if isinstance(value, int) else list(value)


class _Conv3d(nn.Conv3d):
    """A convolution for single images, too, which PyTorch gives to a slower routine on a CPU."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not HAS_MKLDNN:
            return super()._conv_forward(input, weight, bias)
        is_real = type(input) is Tensor  # and not one of those that only tell shapes
        fits = input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        if not (is_real and fits):
            return super()._conv_forward(input, weight, bias)
        shape: Any = (self.padding, self.stride, self.dilation, self.groups)
        convolved: Tensor = torch.mkldnn_convolution(input, weight, bias, *shape)
        return convolved


class _QuickOnCpu(_InstanceNorm):
    """The same numbers for prediction, in a sixth of the time that PyTorch takes on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled() or self.track_running_stats:
            return super().forward(x)
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class _InstanceNorm2d(_QuickOnCpu, nn.InstanceNorm2d): ...


class _InstanceNorm3d(_QuickOnCpu, nn.InstanceNorm3d): ...


_QUICK: dict[Any, Any] = {nn.InstanceNorm2d: _InstanceNorm2d, nn.InstanceNorm3d: _InstanceNorm3d}


class ChannelAttention(nn.Module):
    """Weight channels by a sigmoid of a small network on their spatial mean and maximum.

    After instance normalisation all means are nearly alike and the maxima carry the information.

    Args:
        channels: Channels C of the features.
        style: Its dimension counts only; as the authors' it has ReLU and no normalisation.
        groups: Of channels that do not know of each other.
    """

    def __init__(self, channels: int, style: ConvStyle, groups: int = 1) -> None:
        super().__init__()
        hidden = groups * max(1, channels // groups // CHANNEL_REDUCTION)
        self.mlp = nn.Sequential(
            style.conv(channels, hidden, 1, groups=groups),
            nn.ReLU(),
            style.conv(hidden, channels, 1, groups=groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return weighted features of the shape of ``x`` (B, C, *S)."""
        axes = tuple(range(2, x.ndim))
        pooled = torch.cat([x.mean(axes, keepdim=True), x.amax(axes, keepdim=True)])
        of_mean, of_maximum = self.mlp(pooled).chunk(2)  # both at once, because it is tiny
        return x * torch.sigmoid(of_mean + of_maximum)


class SpatialAttention(nn.Module):
    """Weight positions by a sigmoid of a convolution on the mean and maximum over channels.

    Args:
        style: Its dimension counts only.
        kernel: Of the surrounding convolutions; axes along which it is 1 stay apart here, too.
    """

    def __init__(self, style: ConvStyle, kernel: PerAxis = 3) -> None:
        super().__init__()
        sizes = [SPATIAL_KERNEL if size > 1 else 1 for size in style.per_axis(kernel)]
        self.conv = style.conv(2, 1, sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Return weighted features of the shape of ``x`` (B, C, *S)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


class DilatedBlock(nn.Module):
    """Features of one encoder level seen at several ranges, with both kinds of attention.

    Args:
        inputs: Channels of the encoder's features.
        width: Channels of the result.
        style: What blocks are made of.
        kernel: Kernel size, per axis or for all.
        dilations: Of the dilated branches, each per axis or for all; the block has one branch
            more, a convolution of kernel size 1.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        style: ConvStyle,
        kernel: PerAxis = 3,
        dilations: Sequence[PerAxis] = DILATIONS,
    ) -> None:
        super().__init__()
        kinds: list[tuple[PerAxis, PerAxis]] = [(1, 1), *((kernel, each) for each in dilations)]
        self.branches = nn.ModuleList(
            style.conv(inputs, width, size, dilation, bias=style.norm is None)
            for size, dilation in kinds
        )
        # normalised, activated and weighted at once; many small steps would take longer
        channels = len(kinds) * width
        self.after_branches = nn.Sequential(
            *style.after_conv(channels), ChannelAttention(channels, style, groups=len(kinds))
        )
        self.fuse = style.block(channels, width, kernel, activate=False)
        self.shortcut = style.block(inputs, width, 1, activate=False)
        self.nonlin = style.nonlin()
        self.attention = SpatialAttention(style, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Turn features (B, ``inputs``, *S) into (B, ``width``, *S)."""
        seen = torch.cat([branch(x) for branch in self.branches], dim=1)
        *normalise, attend = self.after_branches
        for layer in normalise:
            seen = layer(seen)
        fused = on_prepared(self.fuse, attend, seen)
        attended: Tensor = self.attention(self.nonlin(fused + self.shortcut(x)))
        return attended


class Decoupled(NamedTuple):
    """What the decoupling gives, features (B, ``width``, *S) each.

    Attributes:
        foreground: Guides the decoder.
        background: Guides the decoder.
        uncertain: Serves the losses only; None if it was not asked for.
    """

    foreground: Tensor
    background: Tensor
    uncertain: Tensor | None


class SemanticInformationDecoupling(nn.Module):
    """Split the deepest features into those of foreground, background and uncertain regions.

    Three equal branches; what makes them differ is the loss
    (:class:`nnunet_ext.losses.SemanticDecouplingLoss`).

    Args:
        inputs: Channels of the deepest features.
        width: Channels of each result.
        style: What blocks are made of.
        kernel: Kernel size, per axis or for all.
        hidden: Channels in between; default four times ``width``, the authors' ratio.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        style: ConvStyle,
        kernel: PerAxis = 3,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or HIDDEN_FACTOR * width
        self.foreground, self.background, self.uncertain = (
            nn.Sequential(
                style.block(inputs, hidden, kernel),
                style.block(hidden, width, kernel),
                style.block(width, width, 1),
            )
            for _ in Decoupled._fields
        )

    def forward(self, x: Tensor, uncertain: bool = True) -> Decoupled:
        """Decouple features (B, ``inputs``, *S).

        Args:
            x: The deepest features.
            uncertain: Compute the uncertain features, too, which prediction does not need.
        """
        return Decoupled(
            self.foreground(x), self.background(x), self.uncertain(x) if uncertain else None
        )


class Ascent(nn.Module):
    """Bring deep features up through the sizes of finer levels, one block at each.

    Args:
        channels: Of the input, then after each block.
        kernels: Kernel size of each block, deepest first.
        style: What blocks are made of.
    """

    def __init__(
        self, channels: Sequence[int], kernels: Sequence[PerAxis], style: ConvStyle
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            style.block(inputs, outputs, kernel)
            for inputs, outputs, kernel in zip(channels[:-1], channels[1:], kernels, strict=True)
        )

    def forward(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Turn features (B, C, *S) into those at each of ``sizes``, one for each block."""
        risen = []
        for block, size in zip(self.blocks, sizes, strict=True):
            x = on_joined(block, [x], size)
            risen.append(x)
        return risen


class DecoderBlock(nn.Module):
    """Merge features of two neighbouring levels.

    Args:
        width: Channels of both and of the result.
        style: What blocks are made of.
        kernel: Kernel size, per axis or for all.
    """

    def __init__(self, width: int, style: ConvStyle, kernel: PerAxis = 3) -> None:
        super().__init__()
        self.reduce = style.block(2 * width, width, 1)
        self.first = style.block(width, width, kernel, activate=False)
        self.second = style.block(width, width, kernel, activate=False)
        self.third = style.block(width, width, 1, activate=False)
        self.nonlin = style.nonlin()
        self.attention = nn.Sequential(
            ChannelAttention(width, style), SpatialAttention(style, kernel)
        )

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Merge ``deep`` (B, W, *S1) into ``skip`` (B, W, *S2); the result is like ``skip``."""
        x1 = on_joined(self.reduce, [deep, skip], skip.shape[2:])
        x2 = self.nonlin(self.first(x1) + x1)
        x3 = self.nonlin(self.second(x2) + x2 + x1)
        merged: Tensor = self.attention(self.nonlin(self.third(x3) + x3 + x2 + x1))
        return merged


class SizeAwareDecoder(nn.Module):
    """Decode small, medium and large structures from three pairs of neighbouring levels.

    Small ones come from the two finest levels, large ones from the two deepest, medium ones from
    the pair in the middle. With three levels there are two pairs, so that medium and large share
    theirs, each with its own weights. Four levels are the authors' network.

    Args:
        width: Channels of all levels and of the result.
        style: What blocks are made of.
        kernels: Kernel size of each level, finest first.

    Raises:
        ValueError: If there are fewer than three levels.
    """

    def __init__(self, width: int, style: ConvStyle, kernels: Sequence[PerAxis]) -> None:
        super().__init__()
        levels = len(kernels)
        if levels < MIN_LEVELS:
            raise ValueError(
                f"The decoder needs at least {MIN_LEVELS} feature levels, got {levels}."
            )
        self.pairs = (0, (levels - 1) // 2, levels - 2)
        """Finer level of the small, medium and large pair."""
        self.blocks = nn.ModuleList(
            DecoderBlock(width, style, kernels[finer]) for finer in self.pairs
        )
        self.fuse = style.block(3 * width, width, kernels[0])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode features (B, W, *S) of all levels, finest first, to the size of the finest."""
        decoded = [
            block(features[finer + 1], features[finer])
            for finer, block in zip(self.pairs, self.blocks, strict=True)
        ]
        return on_joined(self.fuse, decoded, features[0].shape[2:])
