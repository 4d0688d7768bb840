"""Planners that count the memory of CateNorm's second pass."""

from typing import Any, ClassVar

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.networks import CateNormUNet
from nnunet_ext.planners.base import ExtensionPlanner


class CateNormPlanner(ExtensionPlanner):
    """Plans plain-conv U-Nets whose training with CateNorm fits the memory target."""

    purpose: ClassVar[str] = "plain-conv U-Nets that fit the memory of CateNorm's second pass"
    relative_cost: ClassVar[str] = "patches or batches slightly smaller than stock"
    default_plans_name: ClassVar[str] = "CateNormPlans"

    @staticmethod
    def static_estimate_VRAM_usage(  # noqa: N802  (nnU-Net's own name)
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> int:
        """Estimate as nnU-Net does, with the network that CateNorm trains by default."""
        unet = get_network_from_plans(
            arch_class_name,
            arch_kwargs,
            arch_kwargs_req_import,
            input_channels,
            output_channels,
            allow_init=False,
        )
        network = CateNormUNet(unet, output_channels)
        return network.compute_conv_feature_map_size(patch_size)


class CateNormResEncPlanner(CateNormPlanner, nnUNetPlannerResEncM):
    """Likewise with residual encoders, from nnU-Net's ResEnc M preset."""

    purpose: ClassVar[str] = "as CateNormPlanner with residual encoders (ResEnc M)"
    relative_cost: ClassVar[str] = "patches or batches slightly smaller than ResEnc M"
    default_plans_name: ClassVar[str] = "CateNormResEncPlans"
