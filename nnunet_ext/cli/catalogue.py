"""What this package offers: its trainers, planners and the settings of its methods."""

from collections.abc import Iterable
from typing import Any

from nnunet_ext import planners, trainers


def load_trainers() -> dict[str, Any]:
    """Return every trainer class by name; importing them takes seconds, because of torch."""
    return {name: getattr(trainers, name) for name in trainers.MODULES}


def load_planners() -> dict[str, Any]:
    """Return every planner class by name; importing them takes seconds, because of torch."""
    return {name: getattr(planners, name) for name in planners.MODULES}


def method_settings() -> dict[str, type]:
    """Return the settings class of every method by the method's name."""
    collected: dict[str, type] = {}
    for trainer in load_trainers().values():
        collected |= trainer.collected_method_settings()
    return collected


def trainers_reading(methods: Iterable[str]) -> list[str]:
    """Return the names of the trainers that read the settings of all these methods."""
    wanted = set(methods)
    if not wanted:
        return list(trainers.MODULES)  # without importing them
    return [
        name
        for name, trainer in load_trainers().items()
        if wanted <= trainer.collected_method_settings().keys()
    ]


def planner_for(trainer_name: str) -> str | None:
    """Return the name of the planner made for a trainer, if there is one."""
    planner_name = trainer_name.removesuffix("Trainer") + "Planner"
    return planner_name if planner_name in planners.MODULES else None
