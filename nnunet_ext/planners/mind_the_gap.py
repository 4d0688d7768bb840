"""A planner that counts the memory of Mind the Gap's second batch and its local critic."""

from collections.abc import Sequence
from typing import ClassVar

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
        return LocallyMaskedUNet(unet)
