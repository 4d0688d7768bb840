"""ConDSeg on nnU-Net's planned encoders: a decoder guided by what is object and what is not.

Paper: Lei et al., "ConDSeg: A General Medical Image Segmentation Framework via Contrast-Driven
Feature Enhancement", AAAI 2025, arXiv 2412.08345. The authors' network is 2D, for one class, on a
ResNet-50 without full-resolution features; what changes for others is our judgement.
"""

import copy
from collections.abc import Sequence
from functools import reduce
from math import ceil, prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks.condseg.attention import (
    ContrastDrivenFeatureAggregation,
    plan_attention,
)
from nnunet_ext.networks.condseg.parts import (
    DILATIONS,
    MIN_LEVELS,
    Ascent,
    ConvStyle,
    Decoupled,
    DilatedBlock,
    SemanticInformationDecoupling,
    SizeAwareDecoder,
    resize,
)

Answer: TypeAlias = Literal["logits", "features", "decoupled"]

HEADS = 4
HEAD_WIDTH = 64
"""Channels per level of the authors' light head."""
MAX_SKIP_WIDTH = 32
"""Channels that the full-resolution features are reduced to, where they have more."""
MAP_WIDTHS = (0.5, 1, 2)
"""Channels on the way to the maps at stages 1, 2 and all deeper ones, over ``width``."""


class DecoupledLogits(NamedTuple):
    """What the network answers while it is trained.

    Attributes:
        logits: Segmentation (B, K, *S).
        maps: Logits of foreground, background and uncertain region (B, 3, *S'), S' the size of
            stage 1: only training needs them, and full resolution is not worth its cost there.
    """

    logits: Tensor
    maps: Tensor


class EncoderHead(nn.Module):
    """A light head that trains an encoder, then is thrown away.

    The authors bring 64 channels of every level to full size, concatenate them and convolve with
    kernel size 1. Linear interpolation and that convolution commute, so here each level is
    convolved at its own size and the results are interpolated and added up: the same map for a
    fraction of the memory. The block before it comes before resizing, too, which the authors do
    after; normalisation and activation make that differ.

    Args:
        channels: Of the features of each stage; the first stage is not used.
        num_classes: Output channels K.
        style: What blocks are made of.
        width: Channels of each level.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, style: ConvStyle, width: int = HEAD_WIDTH
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                style.block(inputs, width, 1),
                # one bias is enough for the sum of all levels
                style.conv(width, num_classes, 1, bias=level == 0),
            )
            for level, inputs in enumerate(channels[1:])
        )

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Turn the features of all stages into logits (B, K, *size)."""
        levels = zip(self.levels, features[1:], strict=True)
        return reduce(torch.add, (resize(level(x), size) for level, x in levels))


class EncoderFirstUNet(nn.Module):
    """A planned U-Net whose encoder can be trained before its decoder.

    Args:
        unet: Plain-conv or residual-encoder U-Net of dynamic_network_architectures, weights
            already initialised.

    Raises:
        UserError: If it is of another kind.
    """

    encoder: Any
    decoder: Any

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        if not (hasattr(unet, "encoder") and hasattr(unet, "decoder")):
            raise UserError(
                f"ConDSeg needs a plain-conv or residual-encoder U-Net, but the plans ask for "
                f"{type(unet).__name__}. Plan with ConDSegPlanner or a stock nnU-Net planner."
            )
        self.encoder = unet.encoder
        self.decoder = unet.decoder

    def forward(self, x: Tensor, answer: Answer = "logits") -> Any:
        """Segment images (B, C, *S).

        Args:
            x: Images.
            answer: ``"logits"`` as stock nnU-Net, ``"features"`` of all encoder stages.
        """
        features = self.encoder(x)
        return features if answer == "features" else self.decoder(features)

    def encoder_head(self, num_classes: int) -> EncoderHead:
        """Make the light head that fits this encoder; it is not part of the network."""
        style = ConvStyle.planned(self.encoder)
        return EncoderHead(self.encoder.output_channels, num_classes, style)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Estimate memory of training as nnU-Net's planner does, in elements of feature maps.

        Args:
            input_size: Patch size, without batch and channels.
        """
        encoder = int(self.encoder.compute_conv_feature_map_size(input_size))
        two_views = 2 * encoder  # while the encoder is trained alone
        return max(two_views, encoder + self._decoder_map_size(input_size))

    def _decoder_map_size(self, input_size: Sequence[int]) -> int:
        return int(self.decoder.compute_conv_feature_map_size(input_size))


class ConDSegNet(EncoderFirstUNet):
    """A planned encoder under ConDSeg's decoder, see :class:`ConDSegDecoder`.

    ``encoder`` keeps nnU-Net's names, so that a stock checkpoint fits. The rest lives in
    ``decoder.seg_layers``, which nnU-Net's ``-pretrained_weights`` never transfers.

    Args:
        unet: Plain-conv or residual-encoder U-Net of dynamic_network_architectures, weights
            already initialised; its decoder is dropped.
        num_classes: Output channels K.
        patch_size: Size of the images that the network is planned for. It decides how attention
            fits the budget and how far dilated convolutions reach; others may be segmented, too.
        width: Channels of the decoder; default those of the encoder's first stage, rounded up to
            a multiple of ``heads``, which keeps the cost near that of the planned decoder. The
            authors have 128 under a ResNet-50.
        heads: Attention heads.
        attention_budget: Most attention values per guide, image and level; default the size of
            one feature map of the encoder at full resolution, so that attention never is what
            takes most memory. 0 leaves attention out.
        full_resolution_skip: Let the encoder's full-resolution features, which the authors'
            encoder lacks, take part in the last convolutions.
        recompute: Recompute attention in the backward pass instead of keeping it.

    Raises:
        UserError: If the U-Net is of another kind or has fewer than four stages, or ``heads``
            does not divide ``width``.
    """

    def __init__(
        self,
        unet: nn.Module,
        num_classes: int,
        patch_size: Sequence[int],
        width: int | None = None,
        heads: int = HEADS,
        attention_budget: int | None = None,
        full_resolution_skip: bool = True,
        recompute: bool = True,
    ) -> None:
        super().__init__(unet)
        stages = len(self.encoder.stages)
        if stages <= MIN_LEVELS:
            raise UserError(
                f"ConDSeg needs an encoder of at least {MIN_LEVELS + 1} stages, but the planned "
                f"network has {stages}. Images or patches are too small for it."
            )
        width = width or ceil(self.encoder.output_channels[0] / heads) * heads
        if width % heads:
            raise UserError(
                f"condseg.width must be a multiple of condseg.heads, got {width} and {heads}."
            )
        if attention_budget is None:
            attention_budget = self.encoder.output_channels[0] * prod(patch_size)
        decoder = ConDSegDecoder(
            self.encoder,
            num_classes,
            patch_size,
            width,
            heads,
            attention_budget,
            full_resolution_skip,
            recompute,
        )
        initialize = getattr(unet, "initialize", None)
        if initialize is not None:
            decoder.apply(initialize)
        self.decoder = nn.ModuleDict({"seg_layers": decoder})

    def forward(self, x: Tensor, answer: Answer = "logits") -> Any:
        """Segment images (B, C, *S).

        Args:
            x: Images.
            answer: ``"logits"`` (B, K, *S) for prediction, ``"features"`` of all encoder stages
                for a first phase of training, ``"decoupled"`` for the second, which gives
                :class:`DecoupledLogits`.
        """
        features = self.encoder(x)
        if answer == "features":
            return features
        return self.decoder["seg_layers"](features, decoupled=answer == "decoupled")

    def _decoder_map_size(self, input_size: Sequence[int]) -> int:
        # without storage: outputs of convolutions and attention are counted, not computed
        decoder = copy.deepcopy(self.decoder["seg_layers"]).to("meta")
        sizes: list[int] = []
        for module in decoder.modules():
            if isinstance(module, _ConvNd | nn.Linear):
                module.register_forward_hook(lambda _module, _inputs, y: sizes.append(y.numel()))
        stage_sizes = _stage_sizes(self.encoder, input_size)
        features = [
            torch.empty(1, channels, *size, device="meta")
            for channels, size in zip(self.encoder.output_channels, stage_sizes, strict=True)
        ]
        with torch.no_grad():
            decoder(features, decoupled=True)
        return sum(sizes)


class ConDSegDecoder(nn.Module):
    """Decode the features of all encoder stages.

    Every stage but the first is a level: it is seen at several ranges
    (:class:`DilatedBlock`), then, from deep to shallow, joined with the level below under
    the guidance of the decoupled deepest features (:class:`ContrastDrivenFeatureAggregation`).
    These rise in one :class:`Ascent` that serves all levels on its way, where the authors have one
    for each level. :class:`SizeAwareDecoder` and convolutions at full resolution turn the levels
    into logits.
    Five stages are the authors' layout; deeper plans lose nothing, because levels accumulate.

    All arguments but the first are those of :class:`ConDSegNet`.

    Args:
        encoder: Encoder of dynamic_network_architectures whose features come in; only looked at.
    """

    def __init__(
        self,
        encoder: Any,
        num_classes: int,
        patch_size: Sequence[int],
        width: int,
        heads: int,
        attention_budget: int,
        full_resolution_skip: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        style = ConvStyle.planned(encoder)
        channels = list(encoder.output_channels)
        kernels = [style.per_axis(kernel) for kernel in encoder.kernel_sizes]
        sizes = _stage_sizes(encoder, patch_size)
        deepest = len(channels) - 1
        levels = range(1, deepest + 1)
        # nnU-Net strides least along the axis with the thickest voxels; it puts that one first
        coarsest = int(np.argmin(np.prod(encoder.strides, axis=0)))

        self.dilated = nn.ModuleList(
            DilatedBlock(
                channels[level], width, style, kernels[level], _dilations_within(sizes[level])
            )
            for level in levels
        )
        self.decoupling = SemanticInformationDecoupling(
            channels[deepest], width, style, kernels[deepest]
        )
        self.foreground_guides, self.background_guides = (
            Ascent([width] * (deepest + 1), kernels[:0:-1], style) for _ in range(2)
        )
        self.aggregation = nn.ModuleList(
            ContrastDrivenFeatureAggregation(
                width if level == deepest else 2 * width,
                width,
                style,
                heads,
                plan_attention(sizes[level], heads, attention_budget, coarsest, kernels[level]),
                kernels[level],
                recompute=recompute,
            )
            for level in levels
        )
        self.size_aware = SizeAwareDecoder(width, style, kernels[1:])

        skip_width = min(MAX_SKIP_WIDTH, channels[0]) if full_resolution_skip else 0
        self.skip = style.block(channels[0], skip_width, 1) if full_resolution_skip else None
        last_width = max(1, width // 2)
        self.output = nn.Sequential(
            style.block(width + skip_width, width, kernels[0]),
            style.block(width, last_width, 1),
            style.conv(last_width, num_classes, 1, bias=True),
        )

        widths = [
            max(1, int(width * MAP_WIDTHS[min(level, len(MAP_WIDTHS)) - 1]))
            for level in reversed(levels)
        ]
        self.map_ascents = nn.ModuleList(
            Ascent([width, *widths], kernels[:0:-1], style) for _ in Decoupled._fields
        )
        self.map_logits = nn.ModuleList(
            style.conv(widths[-1], 1, 1, bias=True) for _ in Decoupled._fields
        )

    def forward(self, features: Sequence[Tensor], decoupled: bool = False) -> Any:
        """Decode features (B, C_s, *S_s) of all stages s, full resolution first.

        Args:
            features: Of the encoder.
            decoupled: Give :class:`DecoupledLogits` instead of logits (B, K, *S).
        """
        sizes = [x.shape[2:] for x in features]
        way_up = sizes[:0:-1]
        guides = self.decoupling(features[-1], uncertain=decoupled)
        foreground = self.foreground_guides(guides.foreground, way_up)
        background = self.background_guides(guides.background, way_up)
        aggregated: list[Tensor] = []  # finest first
        for level in range(len(features) - 1, 0, -1):
            x = self.dilated[level - 1](features[level])
            if aggregated:
                x = torch.cat([x, resize(aggregated[0], sizes[level])], dim=1)
            x = self.aggregation[level - 1](x, foreground[-level], background[-level])
            aggregated.insert(0, x)
        x = resize(self.size_aware(aggregated), sizes[0])
        if self.skip is not None:
            x = torch.cat([x, self.skip(features[0])], dim=1)
        logits = self.output(x)
        if not decoupled:
            return logits
        maps = [
            to_logits(ascent(guide, way_up)[-1])
            for guide, ascent, to_logits in zip(
                guides, self.map_ascents, self.map_logits, strict=True
            )
        ]
        return DecoupledLogits(logits, torch.cat(maps, dim=1))


def _stage_sizes(encoder: Any, input_size: Sequence[int]) -> list[list[int]]:
    divisors = np.cumprod(np.array(encoder.strides), axis=0)
    return (np.array(input_size) // divisors).tolist()


def _dilations_within(size: Sequence[int]) -> list[list[int]]:
    """Limit dilations to half the feature size, beyond which only the central tap sees data."""
    return [[min(dilation, max(1, n // 2)) for n in size] for dilation in DILATIONS]
