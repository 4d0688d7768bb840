"""CateNorm: normalisation whose affine part depends on the class predicted at each position.

Paper: "CateNorm: Categorical Normalization for Robust Medical Image Segmentation",
arXiv 2103.15858 (first version: "DualNorm-UNet"), DART workshop at MICCAI 2022.
The paper's body was not available to us; the layer and the two passes follow the
behaviour of the authors' published implementation, which belongs to the first version.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from dynamic_network_architectures.building_blocks.helper import (
    convert_dim_to_conv_op,
    get_matching_batchnorm,
    get_matching_instancenorm,
)
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

from nnunet_ext._common.errors import UserError

Normalisation: TypeAlias = Literal["batch", "instance"]
Logits: TypeAlias = Tensor | list[Tensor]
"""One tensor (B, K, *S), or one per scale, full resolution first (deep supervision)."""
Pass: TypeAlias = Literal["auto", "first", "second", "both"]

PAPER_ENCODER_STAGES = 4
"""The four highest-resolution encoder blocks are modified in the authors' own example."""
KERNEL = 3
"""Kernel size of the modulation along all axes."""


class CateNorm(nn.Module):
    r"""Parameter-free normalisation followed by a class-conditioned affine map.

    With :math:`\hat x` the normalised features and :math:`m` the prior resized linearly
    (aligned corners) to their shape,

    .. math:: y = \hat x \cdot (1 + \gamma(m)) + \beta(m)

    where :math:`\gamma` and :math:`\beta` are convolutions on a shared hidden map
    :math:`\mathrm{ReLU}(\mathrm{conv}(m))` with ``num_features // reduction`` channels.
    Mean and variance are per channel over all positions: there are no class-wise
    statistics, the classes act through the modulation alone.

    Args:
        num_features: Channels C of the features.
        num_classes: Channels K of the prior, background included if it is a class.
        dim: Spatial dimensions, 2 or 3.
        base: Family of the parameter-free normalisation.
        reduction: Hidden width is ``max(1, num_features // reduction)``.
        eps: Added to the variance.
        momentum: Of the running statistics, None for a plain average; batch normalisation only.
        recompute: Recompute the modulation in the backward pass instead of keeping it,
            which trades time for memory.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        dim: int,
        base: Normalisation = "batch",
        reduction: int = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise ValueError(f"dim must be 2 or 3, got {dim}.")
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}.")
        conv = convert_dim_to_conv_op(dim)
        matching = {"batch": get_matching_batchnorm, "instance": get_matching_instancenorm}
        if base not in matching:
            raise ValueError(f'base must be "batch" or "instance", got "{base}".')
        hidden = max(1, num_features // reduction)
        self.norm = matching[base](conv)(num_features, eps=eps, momentum=momentum, affine=False)
        self.shared = conv(num_classes, hidden, KERNEL, padding=KERNEL // 2)
        self.gamma = conv(hidden, num_features, KERNEL, padding=KERNEL // 2)
        self.beta = conv(hidden, num_features, KERNEL, padding=KERNEL // 2)
        self.interpolation = "bilinear" if dim == 2 else "trilinear"
        self.recompute = recompute

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """Normalise ``x`` under the class map ``prior``.

        Args:
            x: Features (B, C, *S).
            prior: Class probabilities (B, K, *S0), any spatial size.

        Returns:
            Tensor of the shape and dtype of ``x``.
        """
        normalised = self.norm(x)
        if prior.shape[2:] != x.shape[2:]:
            prior = F.interpolate(prior, x.shape[2:], mode=self.interpolation, align_corners=True)
        prior = prior.to(x.dtype)
        if self.recompute and torch.is_grad_enabled():
            # the normalisation stays outside: it must update running statistics only once
            return checkpoint(self._modulate, normalised, prior, use_reentrant=False)
        return self._modulate(normalised, prior)

    def _modulate(self, normalised: Tensor, prior: Tensor) -> Tensor:
        hidden = F.relu(self.shared(prior))
        convolve = F.conv3d if hidden.ndim == 5 else F.conv2d
        # both modulations by one convolution, which reads the hidden map only once
        weight = torch.cat([self.gamma.weight, self.beta.weight])
        bias = torch.cat([self.gamma.bias, self.beta.bias])
        gamma, beta = convolve(hidden, weight, bias, padding=self.gamma.padding).chunk(2, dim=1)
        # 1 + gamma is a tensor of its own, so that the backward pass does not keep beta, too
        return torch.addcmul(beta, normalised, 1 + gamma)

    @torch.no_grad()
    def inherit(self, plain: _BatchNorm | _InstanceNorm) -> None:
        """Start as an exact copy of the affine normalisation ``plain`` (same family).

        Not in the paper: training from here begins without a jump in the loss, but learned
        more slowly than random initialisation in a pilot.
        """
        for conv in (self.gamma, self.beta):
            conv.weight.zero_()
            conv.bias.zero_()
        if plain.affine:
            self.gamma.bias.copy_(plain.weight - 1)
            self.beta.bias.copy_(plain.bias)
        if isinstance(plain, _BatchNorm):
            self.norm.running_mean.copy_(plain.running_mean)
            self.norm.running_var.copy_(plain.running_var)
            self.norm.num_batches_tracked.copy_(plain.num_batches_tracked)


class _CurrentPrior:
    """The class map under which the network runs at this moment, or None in a first pass."""

    value: Tensor | None = None


class _SwitchedSequential(nn.Sequential):
    """The layers of one convolution block, with two sets of normalisation to choose from.

    The plain normalisation keeps its place and name, so that the weights of this block are
    those of a stock nnU-Net block. The CateNorm layer is registered elsewhere (see
    :class:`CateNormUNet`) and only referred to from here.
    """

    def __init__(
        self, layers: nn.Sequential, norm: nn.Module, catenorm: CateNorm, prior: _CurrentPrior
    ) -> None:
        super().__init__(*layers)
        self._norm_position = list(layers).index(norm)
        self._catenorm = (catenorm,)  # a tuple hides the layer from nn.Module's registration
        self._prior = prior

    def forward(self, x: Tensor) -> Tensor:
        for position, layer in enumerate(self):
            if position == self._norm_position and self._prior.value is not None:
                x = self._catenorm[0](x, self._prior.value)
            else:
                x = layer(x)
        return x


class _ClassConditioning(nn.ModuleList):
    """All CateNorm layers of a network, and two flags that must travel with its weights.

    ``active`` says whether the second pass has been trained, ``regions`` whether the prior
    is a sigmoid per region instead of a softmax over classes. Both are buffers, so that a
    checkpoint alone tells the predictor, and are mirrored into Python booleans, so that
    the forward pass reads no tensor.
    """

    def __init__(self, layers: Iterable[CateNorm]) -> None:
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
    :class:`CateNorm`. All convolutions are shared.

    ``encoder`` and ``decoder`` are those of the U-Net, under nnU-Net's names: a stock
    checkpoint fits, and this one's first pass is a stock network. What is added lives in
    ``catenorm.seg_layers``. nnU-Net's ``-pretrained_weights`` never transfers
    ``.seg_layers.``, because their shape depends on the classes; so does that of these.

    Args:
        unet: Plain-conv or residual-encoder U-Net of dynamic_network_architectures, weights
            already initialised.
        num_classes: Number of output channels.
        encoder_stages: Stages whose normalisation is modified, 0 is full resolution; None
            takes the first four, as in the authors' example, or as many as there are.
        decoder_stages: Likewise in the decoder, 0 is full resolution.
        reduction: See :class:`CateNorm`.
        recompute: See :class:`CateNorm`.
        predict: Pass that answers in ``mode="auto"``.

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
    ) -> None:
        super().__init__()
        self.predict = predict
        if not (hasattr(unet, "encoder") and hasattr(unet, "decoder")):
            raise UserError(
                f"CateNorm needs a plain-conv or residual-encoder U-Net, but the plans ask for "
                f"{type(unet).__name__}. Plan with CateNormPlanner or a stock nnU-Net planner."
            )
        self.encoder = unet.encoder
        self.decoder = unet.decoder
        self._prior = _CurrentPrior()
        if encoder_stages is None:
            encoder_stages = range(min(PAPER_ENCODER_STAGES, len(self.encoder.stages)))

        self._modified: tuple[_ModifiedBlock, ...] = tuple(
            self._modify(block, num_classes, reduction, recompute)
            for stage in self._stages(encoder_stages, decoder_stages)
            for block in _conv_blocks(stage)
        )
        layers = _ClassConditioning(modified.catenorm for modified in self._modified)
        self.catenorm = nn.ModuleDict({"seg_layers": layers})

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
                f"{type(norm).__name__}. Set norm_op in the plans."
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
        block.all_modules = _SwitchedSequential(block.all_modules, norm, catenorm, self._prior)
        return _ModifiedBlock(block, catenorm)

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
        self._conditioning.set_flags(active=True, regions=self._conditioning.has_regions)

    def use_regions(self, regions: bool) -> None:
        """Tell whether outputs are overlapping regions (sigmoid) or classes (softmax)."""
        self._conditioning.set_flags(active=self.active, regions=regions)

    def prior_from(self, logits: Logits) -> Tensor:
        """Turn the logits of a first pass into the prior of a second one.

        Returns:
            Detached float32 probabilities (B, K, *S): softmax over classes or, for regions,
            a sigmoid each, where all zero means background.
        """
        full_resolution = logits[0] if isinstance(logits, list | tuple) else logits
        full_resolution = full_resolution.detach().float()
        if self._conditioning.has_regions:
            return torch.sigmoid(full_resolution)
        return torch.softmax(full_resolution, dim=1)

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
                the first while CateNorm is not active.

        Raises:
            ValueError: If ``mode="second"`` comes without a prior.
        """
        if mode == "second":
            if prior is None:
                raise ValueError('mode="second" needs a prior.')
            return self._second_pass(x, prior)
        first: Logits = self.decoder(self.encoder(x))
        # in this order, because a compiled network depends on all attributes that it looks at
        if mode == "first" or (mode == "auto" and (self.predict == "first" or not self.active)):
            return first
        second = self._second_pass(x, self.prior_from(first))
        return (first, second) if mode == "both" else second

    def _second_pass(self, x: Tensor, prior: Tensor) -> Logits:
        self._prior.value = prior.detach()
        try:
            logits: Logits = self.decoder(self.encoder(x))
        finally:  # a prior left behind would turn the next first pass into a second one
            self._prior.value = None
        return logits


def _conv_blocks(stage: nn.Module) -> Iterator[ConvDropoutNormReLU]:
    """Convolution blocks of a stage, without the projections on residual skips."""
    for name, module in stage.named_modules():
        if isinstance(module, ConvDropoutNormReLU) and "skip" not in name.split("."):
            yield module
