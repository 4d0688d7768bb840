"""A planned U-Net that runs plainly or under a class map."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks.catenorm.layer import CateNorm
from nnunet_ext.networks.catenorm.passes import OwnStatistics, PriorInForce, SwitchedSequential

Logits: TypeAlias = Tensor | list[Tensor]
"""One tensor (B, K, *S), or one per scale, full resolution first (deep supervision)."""
Pass: TypeAlias = Literal["auto", "first", "second", "both"]

AUTHORS_ENCODER_STAGES = 4
"""The four highest-resolution encoder blocks are modified in the authors' own example."""
FIRST_LOW_STAGE = 2
"""Encoder stages from here on are low; those before are computed once for both passes."""


class _ClassConditioning(nn.ModuleList):
    """Everything that only the second pass has, and two flags that must travel with the weights.

    First all CateNorm layers, then the statistics that layers without one have in a second pass.

    ``active`` says whether the second pass has been trained, ``regions`` whether the prior
    is a sigmoid per region instead of a softmax over classes. Both are buffers, so that a
    checkpoint alone tells the predictor, and are mirrored into Python booleans, so that
    the forward pass reads no tensor.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self.is_active = False
        self.has_regions = False
        self.register_buffer("active", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("regions", torch.zeros((), dtype=torch.uint8))
        self.register_load_state_dict_post_hook(_mirror_flags)

    def set_flags(self, *, active: bool, regions: bool) -> None:
        self.is_active, self.has_regions = active, regions
        self.get_buffer("active").fill_(active)
        self.get_buffer("regions").fill_(regions)


def _mirror_flags(module: nn.Module, _incompatible_keys: object = None) -> None:
    assert isinstance(module, _ClassConditioning)
    module.is_active = bool(module.get_buffer("active"))
    module.has_regions = bool(module.get_buffer("regions"))


@dataclass(frozen=True)
class _ModifiedBlock:
    """A convolution block that owns two sets of normalisation."""

    block: ConvDropoutNormReLU
    catenorm: CateNorm


class CateNormUNet(nn.Module):
    """A planned U-Net that looks at each image twice.

    The first pass is the U-Net as it is. Its class probabilities, detached, are the prior
    of the second pass, in which the chosen blocks replace their normalisation by
    :class:`CateNorm`. All convolutions are shared, and what lies before the first of these blocks
    is computed once for both passes. Batch normalisation behind it that is not replaced has running
    statistics of its own in each pass; in the authors' code it mixes those of both.

    ``encoder`` and ``decoder`` are those of the U-Net, under nnU-Net's names: a stock
    checkpoint fits, and this one's first pass is a stock network. What is added lives in
    ``catenorm.seg_layers``. nnU-Net's ``-pretrained_weights`` never transfers
    ``.seg_layers.``, because their shape depends on the classes; so does that of these.

    Args:
        unet: Plain-conv or residual-encoder U-Net of dynamic_network_architectures, weights
            already initialised.
        num_classes: Number of output channels.
        encoder_stages: Stages whose normalisation is modified, 0 is full resolution; None
            leaves it to ``stages``.
        decoder_stages: Likewise in the decoder, 0 is full resolution.
        reduction: See :class:`CateNorm`.
        recompute: See :class:`CateNorm`.
        predict: Pass that answers in ``mode="auto"``.
        stages: ``"high"`` modifies the first four encoder stages, as in the authors' example, or
            as many as there are; ``"low"`` those from the third on and the whole decoder.
        image_channels: If given, input channels from here on hold the foreground of a segmentation,
            one for each label, as in nnU-Net's cascade. They are the prior of a single pass.

    Attributes:
        disturb: Applied to priors (B, K, *S) in training, if any; returns such.
        lacks_statistics: How many layers lacked running statistics of each pass in the weights that
            were loaded last. Those of the first edition do, whose passes shared them; each pass
            then starts from these.

    Raises:
        UserError: If a stage does not exist, or the U-Net is of another kind or has neither
            batch nor instance normalisation.
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        unet: nn.Module,
        num_classes: int,
        encoder_stages: Sequence[int] | None = None,
        decoder_stages: Sequence[int] = (),
        reduction: int = 2,
        recompute: bool = False,
        predict: Literal["second", "first"] = "second",
        stages: Literal["high", "low"] = "high",
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.predict = predict
        self.disturb: Callable[[Tensor], Tensor] | None = None
        self.lacks_statistics = 0
        self.image_channels = image_channels
        if not (hasattr(unet, "encoder") and hasattr(unet, "decoder")):
            raise UserError(
                f"CateNorm needs a plain-conv or residual-encoder U-Net, but the plans ask for "
                f"{type(unet).__name__}. Plan with CateNormPlanner or a stock nnU-Net planner."
            )
        self.encoder = unet.encoder
        self.decoder = unet.decoder
        self._prior = PriorInForce()
        if image_channels is not None:
            inputs = next(self.encoder.parameters()).shape[1]
            num_classes = inputs - image_channels + 1  # background has no channel
        depth = len(self.encoder.stages)
        if encoder_stages is None and stages == "low":
            encoder_stages = range(min(FIRST_LOW_STAGE, depth), depth)
            decoder_stages = range(len(self.decoder.stages))
        elif encoder_stages is None:
            encoder_stages = range(min(AUTHORS_ENCODER_STAGES, depth))

        self._modified: tuple[_ModifiedBlock, ...] = tuple(
            self._modify(block, num_classes, reduction, recompute)
            for stage in self._stages(encoder_stages, decoder_stages)
            for block in _conv_blocks(stage)
        )
        self._shared_stages = min(encoder_stages, default=depth)
        names = self._split_statistics()
        layers = _ClassConditioning([m.catenorm for m in self._modified] + list(names.values()))
        self.catenorm = nn.ModuleDict({"seg_layers": layers})
        self._sources = {
            f"catenorm.seg_layers.{number}.norm.": f"{name}.norm."
            for number, name in enumerate(names, start=len(self._modified))
        }

    def _stages(
        self, encoder_stages: Sequence[int], decoder_stages: Sequence[int]
    ) -> Iterator[nn.Module]:
        from_full_resolution = list(self.decoder.stages)[::-1]
        for name, chosen, stages in (
            ("encoder", encoder_stages, list(self.encoder.stages)),
            ("decoder", decoder_stages, from_full_resolution),
        ):
            missing = [stage for stage in chosen if not 0 <= stage < len(stages)]
            if missing:
                raise UserError(
                    f"catenorm.{name}_stages names stage {missing[0]}, but this network's "
                    f"{name} has stages 0 to {len(stages) - 1}."
                )
            yield from (stages[stage] for stage in sorted(set(chosen)))

    def _modify(
        self,
        block: ConvDropoutNormReLU,
        num_classes: int,
        reduction: int,
        recompute: bool,
    ) -> _ModifiedBlock:
        norm = getattr(block, "norm", None)
        if not isinstance(norm, _BatchNorm | _InstanceNorm):
            raise UserError(
                f"CateNorm needs batch or instance normalisation, but the planned network uses "
                f"{type(norm).__name__}. Change norm_op in the plans."
            )
        dim = len(block.conv.kernel_size)
        catenorm = CateNorm(
            block.output_channels,
            num_classes,
            dim,
            base="batch" if isinstance(norm, _BatchNorm) else "instance",
            reduction=reduction,
            eps=norm.eps,
            momentum=norm.momentum,
            recompute=recompute,
        )
        # only all_modules is executed by the block, so this is where to switch
        block.all_modules = SwitchedSequential(block.all_modules, norm, catenorm, self._prior)
        return _ModifiedBlock(block, catenorm)

    def _split_statistics(self) -> dict[str, OwnStatistics]:
        """Give what both passes run through, each on its own, other statistics in the second.

        Returns:
            Name of the block -> what normalises it in a second pass.
        """
        apart = {
            **{f"encoder.stages.{n}": s for n, s in enumerate(self.encoder.stages)},
            **{f"decoder.stages.{n}": s for n, s in enumerate(self.decoder.stages)},
        }
        for shared in range(self._shared_stages):
            del apart[f"encoder.stages.{shared}"]
        found = {}
        for place, stage in apart.items():
            for name, block in stage.named_modules(prefix=place):
                if not isinstance(block, ConvDropoutNormReLU):
                    continue
                is_modified = isinstance(block.all_modules, SwitchedSequential)
                norm = getattr(block, "norm", None)
                if isinstance(norm, _BatchNorm) and norm.track_running_stats and not is_modified:
                    found[name] = OwnStatistics(norm)
                    block.all_modules = SwitchedSequential(
                        block.all_modules, norm, found[name], self._prior
                    )
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Accept weights of the first edition."""
        lacking = [
            own for own in self._sources if not any(k.startswith(prefix + own) for k in state_dict)
        ]
        flagged = f"{prefix}catenorm.seg_layers.active" in state_dict
        self.lacks_statistics = len(lacking) if flagged else 0
        for own in lacking if flagged else ():
            for key, buffer in self.get_submodule(own.rstrip(".")).named_buffers():
                source = prefix + self._sources[own] + key
                state_dict[prefix + own + key] = state_dict.get(source, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def _conditioning(self) -> _ClassConditioning:
        layers = self.catenorm["seg_layers"]
        assert isinstance(layers, _ClassConditioning)
        return layers

    @property
    def active(self) -> bool:
        """Whether the second pass is in use; off at first, saved with the weights."""
        return self._conditioning.is_active

    def activate(self, initialisation: Literal["default", "inherit"] = "default") -> None:
        """Switch the second pass on, e.g. after a phase of plain training.

        Args:
            initialisation: ``"default"`` keeps PyTorch's random initialisation, as the
                authors do; ``"inherit"`` makes the second pass start as a copy of the first.
        """
        if initialisation == "inherit":
            for modified in self._modified:
                modified.catenorm.inherit(modified.block.norm)
        for layer in self._conditioning:
            if isinstance(layer, OwnStatistics):
                layer.inherit()
        self._conditioning.set_flags(active=True, regions=self._conditioning.has_regions)

    def use_regions(self, regions: bool) -> None:
        """Tell whether outputs are overlapping regions (sigmoid) or classes (softmax)."""
        self._conditioning.set_flags(active=self.active, regions=regions)

    def prior_from(self, logits: Logits) -> Tensor:
        """Turn the logits of a first pass into the prior of a second one.

        Returns:
            Detached float32 probabilities (B, K, *S): softmax over classes or, for regions,
            a sigmoid each, where all zero means background. In training disturbed, if asked for.
        """
        full_resolution = logits[0] if isinstance(logits, list | tuple) else logits
        full_resolution = full_resolution.detach().float()
        if self._conditioning.has_regions:
            prior = torch.sigmoid(full_resolution)
        else:
            prior = torch.softmax(full_resolution, dim=1)
        return self.disturb(prior) if self.training and self.disturb is not None else prior

    def previous_stage(self, x: Tensor) -> Tensor:
        """Take the prior (B, K, *S), background first, out of the input of a cascade's network."""
        foreground = x[:, self.image_channels :]
        return torch.cat([1 - foreground.sum(1, keepdim=True), foreground], 1)

    def forward(
        self, x: Tensor, prior: Tensor | None = None, mode: Pass = "auto"
    ) -> Logits | tuple[Logits, Logits]:
        """Segment.

        Args:
            x: Images (B, C, *S).
            prior: Class probabilities (B, K, *S) for ``mode="second"``.
            mode: ``"first"`` runs the plain network, ``"second"`` the conditioned one under
                ``prior``, ``"both"`` returns the logits of both passes. ``"auto"``, which
                the predictor uses, returns those of the pass chosen by ``predict``, and of
                the first while CateNorm is not active; under the previous stage, of the
                conditioned network as soon as it is active.

        Raises:
            ValueError: If ``mode="second"`` comes without a prior.
        """
        if mode == "second" and prior is None:
            raise ValueError('mode="second" needs a prior.')
        shared = self._shared_features(x)
        if mode == "auto" and self.image_channels is not None and self.active:
            return self._second_pass(shared, self.previous_stage(x))
        if prior is not None and mode == "second":
            return self._second_pass(shared, prior)
        first = self._from(shared)
        # in this order, because a compiled network depends on all attributes that it looks at
        if mode == "first" or (mode == "auto" and (self.predict == "first" or not self.active)):
            return first
        second = self._second_pass(shared, self.prior_from(first))
        return (first, second) if mode == "both" else second

    def _shared_features(self, x: Tensor) -> list[Tensor]:
        """Run what lies before the first modified layer.

        Returns:
            The input of the first stage that is left, and before it what those that ran gave.
        """
        stem = getattr(self.encoder, "stem", None)
        features = [x if stem is None else stem(x)]
        for stage, _ in zip(self.encoder.stages, range(self._shared_stages), strict=False):
            features.append(stage(features[-1]))
        return features

    def _from(self, shared: list[Tensor]) -> Logits:
        _, *skips = shared
        x = shared[-1]
        for number, stage in enumerate(self.encoder.stages):
            if number >= self._shared_stages:
                x = stage(x)
                skips.append(x)
        logits: Logits = self.decoder(skips)
        return logits

    def _second_pass(self, shared: list[Tensor], prior: Tensor) -> Logits:
        self._prior.set(prior)
        try:
            return self._from(shared)
        finally:  # a prior left behind would turn the next first pass into a second one
            self._prior.set(None)


def _conv_blocks(stage: nn.Module) -> Iterator[ConvDropoutNormReLU]:
    """Convolution blocks of a stage, without the projections on residual skips."""
    for name, module in stage.named_modules():
        if isinstance(module, ConvDropoutNormReLU) and "skip" not in name.split("."):
            yield module
