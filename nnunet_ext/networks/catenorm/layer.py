"""CateNorm's layer: normalisation whose affine part depends on the class at each position."""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from dynamic_network_architectures.building_blocks.helper import (
    convert_dim_to_conv_op,
    get_matching_batchnorm,
    get_matching_instancenorm,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_ext.networks.operations import recomputed, resize

Normalisation: TypeAlias = Literal["batch", "instance"]

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
        prior = resize(prior, x.shape[2:]).to(x.dtype)
        if self.recompute:  # the normalisation stays outside, because it updates statistics
            return recomputed(self._modulate, normalised, prior)
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
