"""Experiment planners that know what a method costs in memory; imported when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.planners.catenorm import CateNormPlanner as CateNormPlanner
    from nnunet_ext.planners.catenorm import CateNormResEncPlanner as CateNormResEncPlanner
    from nnunet_ext.planners.compact import CompactPlanner as CompactPlanner
    from nnunet_ext.planners.condseg import ConDSegPlanner as ConDSegPlanner
    from nnunet_ext.planners.condseg import ConDSegResEncPlanner as ConDSegResEncPlanner
    from nnunet_ext.planners.mind_the_gap import MindTheGapPlanner as MindTheGapPlanner
    from nnunet_ext.planners.mind_the_gap import MindTheGapResEncPlanner as MindTheGapResEncPlanner
    from nnunet_ext.planners.ram_dsir import RAMDSIRPlanner as RAMDSIRPlanner
    from nnunet_ext.planners.ram_dsir import RAMDSIRResEncPlanner as RAMDSIRResEncPlanner

MODULES = {
    "CateNormPlanner": "catenorm",
    "CateNormResEncPlanner": "catenorm",
    "RAMDSIRPlanner": "ram_dsir",
    "RAMDSIRResEncPlanner": "ram_dsir",
    "MindTheGapPlanner": "mind_the_gap",
    "MindTheGapResEncPlanner": "mind_the_gap",
    "CompactPlanner": "compact",
    "ConDSegPlanner": "condseg",
    "ConDSegResEncPlanner": "condseg",
}
"""Planner class -> module of this package that defines it."""

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    planner = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = planner
    return planner
