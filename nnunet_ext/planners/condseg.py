"""Planners that count the memory of ConDSeg's decoder."""

from collections.abc import Sequence
from typing import ClassVar

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from torch import nn

from nnunet_ext.networks import ConDSegNet
from nnunet_ext.planners.base import ExtensionPlanner


class ConDSegPlanner(ExtensionPlanner):
    """Plans plain-conv encoders whose training under ConDSeg's decoder fits the memory target.

    Raises:
        UserError: If images are too small for the four stages that the decoder needs.
    """

    purpose: ClassVar[str] = "plain-conv networks that fit the memory of ConDSeg's decoder"
    relative_cost: ClassVar[str] = "patches or batches smaller than stock where memory is short"
    default_plans_name: ClassVar[str] = "ConDSegPlans"

    @staticmethod
    def trained_network(
        unet: nn.Module, output_channels: int, patch_size: Sequence[int]
    ) -> nn.Module:
        """Give the planned encoder the decoder whose memory counts."""
        return ConDSegNet(unet, output_channels, patch_size)


class ConDSegResEncPlanner(ConDSegPlanner, nnUNetPlannerResEncM):
    """Likewise with residual encoders, from nnU-Net's ResEnc M preset."""

    purpose: ClassVar[str] = "as ConDSegPlanner with residual encoders (ResEnc M)"
    relative_cost: ClassVar[str] = "patches or batches smaller than ResEnc M"
    default_plans_name: ClassVar[str] = "ConDSegResEncPlans"
