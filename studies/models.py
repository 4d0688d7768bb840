"""Trained models and patches of their cases, for pictures of what a method does."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext import trainers
from nnunet_ext._common import pictures
from nnunet_ext.trainers import checkpoint as checkpoints


def load(model: Path, fold: str, checkpoint_name: str) -> Any:
    """Rebuild the trainer of a model, on the CPU.

    It makes an empty folder in ``nnUNet_results``, so let that be a temporary one.
    """
    path = model / f"fold_{fold}" / checkpoint_name
    checkpoint = checkpoints.read(path)
    arguments = checkpoint["init_args"] | {"device": torch.device("cpu")}
    # nnU-Net takes this key out of the plans, but wants it there
    arguments["plans"] = arguments["plans"] | {"continue_training": False}
    trainer = getattr(trainers, checkpoint["trainer_name"])(**arguments)
    trainer.initialize()
    trainer.load_checkpoint(str(path))
    trainer.network.eval()
    trainer.auxiliary.eval()
    return trainer


def patch_of(trainer: Any, case: str) -> tuple[Tensor, NDArray[Any]]:
    """Cut a patch (C, *S) out of a case where its labels are, and these (*S)."""
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case])
    data, seg, *_ = dataset.load_case(case)
    data, labels = np.asarray(data[:]), np.asarray(seg[:])[0]
    size = trainer.configuration_manager.patch_size
    if len(size) == 2:
        index = int((labels > 0).sum((1, 2)).argmax())
        data, labels = data[:, index], labels[index]
    places = np.argwhere(labels > 0)
    center = places.mean(0) if len(places) else np.array(labels.shape) / 2
    box = [[round(c) - n // 2, round(c) - n // 2 + n] for c, n in zip(center, size, strict=True)]
    return torch.from_numpy(crop_and_pad_nd(data, box)).float(), crop_and_pad_nd(labels, box)


def slice_to_show(trainer: Any, labels: NDArray[Any]) -> tuple[int, int, float]:
    """Axis and index of the slice of a patch that shows most labels, and its aspect.

    Args:
        trainer: Knows the spacing.
        labels: (*S); two axes are a slice already.
    """
    spacing = tuple(trainer.configuration_manager.spacing)
    if labels.ndim == 2:
        return 0, 0, spacing[-2] / spacing[-1]
    axis, index = pictures.telling_slice(labels, labels, spacing)
    return axis, index, pictures.aspect_of(spacing, axis)


def flat(image: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """Take a slice of an image (C, *S): in colour if it has three channels, else of the first."""
    picture = image if image.ndim == 3 else np.take(image, index, axis + 1)
    return np.moveaxis(picture, 0, -1) if len(picture) == 3 else picture[0]
