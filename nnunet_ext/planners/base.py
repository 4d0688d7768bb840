"""What our planners share."""

from typing import Any, ClassVar

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)


class ExtensionPlanner(ExperimentPlanner):
    """nnU-Net's planner with a plans name of its own; mix it in before another planner.

    Plans keep stock network classes, so that every trainer, stock or ours, can use them.
    """

    purpose: ClassVar[str]
    relative_cost: ClassVar[str]
    default_plans_name: ClassVar[str]

    def __init__(self, *args: Any, plans_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name or self.default_plans_name, **kwargs)

    def generate_data_identifier(self, configuration_name: str) -> str:
        # nnU-Net's residual-encoder planners do the same: these two configurations are
        # preprocessed as by the stock planner, so the data are shared
        if self.overwrite_target_spacing is None and configuration_name in ("2d", "3d_fullres"):
            return f"nnUNetPlans_{configuration_name}"
        return f"{self.plans_identifier}_{configuration_name}"
