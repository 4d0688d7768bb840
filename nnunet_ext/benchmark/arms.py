"""Which class trains an arm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ext import trainers
from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark.spec import Benchmark
from nnunet_ext.registry import METHODS
from nnunet_ext.settings import PLANS_KEY, read_method_settings

STOCK = "nnUNetTrainer"
STOCK_EPOCHS = 1000


@dataclass(frozen=True)
class Training:
    """Who trains an arm.

    Attributes:
        trainer: What stands behind ``-tr``.
        seeded: Whether it takes a seed; without one a repetition is all there is.
        epochs: For how many epochs, as far as name and settings tell.
        problem: Why the arm cannot be trained, or nothing.
        requires_domains: Whether it needs the domain of every training case.
    """

    trainer: str
    seeded: bool = False
    epochs: int | None = None
    problem: str = ""
    requires_domains: bool = False


def find_training(benchmark: Benchmark, arm: str) -> Training:
    """Find the class that trains an arm under its settings.

    Trainers of nnU-Net's own read no settings. With settings, one that has a variant of the
    wished length gives way to that (``nnUNetTrainer_5epochs``), any other to its twin that
    reads them (``ExtensionTrainerDA5`` for ``nnUNetTrainerDA5``).
    """
    name, settings = benchmark.arms[arm].trainer, benchmark.settings_of(arm)
    try:
        found = _find(name)
        if settings and not _reads_settings(found):
            name, found = _instead(name, found, settings)
        if _reads_settings(found):
            _check_methods(name, found, settings, benchmark.arms[arm].settings)
    except UserError as error:
        return Training(name, problem=str(error))
    length = trainers.LENGTH_SUFFIX.fullmatch(name)
    epochs = int(length["epochs"]) if length else settings.get("num_epochs")
    if epochs is None and (name == STOCK or _reads_settings(found)):
        epochs = STOCK_EPOCHS
    requires_domains = getattr(found, "requires_domains", False)
    return Training(name, _reads_settings(found), epochs, requires_domains=requires_domains)


def _find(name: str) -> type:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        found: type = recursive_find_trainer_class_by_name(name)
    except UserError:
        raise
    except Exception as error:  # a trainer of the user's may fail in any way when imported
        raise UserError(f"The trainer {name} cannot be imported: {error!r}") from error
    return found


def _reads_settings(trainer: type) -> bool:
    from nnunet_ext.trainers import ExtensionTrainer

    return issubclass(trainer, ExtensionTrainer)


def _check_methods(
    name: str, trainer: Any, settings: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Refuse settings of methods that are wrong, or that the arm asks for in vain."""
    known = trainer.collected_method_settings()
    for method, settings_class in known.items():
        read_method_settings({PLANS_KEY: settings}, method, settings_class, f"settings of {name}")
    in_vain = [method for method in METHODS if method in own and method not in known]
    if in_vain:
        raise UserError(f"{name} does not read the settings of {', '.join(in_vain)}.")


def _instead(name: str, found: type, settings: Mapping[str, Any]) -> tuple[str, type]:
    if not found.__module__.startswith("nnunetv2."):
        raise UserError(
            f"{name} reads no settings from the plans, so {', '.join(settings)} would have no "
            "effect. Derive it from nnunet_ext.trainers.ExtensionTrainer, or leave the settings "
            "of this arm and of the benchmark out."
        )
    if set(settings) == {"num_epochs"}:
        epochs = settings["num_epochs"]
        variant = f"{name}_{epochs}epoch{'s' * (epochs != 1)}"
        try:
            return variant, _find(variant)
        except UserError:
            pass  # nnU-Net has none of this length
    twin = name.replace("nnUNet", "Extension", 1)
    try:
        return twin, _find(twin)
    except UserError:
        raise UserError(
            f"{name} reads no settings from the plans, so {', '.join(settings)} would have no "
            "effect, and it has no twin that reads them. Leave the settings out for this arm."
        ) from None
