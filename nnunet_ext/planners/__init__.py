"""Experiment planners that know what a method costs in memory; imported when asked for."""

from typing import Any

from nnunet_ext import registry

__all__ = list(registry.PLANNERS)


def __getattr__(name: str) -> Any:
    if name not in registry.PLANNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return registry.load(f"{registry.PLANNERS[name].module}:{name}")
