"""A planner for laptops: small networks, patches and batches."""

from typing import Any, ClassVar

from nnunet_ext.planners.base import ExtensionPlanner

BASE_FEATURES = 16
MAX_FEATURES = 128
MEMORY_TARGET_GB = 0.15
"""In nnU-Net's units; leads to 3D patches of about 44 voxels along each axis."""
MAX_BATCH_SIZE_2D = 16
MAX_BATCH_SIZE_3D = 2


class CompactPlanner(ExtensionPlanner):
    """Plans networks that train on a CPU in fractions of a second per step."""

    purpose: ClassVar[str] = "small networks, patches and batches for a laptop or CPU, 2D and 3D"
    relative_cost: ClassVar[str] = "a small fraction of the stock plan's time and memory"
    default_plans_name: ClassVar[str] = "CompactPlans"

    def __init__(
        self, *args: Any, gpu_memory_target_in_gb: float = MEMORY_TARGET_GB, **kwargs: Any
    ) -> None:
        super().__init__(*args, gpu_memory_target_in_gb=gpu_memory_target_in_gb, **kwargs)
        self.UNet_base_num_features = BASE_FEATURES
        self.UNet_max_features_2d = MAX_FEATURES
        self.UNet_max_features_3d = MAX_FEATURES

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Plan as nnU-Net does, with a smaller batch."""
        plan: dict[str, Any] = super().get_plans_for_configuration(*args, **kwargs)
        limit = MAX_BATCH_SIZE_2D if len(plan["patch_size"]) == 2 else MAX_BATCH_SIZE_3D
        plan["batch_size"] = min(plan["batch_size"], limit)
        return plan
