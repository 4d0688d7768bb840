"""Which class trains an arm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark.spec import Benchmark
from nnunet_ext.registry import LENGTH_SUFFIX, METHODS
from nnunet_ext.settings import PLANS_KEY, read_method_settings, read_training_settings

STOCK = "nnUNetTrainer"
STOCK_EPOCHS = 1000


@dataclass(frozen=True)
class Training:
    """Who trains an arm."""

    trainer: str  # what stands behind -tr
    seeded: bool = False  # whether it takes a seed; without one a repetition is all there is
    epochs: int | None = None  # as far as name and settings tell
    problem: str = ""  # why the arm cannot be trained
    requires_domains: bool = False  # of every training case


def find_training(benchmark: Benchmark, arm: str) -> Training:
    """Find the class that trains an arm under its settings.

    Trainers of nnU-Net's own read no settings. With settings, one that has a variant of the
    wished length gives way to that (``nnUNetTrainer_5epochs``), any other to its twin that
    reads them (``ExtensionTrainerDA5`` for ``nnUNetTrainerDA5``).
    """
    from nnunet_ext.trainers import ExtensionTrainer

    name, settings = benchmark.arms[arm].trainer, benchmark.settings_of(arm)
    try:
        found = _find(name)
        if settings and not issubclass(found, ExtensionTrainer):
            name, found = _instead(name, found, settings)
        reads = issubclass(found, ExtensionTrainer)
        if reads:
            _check_settings(name, found, settings, benchmark.arms[arm].settings)
    except UserError as error:
        return Training(name, problem=str(error))
    length = LENGTH_SUFFIX.fullmatch(name)
    epochs = int(length["epochs"]) if length else settings.get("num_epochs")
    if epochs is None and (name == STOCK or reads):
        epochs = STOCK_EPOCHS
    requires_domains = getattr(found, "requires_domains", False)
    return Training(name, reads, epochs, requires_domains=requires_domains)


def _find(name: str) -> Any:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except UserError:
        raise
    except Exception as error:  # a trainer of the user's may fail in any way when imported
        raise UserError(f"The trainer {name} cannot be imported: {error!r}") from error


def _check_settings(
    name: str, trainer: Any, settings: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Refuse settings that are wrong, or those of methods that the arm asks for in vain."""
    known = trainer.collected_method_settings()
    read_training_settings({PLANS_KEY: settings}, f"settings of {name}", known)
    for method, settings_class in known.items():
        read_method_settings({PLANS_KEY: settings}, method, settings_class, f"settings of {name}")
    in_vain = [method for method in METHODS if method in own and method not in known]
    if in_vain:
        raise UserError(
            f"{name} does not read the settings of {', '.join(in_vain)}. Leave them out of this "
            "arm, or choose a trainer that reads them: `nnunet-ext list TRAINER` shows which."
        )


def _instead(name: str, found: type, settings: Mapping[str, Any]) -> tuple[str, Any]:
    """A trainer of nnU-Net's in place of one that reads no settings."""
    candidates = [name.replace("nnUNet", "Extension", 1)]
    if settings.keys() == {"num_epochs"}:
        plural = "s" * (settings["num_epochs"] != 1)
        candidates.insert(0, f"{name}_{settings['num_epochs']}epoch{plural}")
    for other in candidates if found.__module__.startswith("nnunetv2.") else ():
        try:
            return other, _find(other)
        except UserError:
            continue  # nnU-Net has none of this length, or there is no such twin
    raise UserError(
        f"{name} reads no settings from the plans, so {', '.join(settings)} would have no effect. "
        "Leave the settings of this arm and of the benchmark out, or derive the trainer from "
        "nnunet_ext.trainers.ExtensionTrainer."
    )
