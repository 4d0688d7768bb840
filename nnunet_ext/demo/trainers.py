"""Which trainer the demo uses, and for how long it trains."""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext import trainers
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.lookup import USER_FOLDERS
from nnunet_ext.registry import TRAINERS

STOCK_EPOCHS = 1000
"""Epochs of nnU-Net's trainers whose name does not tell."""


@dataclass(frozen=True)
class TrainerChoice:
    """A trainer that nnU-Net will find.

    Attributes:
        name: What stands behind ``-tr``.
        epochs: For how long it trains, None if only the trainer knows.
        reads_settings: Whether it reads the demo's short schedule from the plans.
    """

    name: str
    epochs: int | None
    reads_settings: bool


def choose_trainer(name: str, epochs: int | None, default_epochs: int) -> TrainerChoice:
    """Find out which class trains for the wished number of epochs.

    Our trainers read it from the plans. A trainer of nnU-Net's or of the user's has it
    fixed in the class, so that there must be a class of that length.

    Args:
        name: As the user gave it.
        epochs: As the user gave it, or None.
        default_epochs: What our trainers do without a wish.

    Raises:
        UserError: If there is no such trainer, or none of that length.
    """
    length = trainers.LENGTH_SUFFIX.fullmatch(name)
    if length and epochs not in (None, int(length["epochs"])):
        raise UserError(
            f"The name {name} says {length['epochs']} epochs, but --epochs is {epochs}. "
            "Leave one of them out."
        )
    base = length["base"] if length else name
    if base in TRAINERS or (trainers.TWIN.fullmatch(base) and hasattr(trainers, base)):
        chosen = int(length["epochs"]) if length else epochs or default_epochs
        return TrainerChoice(name, chosen, reads_settings=True)
    return _choose_foreign(name, length, epochs)


def _choose_foreign(name: str, length: re.Match[str] | None, epochs: int | None) -> TrainerChoice:
    known = foreign_trainers()
    if name not in known:
        raise UserError(
            f"There is no trainer {name}.{did_you_mean(name, [*TRAINERS, *known])} "
            "`nnunet-ext list` shows ours."
        )
    if length:
        return TrainerChoice(name, int(length["epochs"]), reads_settings=False)
    variants = {STOCK_EPOCHS: name} if name == "nnUNetTrainer" else {}
    for other in known:
        match = trainers.LENGTH_SUFFIX.fullmatch(other)
        if match and match["base"] == name:
            variants[int(match["epochs"])] = other
    if epochs is None and not variants:
        return TrainerChoice(name, None, reads_settings=False)
    if epochs not in variants:
        lengths = ", ".join(map(str, sorted(variants))) or "none"
        raise UserError(
            f"{name} cannot be told how long to train: nnU-Net fixes that in the class, and there "
            f"are classes of it for these numbers of epochs: {lengths}. Choose one of them with "
            "--epochs (an epoch has 250 batches), or use one of our trainers (nnunet-ext list)."
        )
    assert epochs is not None
    return TrainerChoice(variants[epochs], epochs, reads_settings=False)


def foreign_trainers() -> set[str]:
    """Names of the trainers in nnU-Net and in the user's own folders, without importing them."""
    spec = importlib.util.find_spec("nnunetv2")
    packages = list(spec.submodule_search_locations or ()) if spec else []
    folders = [Path(package, "training", "nnUNetTrainer") for package in packages]
    users = os.environ.get(USER_FOLDERS, "")
    folders += [Path(part) for part in users.split(os.pathsep) if part.strip()]
    files = (file for folder in folders for file in folder.rglob("*.py"))
    return {
        name
        for file in files
        for name in re.findall(
            r"^class (\w+)\(.*Trainer", file.read_text(encoding="utf-8", errors="replace"), re.M
        )
    } | {"nnUNetTrainer"}
