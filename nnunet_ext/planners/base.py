"""nnU-Net's planner with plans of another name, and a compact one for laptops."""

from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.nnunet.plans import LEAST_STAGES


class ExtensionPlanner(ExperimentPlanner):
    """nnU-Net's planner with a plans name of its own; mix it in before another planner.

    Plans keep stock network classes, so that every trainer, stock or ours, can use them.
    """

    default_plans_name: ClassVar[str]

    def __init__(self, *args: Any, plans_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name or self.default_plans_name, **kwargs)

    def static_estimate_VRAM_usage(  # noqa: N802  (nnU-Net's own name)
        self,
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
        with torch.device("meta"):  # weights would take most of the time
            network: Any = get_network_from_plans(
                arch_class_name,
                arch_kwargs,
                arch_kwargs_req_import,
                input_channels,
                output_channels,
                allow_init=False,
            )
        return int(network.compute_conv_feature_map_size(patch_size))

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Share preprocessed data with the stock planner where they are the same."""
        # nnU-Net's residual-encoder planners do the same: these two configurations are
        # preprocessed as by the stock planner, so the data are shared
        if self.overwrite_target_spacing is None and configuration_name in ("2d", "3d_fullres"):
            return f"nnUNetPlans_{configuration_name}"
        return f"{self.plans_identifier}_{configuration_name}"


BASE_FEATURES = 16
MAX_FEATURES = 128
MEMORY_TARGET_GB = 0.15
"""In nnU-Net's units; leads to 3D patches of about 44 voxels along each axis."""
MAX_BATCH_SIZE_2D = 16
MAX_BATCH_SIZE_3D = 2
SMALLEST_PATCH = 16
"""In-plane; nnU-Net's planners halve it twice, for three stages."""


class CompactPlanner(ExtensionPlanner):
    """Plans networks that train on a CPU in fractions of a second per step."""

    default_plans_name: ClassVar[str] = "CompactPlans"

    def __init__(
        self, *args: Any, gpu_memory_target_in_gb: float = MEMORY_TARGET_GB, **kwargs: Any
    ) -> None:
        super().__init__(*args, gpu_memory_target_in_gb=gpu_memory_target_in_gb, **kwargs)
        self.UNet_base_num_features = BASE_FEATURES
        self.UNet_max_features_2d = MAX_FEATURES
        self.UNet_max_features_3d = MAX_FEATURES

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Plan as nnU-Net does, with a smaller batch, and patches that stand three stages."""
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, median_shape, *args, **kwargs
        )
        if plan["architecture"]["arch_kwargs"]["n_stages"] < LEAST_STAGES:
            # smaller images are padded, as nnU-Net pads all that are smaller than a patch
            dim = len(spacing)
            padded = np.array(median_shape, dtype=float)
            padded[dim - 2 : dim] = np.maximum(padded[dim - 2 : dim], SMALLEST_PATCH)
            plan = super().get_plans_for_configuration(spacing, padded, *args, **kwargs)
            plan["median_image_size_in_voxels"] = median_shape
        limit = MAX_BATCH_SIZE_2D if len(plan["patch_size"]) == 2 else MAX_BATCH_SIZE_3D
        plan["batch_size"] = min(plan["batch_size"], limit)
        return plan
