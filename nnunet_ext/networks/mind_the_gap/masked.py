"""Step B of Mind the Gap: a U-Net that looks harder where target features are still unlike source.

Paper: arXiv 2205.11888 (see :mod:`nnunet_ext.networks.mind_the_gap.translator`). The mask follows
the authors' published Step B, where it stands between two halves of a network without skips.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn

from nnunet_ext._common.errors import CheckpointError, UserError
from nnunet_ext._common.precision import full_precision
from nnunet_ext.networks.catenorm import Logits
from nnunet_ext.networks.mind_the_gap.critics import FeatureCritic
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET

Scope: TypeAlias = Literal["all", "deep", "stage", "off"]

CELLS = 16
"""Along the shorter side of the map of scores; smaller ones did not find what looks foreign. The
authors' map of an image of 256 voxels has 33."""


def local_weights(scores: Tensor, renorm: bool = False) -> Tensor:
    r"""Turn a feature critic's scores into the weights of locations.

    With scores :math:`s`, the weights are :math:`1 + |\tanh s|`, between 1 for what looks
    like source (0) and 2; 1.76 for what looks like target (1).

    Args:
        scores: (B, 1, *S).
        renorm: Divide the weights of each image by their mean, so that only their spatial
            variation counts. Not in the paper, whose mask stands before a batch normalisation
            that has this effect.
    """
    weights = 1 + torch.tanh(scores).abs()
    if renorm:
        weights = weights / weights.mean(dim=tuple(range(2, weights.ndim)), keepdim=True)
    return weights


def stage_of_mask(strides: Sequence[Any], patch_size: Sequence[int], stride: int | None) -> int:
    """The encoder stage whose features are scored.

    Args:
        strides: Of the encoder's stages, for each axis or for all.
        patch_size: Spatial size of the images.
        stride: The first stage with this total stride along some axis, or else the deepest. None:
            the deepest with :data:`CELLS` cells or more along the shorter side, or else the first.
            In volumes that is the second longest, since slices may be few.
    """
    divisors = np.cumprod(np.array(strides).reshape(len(strides), -1), axis=0)
    if stride is not None:
        reached = np.flatnonzero(divisors.max(axis=1) >= stride)
        return int(reached[0]) if len(reached) else len(divisors) - 1
    cells = np.sort(np.array(patch_size) // divisors, axis=1)[:, -2]
    return int(np.flatnonzero(cells >= CELLS).max(initial=0))


class LocallyMaskedUNet(nn.Module):
    """A planned U-Net with the local feature mask of a critic.

    ``encoder`` and ``decoder`` are those of the U-Net, under nnU-Net's names. The critic lives in
    ``feature_critic.seg_layers``, because nnU-Net's ``-pretrained_weights`` does not ask for
    ``.seg_layers.``, and so a stock checkpoint fits. It is part of the network because the mask
    is used in prediction, too; it must be trained by an optimiser of its own.

    Deviations from the authors' network, which has neither skips nor instance normalisation: the
    mask reaches all skips, resized, so that none bypasses it; and it is renormalised, because a
    uniform gain is not neutral to a decoder that joins skips with normalised features.

    Args:
        unet: Plain-conv or residual-encoder U-Net of dynamic_network_architectures, weights
            already initialised.
        patch_size: Spatial size of the images.
        stride: Decides on which stage the mask is computed, see :func:`stage_of_mask`.
        scope: What is multiplied by the mask: ``"all"`` stages of the encoder, ``"deep"``
            those from the mask's on, the mask's ``"stage"`` alone, or nothing (``"off"``).
        renorm: See :func:`local_weights`.
        mask_at_inference: Whether images without a domain are masked as target.

    Raises:
        UserError: If the U-Net is of another kind.
    """

    encoder: Any
    decoder: Any
    inference_domain: Tensor

    def __init__(
        self,
        unet: nn.Module,
        patch_size: Sequence[int],
        stride: int | None = None,
        scope: Scope = "all",
        renorm: bool = True,
        mask_at_inference: bool = True,
    ) -> None:
        super().__init__()
        if not (hasattr(unet, "encoder") and hasattr(unet, "decoder")):
            raise UserError(
                "Mind the Gap needs a plain-conv or residual-encoder U-Net, but the plans ask for "
                f"{type(unet).__name__}. Plan with a stock nnU-Net planner."
            )
        self.encoder = unet.encoder
        self.decoder = unet.decoder
        self.scope = scope
        self.renorm = renorm
        # of images that come without a domain; validation on source images changes it, which as a
        # tensor needs no other compiled network
        domain = torch.tensor(TARGET if mask_at_inference else SOURCE)
        self.register_buffer("inference_domain", domain, persistent=False)
        self.stage = stage_of_mask(self.encoder.strides, patch_size, stride)
        dim = convert_conv_op_to_dim(self.encoder.conv_op)
        critic = FeatureCritic(self.encoder.output_channels[self.stage], dim)
        self.feature_critic = nn.ModuleDict({"seg_layers": critic})
        self._interpolation = "bilinear" if dim == 2 else "trilinear"
        stages = len(self.encoder.output_channels)
        masked = {
            "all": range(stages),
            "deep": range(self.stage, stages),
            "stage": range(self.stage, self.stage + 1),
            "off": range(0),
        }
        self._masked_stages = masked[scope]

    def forward(
        self, x: Tensor, domain: Tensor | None = None, return_features: bool = False
    ) -> Logits | tuple[Logits, Tensor]:
        """Segment.

        Args:
            x: Images (B, C, *S); source and target may be mixed.
            domain: 0 for source and 1 for target images (B,); without it, all are of
                ``inference_domain``. Source images are never masked.
            return_features: Whether to return the features, not masked, that the critic scores.

        Returns:
            Logits (B, K, *S), or one tensor for each scale with deep supervision; with
            ``return_features`` a pair of them and the features (B, C', *S').
        """
        stages = list(self.encoder(x))
        features = stages[self.stage]
        if self._masked_stages:
            weights = self._weights(features, self.inference_domain if domain is None else domain)
            for stage in self._masked_stages:
                resized = F.interpolate(weights, stages[stage].shape[2:], mode=self._interpolation)
                stages[stage] = stages[stage] * resized.to(stages[stage].dtype)
        logits: Logits = self.decoder(stages)
        return (logits, features) if return_features else logits

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Say what to do if a checkpoint's mask stands on another stage.

        Raises:
            CheckpointError: If it does.
        """
        first = "feature_critic.seg_layers.0.weight"
        ours = self.state_dict()[first]
        theirs = state_dict.get(first, ours)
        if theirs.shape != ours.shape:
            raise CheckpointError(
                f"The mask of this checkpoint works on features of {theirs.shape[1]} channels, "
                f"that of the plans on {ours.shape[1]}. If an older nnunet_ext with another "
                'default made the checkpoint, set "mask_stride": 8 under "nnunet_ext", '
                '"mind_the_gap" in the configuration in its plans.json.'
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def score(self, features: Tensor) -> Tensor:
        """Score features (B, C', *S') by location, in float32: (B, 1, *S')."""
        with full_precision(features.device):
            scores: Tensor = self.feature_critic["seg_layers"](features.float())
        return scores

    def _weights(self, features: Tensor, domain: Tensor) -> Tensor:
        weights = local_weights(self.score(features), self.renorm)
        domain = domain.to(weights.dtype).view(-1, *[1] * (weights.ndim - 1))
        return 1 + domain * (weights - 1)
