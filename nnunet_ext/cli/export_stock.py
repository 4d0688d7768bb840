"""``nnunet-ext export-stock``: a model for machines that have nnU-Net, but not this package."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from typer import Argument, Option

from nnunet_ext import trainers
from nnunet_ext._common.console import say
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.trainers import checkpoint as checkpoints
from nnunet_ext.trainers.configured import ConfiguredTrainer

STOCK_TRAINER = "nnUNetTrainer"

DESCRIPTIONS = ("plans.json", "dataset.json")
"""What nnU-Net's predictor needs beside checkpoints."""

OPTIONAL = (
    "dataset_fingerprint.json",
    "fold_*/progress.png",
    "fold_*/validation/summary.json",
    "crossval_results_folds_*/postprocessing.*",
)
"""What nnU-Net's export to zip and its postprocessing need as well, where it exists."""

CHECKPOINTS = "fold_*/checkpoint_*.pth"

TRAINING_ONLY = ("optimizer_state", "grad_scaler_state", "nnunet_ext")
"""Parts of a checkpoint that may hold what the stock trainer does not know."""


Model = Annotated[
    Path,
    Argument(metavar="MODEL", help="Folder of a trained model, TRAINER__PLANS__CONFIGURATION."),
]
Output = Annotated[
    Path, Option("-o", "--output", metavar="FOLDER", help="Folder to put the copy into.")
]


def command(model: Model, output: Output) -> None:
    """Copy a model so that nnU-Net predicts with it where this package is not installed.

    For all trainers that train a plain nnU-Net, such as RAMDSIRTrainer. The copy is called
    nnUNetTrainer__PLANS__CONFIGURATION and serves prediction and as pretrained weights; to
    continue a training, keep the original.

    \b
    Example:
      nnunet-ext export-stock $nnUNet_results/Dataset004_X/RAMDSIRTrainer__nnUNetPlans__2d \\
          -o exported/Dataset004_X
      nnUNet_results=exported nnUNetv2_predict -d 4 -c 2d -i INPUT -o OUTPUT
    """
    parts = model.resolve().name.split("__")
    if len(parts) != 3:
        raise UserError(
            f"{model} is not the folder of a model; its name must be "
            "TRAINER__PLANS__CONFIGURATION, as below nnUNet_results."
        )
    trainer, plans, configuration = parts
    target = output / f"{STOCK_TRAINER}__{plans}__{configuration}"
    found = sorted(model.glob(CHECKPOINTS))
    missing = [name for name in DESCRIPTIONS if not (model / name).is_file()]
    if missing or not found:
        lacking = [*missing, CHECKPOINTS][0]
        raise UserError(f"{model} is not a trained model: there is no {lacking}.")
    if target.exists():
        raise UserError(f"{target} exists already. Move it away or choose another --output.")
    _refuse_other_networks(trainer)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".", suffix=".partial") as partial:
        copy = Path(partial, target.name)
        for file in [*(f for p in (*DESCRIPTIONS, *OPTIONAL) for f in model.glob(p)), *found]:
            place = copy / file.relative_to(model)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file not in found:
                shutil.copyfile(file, place)
                continue
            content = checkpoints.read(file)
            kept = {key: value for key, value in content.items() if key not in TRAINING_ONLY}
            torch.save({**kept, "trainer_name": STOCK_TRAINER}, place)
        os.replace(copy, target)
    say(f"{target}: {len(found)} checkpoint(s)")


def _refuse_other_networks(name: str) -> None:
    if name.startswith(STOCK_TRAINER):
        raise UserError(f"{name} is nnU-Net's own; its models need no export.")
    trainer: Any = getattr(trainers, name, None)
    if trainer is None:
        raise UserError(
            f'nnunet_ext has no trainer "{name}".{did_you_mean(name, trainers.__all__)} '
            "`nnunet-ext list` shows all of them."
        )
    if not _keeps_the_planned_network(trainer):
        raise UserError(
            f"The network of {name} is not a plain nnU-Net, so it cannot be exported. Install "
            "nnunet_ext where you want to predict with it."
        )


def _keeps_the_planned_network(trainer: Any) -> bool:
    """Whether neither it nor a trainer of nnU-Net's that it is mixed with changes the network."""
    hooks = ("wrap_network", "adapt_configuration")
    builders = {base for base in trainer.__mro__ if "build_network_architecture" in vars(base)}
    return builders == {ConfiguredTrainer, nnUNetTrainer} and all(
        getattr(trainer, hook).__func__ is vars(ConfiguredTrainer)[hook].__func__ for hook in hooks
    )
