"""Trainers, one file per method; imported only when asked for, because that needs torch.

Every name also exists with nnU-Net's suffix for the length of training, for example
``CateNormTrainer_250epochs``.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.trainers.base import ExtensionTrainer as ExtensionTrainer
    from nnunet_ext.trainers.catenorm import CateNormTrainer as CateNormTrainer

MODULES = {
    "ExtensionTrainer": "base",
    "CateNormTrainer": "catenorm",
}
"""Trainer class -> module of this package that defines it."""

__all__ = list(MODULES)

LENGTH_SUFFIX = re.compile(r"(?P<base>.+)_(?P<epochs>[1-9]\d*)epochs?")


def __getattr__(name: str) -> Any:
    length = LENGTH_SUFFIX.fullmatch(name)
    base = length["base"] if length else name
    if base not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    trainer = getattr(import_module(f"{__name__}.{MODULES[base]}"), base)
    if length:
        body = {"epochs_from_name": int(length["epochs"]), "__module__": __name__}
        trainer = type(name, (trainer,), body | {"__doc__": trainer.__doc__})
    globals()[name] = trainer  # one class per name, so that it pickles by reference
    return trainer
