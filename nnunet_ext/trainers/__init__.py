"""Trainers, one file per method; imported only when asked for, because that needs torch.

``ExtensionTrainer`` has a twin for every trainer of nnU-Net's, made on demand: for example
``ExtensionTrainerDA5`` for ``nnUNetTrainerDA5``. Every name, other packages' included, also exists
with nnU-Net's suffix for the length of training, for example ``CateNormTrainer_250epochs``.
"""

from functools import wraps
from importlib import import_module
from typing import Any

from nnunet_ext import registry
from nnunet_ext.registry import LENGTH_SUFFIX, TWIN

__all__ = list(registry.TRAINERS)


def __getattr__(name: str) -> Any:
    length = LENGTH_SUFFIX.fullmatch(name)
    base = _load(length["base"]) or _load_other(length["base"]) if length else None
    trainer = _of_length(base, name, int(length["epochs"])) if length and base else _load(name)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = trainer  # one class per name, so that it pickles by reference
    return trainer


def _load(name: str) -> Any:
    if name in registry.TRAINERS:
        return registry.load(f"{registry.TRAINERS[name].module}:{name}")
    return import_module(f"{__name__}.twins").twin(name) if TWIN.fullmatch(name) else None


def _load_other(name: str) -> Any:
    point = registry.others("trainers").get(name)
    return registry.load_other(point) if point else None


def _of_length(base: Any, name: str, epochs: int) -> type:
    body = {"__module__": __name__, "__doc__": base.__doc__}
    if hasattr(base, "epochs_from_name"):
        return type(name, (base,), body | {"epochs_from_name": epochs})

    @wraps(base.__init__)  # nnU-Net reads its signature
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, *args, **kwargs)
        self.num_epochs = epochs

    return type(name, (base,), body | {"__init__": __init__})
