"""Planners that count the memory of RAM-DSIR's second view and restoration decoder."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from torch import nn

from nnunet_ext.networks import RestorationDecoder
from nnunet_ext.planners.base import ExtensionPlanner


class _TwoViews(nn.Module):
    """What one training step holds."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        # the number of image channels hardly counts, that of domains not at all
        with torch.device("meta"):  # its shapes are enough
            self.restoration = RestorationDecoder(unet.encoder, 1, 1)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        size = 2 * int(self.unet.compute_conv_feature_map_size(input_size))
        return size + self.restoration.compute_conv_feature_map_size(input_size)


class RAMDSIRPlanner(ExtensionPlanner):
    """Plans plain-conv U-Nets whose training on two views fits the memory target."""

    purpose: ClassVar[str] = "plain-conv U-Nets that fit the memory of RAM-DSIR's two views"
    relative_cost: ClassVar[str] = "patches or batches smaller than stock where memory is short"
    default_plans_name: ClassVar[str] = "RAMDSIRPlans"

    @staticmethod
    def trained_network(
        unet: nn.Module, output_channels: int, patch_size: Sequence[int]
    ) -> nn.Module:
        """Wrap the planned U-Net, so that two views and the restoration count."""
        return _TwoViews(unet)


class RAMDSIRResEncPlanner(RAMDSIRPlanner, nnUNetPlannerResEncM):
    """Likewise with residual encoders, from nnU-Net's ResEnc M preset."""

    purpose: ClassVar[str] = "as RAMDSIRPlanner with residual encoders (ResEnc M)"
    relative_cost: ClassVar[str] = "patches or batches smaller than ResEnc M"
    default_plans_name: ClassVar[str] = "RAMDSIRResEncPlans"
