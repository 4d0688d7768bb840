"""Experiment planners that know what a method costs in memory; imported when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.planners.catenorm import CateNormPlanner as CateNormPlanner
    from nnunet_ext.planners.catenorm import CateNormResEncPlanner as CateNormResEncPlanner
    from nnunet_ext.planners.compact import CompactPlanner as CompactPlanner
    from nnunet_ext.planners.mind_the_gap import MindTheGapPlanner as MindTheGapPlanner

MODULES = {
    "CateNormPlanner": "catenorm",
    "CateNormResEncPlanner": "catenorm",
    "CompactPlanner": "compact",
    "MindTheGapPlanner": "mind_the_gap",
}
"""Planner class -> module of this package that defines it."""

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    planner = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = planner
    return planner
