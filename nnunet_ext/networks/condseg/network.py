"""ConDSeg on nnU-Net's planned encoders: a decoder guided by what is object and what is not.

Paper: Lei et al., "ConDSeg: A General Medical Image Segmentation Framework via Contrast-Driven
Feature Enhancement", AAAI 2025, arXiv 2412.08345. The authors' network is 2D, for one class, on a
ResNet-50 without full-resolution features; what changes for others is our judgement.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import reduce
from math import gcd, prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

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
    DilatedBlock,
    SemanticInformationDecoupling,
    SizeAwareDecoder,
)
from nnunet_ext.networks.condseg.recomputed import on_prepared
from nnunet_ext.networks.operations import resize

Answer: TypeAlias = Literal["logits", "head", "decoupled"]
Decoder: TypeAlias = Literal["condseg", "alone", "head", "plan"]

HEAD_WIDTH = 64
"""Channels per level of the authors' light head."""
WIDTH_PER_HEAD = 32
"""Channels of each attention head of the authors."""
BUDGET_PER_VOXEL = 32
"""Attention values for each voxel of the patch, as many as a stock nnU-Net's first feature map."""


FIRST_EDITION = (
    "lacks the light head (head.seg_layers) that ConDSeg's decoder now adds to: it was made by "
    "an older nnunet_ext. Train again, or use the nnunet_ext that made it."
)


class DecoupledLogits(NamedTuple):
    """What the network answers while it is trained.

    Attributes:
        logits: Segmentation (B, K, *S).
        maps: Logits of foreground, one channel for each of M maps, of background and of the
            uncertain region (B, M + 2, *S'), S' the size of stage 1: only training needs them, and
            full resolution is not worth its cost there.
    """

    logits: Tensor
    maps: Tensor


class EncoderHead(nn.Module):
    """A light head on the features of an encoder.

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


class ConDSegNet(nn.Module):
    """A planned encoder with a light head, under ConDSeg's decoder or the planned one.

    The light head can be trained first; the decoder (:class:`ConDSegDecoder`) adds to its logits,
    and begins with nothing, because its last convolution is zero. The authors throw the head away.

    ``encoder`` keeps nnU-Net's names, so that a stock checkpoint fits. The rest lives in
    modules called ``seg_layers``, a name by which ``-pretrained_weights`` leaves it out.

    Args:
        unet: Plain-conv or residual-encoder U-Net of dynamic_network_architectures, weights
            already initialised.
        num_classes: Output channels K.
        patch_size: Size of the images that the network is planned for. It decides how attention
            fits the budget and how far dilated convolutions reach; others may be segmented, too.
        decoder: ``"condseg"`` adds the method's decoder to the light head, ``"alone"`` leaves the
            head's logits out, ``"head"`` is the head without decoder, ``"plan"`` keeps the
            planned decoder instead of both.
        head: Whether a network that does not need a light head has one all the same, to be
            trained first.
        width: Channels of the decoder; default those of the encoder's first stage, which keeps
            the cost near that of the planned decoder. The authors have 128 under a ResNet-50.
        attention_budget: Most attention values per guide, image and level; default
            ``BUDGET_PER_VOXEL`` for each voxel of the patch. 0 leaves attention out.
        foreground_maps: Maps of foreground: 1 for what all classes have in common, or as many as
            there are classes.

    Raises:
        UserError: If the U-Net is of another kind or has fewer than four stages.
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        unet: nn.Module,
        num_classes: int,
        patch_size: Sequence[int],
        decoder: Decoder = "condseg",
        head: bool = True,
        width: int | None = None,
        attention_budget: int | None = None,
        foreground_maps: int = 1,
    ) -> None:
        super().__init__()
        if not (hasattr(unet, "encoder") and hasattr(unet, "decoder")):
            raise UserError(
                f"ConDSeg needs a plain-conv or residual-encoder U-Net, but the plans ask for "
                f"{type(unet).__name__}. Plan with ConDSegPlanner or a stock nnU-Net planner."
            )
        self.kind = decoder
        self.encoder = unet.encoder
        self.decoder = unet.decoder if decoder == "plan" else nn.ModuleDict()
        self.head = nn.ModuleDict()
        initialize = getattr(unet, "initialize", None)
        if head or decoder in ("condseg", "head"):
            style = ConvStyle.planned(self.encoder)
            channels = self.encoder.output_channels
            self.head["seg_layers"] = EncoderHead(channels, num_classes, style)
        if decoder in ("condseg", "alone"):
            stages = len(self.encoder.stages)
            if stages <= MIN_LEVELS:
                raise UserError(
                    f"ConDSeg needs an encoder of at least {MIN_LEVELS + 1} stages, but the "
                    f"planned network has {stages}. Images or patches are too small for it."
                )
            self.decoder["seg_layers"] = ConDSegDecoder(
                self.encoder, num_classes, patch_size, width, attention_budget, foreground_maps
            )
        for module in (self.head, self.decoder if decoder != "plan" else None):
            if module is not None and initialize is not None:
                module.apply(initialize)
        if decoder == "condseg":
            nn.init.zeros_(self.decoder["seg_layers"].output[-1].weight)
            nn.init.zeros_(self.decoder["seg_layers"].output[-1].bias)

    def forward(self, x: Tensor, answer: Answer = "logits") -> Any:
        """Segment images (B, C, *S).

        Args:
            x: Images.
            answer: ``"logits"`` (B, K, *S) for prediction, which with the planned decoder are
                those of stock nnU-Net; ``"head"``, the light head's; ``"decoupled"`` for training
                the method's decoder, which gives :class:`DecoupledLogits`.
        """
        return self.answer(self.encoder(x), answer)

    def answer(self, features: Sequence[Tensor], answer: Answer) -> Any:
        """Answer as :meth:`forward` does, from features (B, C_s, *S_s) of all encoder stages."""
        if self.kind == "plan" and answer != "head":
            return self.decoder(features)
        head: Tensor | None = None
        if answer == "head" or self.kind != "alone":
            head = self.head["seg_layers"](features, features[0].shape[2:])
        if answer == "head" or self.kind == "head":
            return head
        decoded = self.decoder["seg_layers"](features, decoupled=answer == "decoupled")
        if head is None:
            return decoded
        if answer == "decoupled":
            return decoded._replace(logits=head + decoded.logits)
        return head + decoded

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights.

        Raises:
            UserError: If they are of the first edition, which had no light head of its own.
        """
        names = self.state_dict()
        lacking = {name.split(".")[0] for name in names if name not in state_dict}
        if "head" in lacking:
            raise UserError(f"The checkpoint {FIRST_EDITION}")
        return super().load_state_dict(state_dict, *args, **kwargs)

    def attention(self) -> list[str]:
        """Which level attends how, in words, finest first; nothing without attention blocks."""
        if self.kind not in ("condseg", "alone"):
            return []
        windows = [block.window for block in self.decoder["seg_layers"].aggregation]
        return [
            f"level {level}: "
            + (f"attention within {'x'.join(map(str, w))}" if w else "plain convolutions")
            for level, w in enumerate(windows, start=1)
        ]

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Estimate memory of training as nnU-Net's planner does, in elements of feature maps.

        Args:
            input_size: Patch size, without batch and channels.
        """
        encoder = int(self.encoder.compute_conv_feature_map_size(input_size))
        head = self._map_size(self.head, input_size, tuple(input_size))
        if self.kind == "plan":
            decoder = int(self.decoder.compute_conv_feature_map_size(input_size))
        else:
            decoder = head + self._map_size(self.decoder, input_size, True)
        two_views = 2 * (encoder + head)  # while the encoder is trained under its head
        return max(two_views, encoder + decoder)

    def _map_size(self, modules: nn.ModuleDict, input_size: Sequence[int], how: Any) -> int:
        # nnU-Net counts outputs of convolutions, half of what such a network keeps for its
        # gradient; attention keeps more. So all that is kept is counted, without being stored
        kept: dict[int, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            if not isinstance(x, nn.Parameter):
                kept[x.untyped_storage()._cdata] = x
            return x

        stage_sizes = _stage_sizes(self.encoder, input_size)
        features = [
            torch.empty(1, channels, *size, device="meta", requires_grad=True)
            for channels, size in zip(self.encoder.output_channels, stage_sizes, strict=True)
        ]
        for module in modules.values():
            counted = copy.deepcopy(module).to("meta")
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                counted(features, how)
        return sum(x.untyped_storage().nbytes() // x.element_size() for x in kept.values()) // 2


class ConDSegDecoder(nn.Module):
    """Decode the features of all encoder stages.

    Every stage but the first is a level: it is seen at several ranges
    (:class:`DilatedBlock`), then, from deep to shallow, joined with the level below under
    the guidance of the decoupled deepest features (:class:`ContrastDrivenFeatureAggregation`).
    These rise in one :class:`Ascent` that serves all levels on its way and ends in the maps, where
    the authors have one for each level and others for the maps. :class:`SizeAwareDecoder` and
    convolutions at full resolution turn the levels into logits.
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
        width: int | None,
        attention_budget: int | None,
        foreground_maps: int,
    ) -> None:
        super().__init__()
        style = ConvStyle.planned(encoder)
        channels = list(encoder.output_channels)
        width = width or channels[0]
        heads = gcd(width, max(1, width // WIDTH_PER_HEAD))
        if attention_budget is None:
            attention_budget = BUDGET_PER_VOXEL * prod(patch_size)
        kernels = [style.per_axis(kernel) for kernel in encoder.kernel_sizes]
        sizes = _stage_sizes(encoder, patch_size)
        deepest = len(channels) - 1
        levels = range(1, deepest + 1)
        # nnU-Net strides least along the axis with the thickest voxels; it puts that one first
        coarsest = int(np.argmin(np.prod(encoder.strides, axis=0)))

        self.dilated = nn.ModuleList(
            nn.Sequential(
                # the authors' branches take all channels of a level, up to ten times as many
                style.block(channels[level], width, 1),
                DilatedBlock(width, width, style, kernels[level], _dilations_within(sizes[level])),
            )
            for level in levels
        )
        self.decoupling = SemanticInformationDecoupling(
            channels[deepest], width, style, kernels[deepest]
        )
        self.ascents = nn.ModuleDict(
            {
                name: Ascent([width] * (deepest + 1), kernels[:0:-1], style)
                for name in ("foreground", "background", "uncertain")
            }
        )
        self.map_logits = nn.ModuleDict(
            {
                name: style.conv(width, maps, 1, bias=True)
                for name, maps in zip(self.ascents, (foreground_maps, 1, 1), strict=True)
            }
        )
        self.aggregation = nn.ModuleList(
            ContrastDrivenFeatureAggregation(
                width if level == deepest else 2 * width,
                width,
                style,
                heads,
                plan_attention(sizes[level], heads, attention_budget, coarsest, kernels[level]),
                kernels[level],
            )
            for level in levels
        )
        self.size_aware = SizeAwareDecoder(width, style, kernels[1:])

        # full-resolution features, which the authors' encoder lacks
        self.skip = style.block(channels[0], width, 1)
        last_width = max(1, width // 2)
        self.output = nn.Sequential(
            style.block(width, width, kernels[0]),
            style.block(width, last_width, 1),
            style.conv(last_width, num_classes, 1, bias=True),
        )

    def forward(self, features: Sequence[Tensor], decoupled: bool = False) -> Any:
        """Decode features (B, C_s, *S_s) of all stages s, full resolution first.

        Args:
            features: Of the encoder.
            decoupled: Give :class:`DecoupledLogits` instead of logits (B, K, *S).
        """
        sizes = [x.shape[2:] for x in features]
        way_up = sizes[:0:-1]
        decoupling = self.decoupling(features[-1], uncertain=decoupled)
        guides = {
            name: self.ascents[name](x, way_up)
            for name, x in decoupling._asdict().items()
            if x is not None
        }
        aggregated: list[Tensor] = []  # finest first
        for level in range(len(features) - 1, 0, -1):
            x = self.dilated[level - 1](features[level])
            foreground, background = guides["foreground"], guides["background"]
            deeper = aggregated[0] if aggregated else None
            x = self.aggregation[level - 1](x, foreground[-level], background[-level], deeper)
            aggregated.insert(0, x)
        first, second, last = self.output
        x = on_prepared(first, _add, self.size_aware(aggregated), self.skip(features[0]))
        logits = last(second(x))
        if not decoupled:
            return logits
        maps = [self.map_logits[name](levels[-1]) for name, levels in guides.items()]
        return DecoupledLogits(logits, torch.cat(maps, dim=1))


def _add(deep: Tensor, skip: Tensor) -> Tensor:
    return resize(deep, skip.shape[2:]) + skip


def _stage_sizes(encoder: Any, input_size: Sequence[int]) -> list[list[int]]:
    divisors = np.cumprod(np.array(encoder.strides), axis=0)
    return (np.array(input_size) // divisors).tolist()


def _dilations_within(size: Sequence[int]) -> list[tuple[int, ...]]:
    """Limit dilations to half the feature size, beyond which only the central tap sees data.

    Those that become alike are one.
    """
    limited = (tuple(min(dilation, max(1, n // 2)) for n in size) for dilation in DILATIONS)
    return list(dict.fromkeys(limited))
