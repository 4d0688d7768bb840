"""What lets one network run in two ways: layers with a second normalisation beside their own."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_ext.networks.catenorm.layer import CateNorm
from nnunet_ext.networks.operations import resize


class PriorInForce:
    """The class map under which the network runs at this moment, if it runs under one."""

    def __init__(self) -> None:
        self._sizes: list[Tensor] = []  # the map itself, then each other size that was needed

    @property
    def is_set(self) -> bool:
        """Whether the network runs under a prior."""
        return len(self._sizes) > 0

    def set(self, prior: Tensor | None) -> None:
        """Let the network run under ``prior`` (B, K, *S) from now on, or under none."""
        self._sizes = [] if prior is None else [prior.detach()]

    def at(self, size: torch.Size) -> Tensor:
        """Return the prior in a spatial size; all layers of a level share what is resized once."""
        for each in self._sizes:
            if each.shape[2:] == size:
                return each
        self._sizes.append(resize(self._sizes[0], size))
        return self._sizes[-1]


class OwnStatistics(nn.Module):
    """A batch normalisation with running statistics of its own and the weights of another.

    Layers that are not conditioned, but run in both passes, see other features in each. Running
    statistics of both together would fit neither of them at test time.

    Args:
        plain: The layer of the first pass. It is not registered here, so that all of its weights
            keep their stock names and only these.
    """

    def __init__(self, plain: _BatchNorm) -> None:
        super().__init__()
        self._plain = (plain,)
        # a module, so that nnU-Net's conversion to SyncBatchNorm finds it
        self.norm = type(plain)(plain.num_features, plain.eps, plain.momentum, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features (B, C, *S)."""
        normalised: Tensor = self.norm(x)
        if not self._plain[0].affine:
            return normalised
        shape = (1, -1, *[1] * (x.ndim - 2))
        affine = (self._plain[0].weight, self._plain[0].bias)
        weight, bias = (each.to(x.dtype).view(shape) for each in affine)
        return torch.addcmul(bias, normalised, weight)

    @torch.no_grad()
    def inherit(self) -> None:
        """Start with the statistics of the first pass."""
        for buffer, plain in zip(self.norm.buffers(), self._plain[0].buffers(), strict=True):
            buffer.copy_(plain)


class SwitchedSequential(nn.Sequential):
    """The layers of one convolution block, with two sets of normalisation to choose from.

    The plain normalisation keeps its place and name, so that the weights of this block are
    those of a stock nnU-Net block. The second one is registered elsewhere (see
    :class:`~nnunet_ext.networks.CateNormUNet`) and only referred to from here.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        norm: nn.Module,
        second: CateNorm | OwnStatistics,
        prior: PriorInForce,
    ) -> None:
        super().__init__(*layers)
        self._norm_position = list(layers).index(norm)
        self._second = (second,)  # a tuple hides the layer from nn.Module's registration
        self._prior = prior

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers, under a prior with the second normalisation."""
        for position, layer in enumerate(self):
            if position == self._norm_position and self._prior.is_set:
                x = self._normalised(x)
            else:
                x = layer(x)
        return x

    def _normalised(self, x: Tensor) -> Tensor:
        (second,) = self._second
        prior = (self._prior.at(x.shape[2:]),) if isinstance(second, CateNorm) else ()
        normalised: Tensor = second(x, *prior)
        return normalised
