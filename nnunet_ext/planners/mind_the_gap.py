"""Planners that count the memory of Mind the Gap's second batch and its local critic."""

from collections.abc import Sequence
from typing import ClassVar

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from torch import nn

from nnunet_ext.networks import LocallyMaskedUNet
from nnunet_ext.planners.base import ExtensionPlanner


class MindTheGapPlanner(ExtensionPlanner):
    """Plans plain-conv U-Nets whose training with batches of two domains fits the memory target."""

    purpose: ClassVar[str] = "plain-conv U-Nets that fit the memory of batches of two domains"
    relative_cost: ClassVar[str] = "patches or batches smaller than stock where memory is short"
    default_plans_name: ClassVar[str] = "MindTheGapPlans"

    @staticmethod
    def trained_network(
        unet: nn.Module, output_channels: int, patch_size: Sequence[int]
    ) -> nn.Module:
        """Wrap the planned U-Net, so that batches of two domains count."""
        return LocallyMaskedUNet(unet)


class MindTheGapResEncPlanner(MindTheGapPlanner, nnUNetPlannerResEncM):
    """Likewise with residual encoders, from nnU-Net's ResEnc M preset."""

    purpose: ClassVar[str] = "as MindTheGapPlanner with residual encoders (ResEnc M)"
    relative_cost: ClassVar[str] = "patches or batches smaller than ResEnc M"
    default_plans_name: ClassVar[str] = "MindTheGapResEncPlans"
