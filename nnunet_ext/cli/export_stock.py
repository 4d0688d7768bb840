"""``nnunet-ext export-stock``: a model for machines that have nnU-Net, but not this package."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from nnunet_ext import trainers
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean

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


def export_stock(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Folder of a trained model, TRAINER__PLANS__CONFIGURATION."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where to put the new one.")
    ],
) -> None:
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
    trainer, plans, configuration = _name_parts(model)
    target = output / f"{STOCK_TRAINER}__{plans}__{configuration}"
    checkpoints = _refuse_incomplete(model)
    if target.exists():
        raise UserError(f"{target} exists already. Move it away or choose another --output.")
    _refuse_other_networks(trainer)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".", suffix=".partial") as partial:
        copy = Path(partial, target.name)
        for pattern in (*DESCRIPTIONS, *OPTIONAL):
            for file in model.glob(pattern):
                _place(copy, model, file, shutil.copyfile)
        for file in checkpoints:
            _place(copy, model, file, _write_renamed)
        os.replace(copy, target)
    typer.echo(f"{target}: {len(checkpoints)} checkpoint(s)")


def _name_parts(model: Path) -> list[str]:
    parts = model.resolve().name.split("__")
    if len(parts) != 3:
        raise UserError(
            f"{model} is not the folder of a model; its name must be "
            "TRAINER__PLANS__CONFIGURATION, as below nnUNet_results."
        )
    return parts


def _refuse_incomplete(model: Path) -> list[Path]:
    """Return the checkpoints of a model that has all it needs."""
    missing = [name for name in DESCRIPTIONS if not (model / name).is_file()]
    checkpoints = sorted(model.glob(CHECKPOINTS))
    if not checkpoints:
        missing.append(CHECKPOINTS)
    if missing:
        raise UserError(f"{model} is not a trained model: there is no {missing[0]}.")
    return checkpoints


def _refuse_other_networks(name: str) -> None:
    if name.startswith(STOCK_TRAINER):
        raise UserError(f"{name} is nnU-Net's own; its models need no export.")
    trainer: Any = getattr(trainers, name, None)
    if trainer is None:
        raise UserError(
            f'nnunet_ext has no trainer "{name}".{did_you_mean(name, trainers.__all__)}'
        )
    if not _keeps_the_planned_network(trainer):
        raise UserError(
            f"The network of {name} is not a plain nnU-Net, so it cannot be predicted with where "
            "nnunet_ext is not installed."
        )


def _keeps_the_planned_network(trainer: Any) -> bool:
    """Whether neither it nor a trainer of nnU-Net's that it is mixed with changes the network."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_ext.trainers.configured import ConfiguredTrainer

    hooks = ("wrap_network", "adapt_configuration")
    builders = {base for base in trainer.__mro__ if "build_network_architecture" in vars(base)}
    return builders == {ConfiguredTrainer, nnUNetTrainer} and all(
        getattr(trainer, hook).__func__ is vars(ConfiguredTrainer)[hook].__func__ for hook in hooks
    )


def _place(copy: Path, model: Path, file: Path, transfer: Any) -> None:
    target = copy / file.relative_to(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer(file, target)


def _write_renamed(source: Path, target: Path) -> None:
    import torch

    from nnunet_ext.trainers import checkpoint as checkpoints

    checkpoint = checkpoints.read(source)
    kept = {key: value for key, value in checkpoint.items() if key not in TRAINING_ONLY}
    torch.save({**kept, "trainer_name": STOCK_TRAINER}, target)
