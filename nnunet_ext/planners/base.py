"""What our planners share."""

from collections.abc import Sequence
from typing import Any, ClassVar

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn


class ExtensionPlanner(ExperimentPlanner):
    """nnU-Net's planner with a plans name of its own; mix it in before another planner.

    Plans keep stock network classes, so that every trainer, stock or ours, can use them. A
    planner that plans for the memory of a method overrides :meth:`trained_network`.
    """

    purpose: ClassVar[str]
    relative_cost: ClassVar[str]
    default_plans_name: ClassVar[str]

    def __init__(self, *args: Any, plans_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name or self.default_plans_name, **kwargs)

    @staticmethod
    def trained_network(
        unet: nn.Module, output_channels: int, patch_size: Sequence[int]
    ) -> nn.Module:
        """Return what is trained with the planned U-Net; estimates its own feature maps."""
        return unet

    @classmethod
    def static_estimate_VRAM_usage(  # noqa: N802  (nnU-Net's own name)
        cls,
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> int:
        """Estimate memory in nnU-Net's unit, elements of feature maps.

        Unlike nnU-Net's own this leaves torch's number of threads alone, so that planning
        does not fail where ``nnUNet_n_proc_DA`` is 0.
        """
        unet = get_network_from_plans(
            arch_class_name,
            arch_kwargs,
            arch_kwargs_req_import,
            input_channels,
            output_channels,
            allow_init=False,
        )
        network: Any = cls.trained_network(unet, output_channels, patch_size)
        return int(network.compute_conv_feature_map_size(patch_size))

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Share preprocessed data with the stock planner where they are the same."""
        # nnU-Net's residual-encoder planners do the same: these two configurations are
        # preprocessed as by the stock planner, so the data are shared
        if self.overwrite_target_spacing is None and configuration_name in ("2d", "3d_fullres"):
            return f"nnUNetPlans_{configuration_name}"
        return f"{self.plans_identifier}_{configuration_name}"
