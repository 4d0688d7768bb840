"""The planners: nnU-Net's with names of their own, and the memory that methods need.

Those of methods are made from the registry: each from nnU-Net's plain-conv planner, and once more
from that of its residual encoders (ResEnc M).
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ext.networks import CateNormUNet, ConDSegNet, LocallyMaskedUNet, RestorationDecoder
from nnunet_ext.registry import PLANNERS, Planner


class ExtensionPlanner(ExperimentPlanner):
    """nnU-Net's planner with a plans name of its own; mix it in before another planner.

    Plans keep stock network classes, so that every trainer, stock or ours, can use them. A
    planner that plans for the memory of a method overrides :meth:`trained_network`.
    """

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


# ------------------------------------------------------------------------------ those of methods


class _TwoViews(nn.Module):
    """What one training step of RAM-DSIR holds."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        # the number of image channels hardly counts, that of domains not at all
        with torch.device("meta"):  # its shapes are enough
            self.restoration = RestorationDecoder(unet.encoder, 1, 1)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        size = 2 * int(self.unet.compute_conv_feature_map_size(input_size))
        return size + self.restoration.compute_conv_feature_map_size(input_size)


TRAINED: dict[str, Callable[[nn.Module, int, Sequence[int]], nn.Module]] = {
    "catenorm": lambda unet, output_channels, _: CateNormUNet(unet, output_channels),
    "condseg": ConDSegNet,
    "ram_dsir": lambda unet, *_: _TwoViews(unet),
    "mind_the_gap": lambda unet, *_: LocallyMaskedUNet(unet),
}
"""Method -> its :meth:`ExtensionPlanner.trained_network`."""


def _planner_of_method(entry: Planner) -> type[ExtensionPlanner]:
    body = {
        "__module__": __name__,
        "__doc__": f"Plans for {entry.plans}: {entry.purpose}.",
        "default_plans_name": entry.plans,
        "trained_network": staticmethod(TRAINED[entry.method]),
    }
    bases = (ExtensionPlanner, nnUNetPlannerResEncM) if entry.residual else (ExtensionPlanner,)
    return type(entry.name, bases, body)


globals().update({e.name: _planner_of_method(e) for e in PLANNERS.values() if e.method})


# ---------------------------------------------------------------------------------- for laptops

BASE_FEATURES = 16
MAX_FEATURES = 128
MEMORY_TARGET_GB = 0.15
"""In nnU-Net's units; leads to 3D patches of about 44 voxels along each axis."""
MAX_BATCH_SIZE_2D = 16
MAX_BATCH_SIZE_3D = 2


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

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Plan as nnU-Net does, with a smaller batch."""
        plan: dict[str, Any] = super().get_plans_for_configuration(*args, **kwargs)
        limit = MAX_BATCH_SIZE_2D if len(plan["patch_size"]) == 2 else MAX_BATCH_SIZE_3D
        plan["batch_size"] = min(plan["batch_size"], limit)
        return plan
