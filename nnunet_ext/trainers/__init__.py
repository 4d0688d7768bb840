"""Trainers, one file per method; imported only when asked for, because that needs torch.

``ExtensionTrainer`` has a twin for every trainer of nnU-Net's, made on demand: for example
``ExtensionTrainerDA5`` for ``nnUNetTrainerDA5``. Every name also exists with nnU-Net's suffix
for the length of training, for example ``CateNormTrainer_250epochs``.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.trainers.base import ExtensionTrainer as ExtensionTrainer
    from nnunet_ext.trainers.catenorm import CateNormTrainer as CateNormTrainer
    from nnunet_ext.trainers.condseg import ConDSegTrainer as ConDSegTrainer
    from nnunet_ext.trainers.mind_the_gap import MindTheGapTrainer as MindTheGapTrainer
    from nnunet_ext.trainers.ram_dsir import RAMDSIRTrainer as RAMDSIRTrainer
    from nnunet_ext.trainers.topk_sigma import CateNormTopKSigmaTrainer as CateNormTopKSigmaTrainer
    from nnunet_ext.trainers.topk_sigma import TopKSigmaTrainer as TopKSigmaTrainer

MODULES = {
    "ExtensionTrainer": "base",
    "CateNormTrainer": "catenorm",
    "ConDSegTrainer": "condseg",
    "TopKSigmaTrainer": "topk_sigma",
    "CateNormTopKSigmaTrainer": "topk_sigma",
    "RAMDSIRTrainer": "ram_dsir",
    "MindTheGapTrainer": "mind_the_gap",
}
"""Trainer class -> module of this package that defines it."""

__all__ = list(MODULES)

LENGTH_SUFFIX = re.compile(r"(?P<base>.+)_(?P<epochs>[1-9]\d*)epochs?")

TWIN = re.compile(r"ExtensionTrainer\w+")
"""Names that may be those of twins; only a search in nnU-Net's tree tells."""


def __getattr__(name: str) -> Any:
    length = LENGTH_SUFFIX.fullmatch(name)
    base = _load(length["base"]) if length else None
    if length and base:
        body = {"epochs_from_name": int(length["epochs"]), "__module__": __name__}
        trainer = type(name, (base,), body | {"__doc__": base.__doc__})
    else:
        trainer = _load(name)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = trainer  # one class per name, so that it pickles by reference
    return trainer


def _load(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    return import_module(f"{__name__}.twins").twin(name) if TWIN.fullmatch(name) else None
