"""Planners that count the memory of CateNorm's second pass."""

from collections.abc import Sequence
from typing import ClassVar

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from torch import nn

from nnunet_ext.networks import CateNormUNet
from nnunet_ext.planners.base import ExtensionPlanner


class CateNormPlanner(ExtensionPlanner):
    """Plans plain-conv U-Nets whose training with CateNorm fits the memory target."""

    purpose: ClassVar[str] = "plain-conv U-Nets that fit the memory of CateNorm's second pass"
    relative_cost: ClassVar[str] = "patches or batches smaller than stock where memory is short"
    default_plans_name: ClassVar[str] = "CateNormPlans"

    @staticmethod
    def trained_network(
        unet: nn.Module, output_channels: int, patch_size: Sequence[int]
    ) -> nn.Module:
        """Wrap the planned U-Net, so that the second pass counts."""
        return CateNormUNet(unet, output_channels)


class CateNormResEncPlanner(CateNormPlanner, nnUNetPlannerResEncM):
    """Likewise with residual encoders, from nnU-Net's ResEnc M preset."""

    purpose: ClassVar[str] = "as CateNormPlanner with residual encoders (ResEnc M)"
    relative_cost: ClassVar[str] = "patches or batches smaller than ResEnc M"
    default_plans_name: ClassVar[str] = "CateNormResEncPlans"
