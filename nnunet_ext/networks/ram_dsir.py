"""Domain-specific image restoration: the deepest features of an image give the image back.

Paper: Zhou, Qi, Shi, ECCV 2022, arXiv 2208.03901 (RAM-DSIR), whose body was not available to us;
the decoder follows the authors' published implementation, with nnU-Net's planned strides, kernels
and nonlinearity in place of theirs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    maybe_convert_scalar_to_list,
)
from torch import Tensor, nn

from nnunet_ext._common.errors import UserError

MIN_FEATURES = 16
"""Channels are halved from block to block, but not below this."""

IN_PLANE = 2
"""Of the spatial axes, the last ones span the slices in which a volume was acquired."""


class DomainNorm(nn.Module):
    """Instance normalisation with a scale and a shift of each domain.

    The authors normalise over the batch, with statistics of each domain. nnU-Net's batches hold
    too few images of each domain for that; with instance statistics one batch may mix domains.

    Args:
        num_features: Channels C.
        num_domains: Domains K.
    """

    def __init__(self, num_features: int, num_domains: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_domains, num_features))
        self.bias = nn.Parameter(torch.zeros(num_domains, num_features))

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        """Normalise features (B, C, *S) of images whose domains are (B,)."""
        weight, bias = (F.embedding(domains, each).flatten() for each in (self.weight, self.bias))
        # as one image whose channels are those of all, each of which has its own scale and shift
        together = x.reshape(1, -1, *x.shape[2:])
        return F.instance_norm(together, weight=weight, bias=bias).reshape(x.shape)


class RestorationDecoder(nn.Module):
    """Restores an image in the style of its domain from deep features alone.

    There are no skips, so that style has to come from the domain's own scales and shifts. Each
    stride of the encoder but the first, whose block would take more than half of the time and
    memory, is undone by one block: a convolution that halves the channels, linear
    upsampling, a pointwise and a full convolution, each with :class:`DomainNorm` and the
    encoder's nonlinearity. Convolutions are shared by all domains.

    Args:
        encoder: Encoder of a plain-conv or residual-encoder U-Net of
            dynamic_network_architectures; only described, not kept.
        image_channels: Channels C of the images to restore.
        num_domains: Domains K.
        max_stride: Start at the deepest stage whose features are at most this many times smaller
            than the image in plane; the authors' networks end at 16. None starts at the deepest.

    Raises:
        UserError: If the encoder is of another kind.
    """

    def __init__(
        self,
        encoder: Any,
        image_channels: int,
        num_domains: int,
        max_stride: int | None = None,
    ) -> None:
        super().__init__()
        needed = ("strides", "output_channels", "kernel_sizes", "conv_op", "nonlin")
        if not all(hasattr(encoder, name) for name in needed):
            raise UserError(
                "Restoration needs a plain-conv or residual-encoder U-Net, but the plans ask for "
                f"an encoder of class {type(encoder).__name__}. Use plans of a stock nnU-Net "
                "planner, or switch ram_dsir.restoration off."
            )
        reductions = np.cumprod(encoder.strides, axis=0)[:, -IN_PLANE:].max(1)
        self.stage = len(reductions) - 1
        """The encoder's stage whose features are the input."""
        if max_stride is not None:
            self.stage = max(int(np.sum(reductions <= max_stride)) - 1, 0)
        conv = encoder.conv_op
        kernels = [maybe_convert_scalar_to_list(conv, kernel) for kernel in encoder.kernel_sizes]
        self._strides = [tuple(stride) for stride in encoder.strides]
        undone = [s for s in range(self.stage, -1, -1) if any(n > 1 for n in self._strides[s])]
        self._undone = undone[:-1]

        features = encoder.output_channels[self.stage]
        blocks: dict[str, nn.Module] = {}
        for stage in self._undone:
            halved = max(features // 2, min(features, MIN_FEATURES))
            finer = kernels[max(stage - 1, 0)]
            blocks[str(stage)] = _Block(
                features, halved, num_domains, (kernels[stage], finer), encoder
            )
            features = halved
        self.blocks = nn.ModuleDict(blocks)
        self.output = _same_size_conv(conv, features, image_channels, kernels[0])

    def forward(self, features: Tensor, domains: Tensor, size: Sequence[int]) -> Tensor:
        """Restore images.

        Args:
            features: Output (B, F, *R) of the encoder's stage :attr:`stage`.
            domains: Domain of each image (B,), whose style it is to have.
            size: Spatial size of the images.

        Returns:
            Images (B, C, *S) in [-1, 1], where S is the size over the first stride.
        """
        sizes = self._input_sizes(size)
        for stage in self._undone:
            features = self.blocks[str(stage)](features, domains, sizes[stage])
        restored: Tensor = self.output(features).tanh()
        return restored

    def _input_sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Spatial size of what enters each stage of the encoder, and of what leaves the last."""
        sizes = [tuple(size)]
        for stride in self._strides:
            # a strided convolution rounds up
            sizes.append(tuple(-(-n // s) for n, s in zip(sizes[-1], stride, strict=True)))
        return sizes


class _Block(nn.Module):
    """Undoes one stride of the encoder; see :class:`RestorationDecoder`."""

    def __init__(
        self,
        input_features: int,
        features: int,
        num_domains: int,
        kernels: tuple[Sequence[int], Sequence[int]],
        encoder: Any,
    ) -> None:
        super().__init__()
        conv = encoder.conv_op
        coarse, fine = kernels
        dim = convert_conv_op_to_dim(conv)
        self.features = features
        self.interpolation = "bilinear" if dim == 2 else "trilinear"
        # biases would be taken out again by the normalisation
        self.coarse = _same_size_conv(conv, input_features, features, coarse, bias=False)
        self.pointwise = conv(features, features, 1, bias=False)
        self.fine = _same_size_conv(conv, features, features, fine, bias=False)
        self.norms = nn.ModuleList(DomainNorm(features, num_domains) for _ in range(3))
        self.nonlin = encoder.nonlin(**(encoder.nonlin_kwargs or {}))

    def forward(self, x: Tensor, domains: Tensor, size: Sequence[int]) -> Tensor:
        x = self.nonlin(self.norms[0](self.coarse(x), domains))
        # this convolution gives the same before upsampling as behind it, but is cheaper
        x = F.interpolate(self.pointwise(x), tuple(size), mode=self.interpolation)
        x = self.nonlin(self.norms[1](x, domains))
        return self.nonlin(self.norms[2](self.fine(x), domains))


def _same_size_conv(
    conv: Any, inputs: int, outputs: int, kernel: Sequence[int], bias: bool = True
) -> Any:
    return conv(inputs, outputs, kernel, padding=[k // 2 for k in kernel], bias=bias)


def return_features(unet: Any, stage: int) -> None:
    """Let a U-Net return ``(outputs, features of a stage of its encoder)`` in training mode.

    In evaluation it answers as before, and its weights keep their names. Features that are
    outputs survive compilation and DDP.

    Args:
        unet: U-Net whose ``decoder`` gets the outputs of all stages of its ``encoder``.
        stage: Number of the stage.
    """

    def with_features(decoder: nn.Module, inputs: tuple[list[Tensor]], outputs: Any) -> Any:
        return (outputs, inputs[0][stage]) if decoder.training else outputs

    unet.decoder.register_forward_hook(with_features)
