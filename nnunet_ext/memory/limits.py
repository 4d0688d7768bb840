"""What a GPU holds, in simulated memory, and the largest batch and patch that it can train.

A simulation knows nothing of CUDA itself, of the workspaces of its libraries, and of gaps between
blocks of memory. nnU-Net's planner does, by its authors' experience: it allows a network so many
feature maps where it is to fit so many GB. What training such a network holds in a simulation, any
training may hold there.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from math import ceil, prod
from typing import Any

import numpy as np
import torch

from nnunet_ext.memory.peaks import simulate
from nnunet_ext.memory.simulation import OPTIMISER, PARAMETERS, Peak
from nnunet_ext.memory.steps import Training

GB = 2**30
MOST_IMAGES = 10_000
"""No batch is larger."""

REFERENCE_GB = 8
"""What nnU-Net's planner plans for unless told otherwise."""
REFERENCE_FEATURES = {2: 85_000_000, 3: 560_000_000}
"""Elements of feature maps that it then allows an image in 2D and 3D,"""
REFERENCE_BATCH = {2: 12, 3: 2}
"""in batches of so many."""
REFERENCE_PATCH = {2: (512, 512), 3: (128, 128, 128)}
"""What it plans then for large images, with a network of these widths."""
REFERENCE_WIDTHS = {
    2: (32, 64, 128, 256, 512, 512, 512, 512),
    3: (32, 64, 128, 256, 320, 320),
}


def reference(trainer: Any, dim: int) -> Training:
    """A trainer on nnU-Net's plan for large images of one channel and two classes."""
    widths, patch = list(REFERENCE_WIDTHS[dim]), list(REFERENCE_PATCH[dim])
    stages = len(widths)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": widths,
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": [[3] * dim] * stages,
            "strides": [[1] * dim, *[[2] * dim] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "reference",
        "batch_size": REFERENCE_BATCH[dim],
        "patch_size": patch,
        "median_image_size_in_voxels": [2 * edge for edge in patch],
        "spacing": [1.0] * dim,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": dim == 2,
        "architecture": architecture,
    }
    plans = {
        "dataset_name": "Dataset000_Reference",
        "plans_name": "reference",
        "original_median_shape_after_transp": [2 * edge for edge in REFERENCE_PATCH[3]],
        "configurations": {"reference": configuration},
        "label_manager": "LabelManager",
    }
    described = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
    }
    return Training(trainer, plans, "reference", described)


def feature_maps(training: Training) -> int:
    """Elements of feature maps per image, as nnU-Net's planner counts them."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    described, resolved = training.dataset_json, training.resolved
    architecture = resolved["architecture"]
    with torch.device("meta"):  # weights would take seconds
        network: Any = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            len(described["channel_names"]),
            len(described["labels"]),
            allow_init=False,
        )
    return int(network.compute_conv_feature_map_size(resolved["patch_size"]))


def static(peak: Peak) -> int:
    """Bytes of a peak that no size of batch or patch changes."""
    return peak.parts[PARAMETERS] + peak.parts[OPTIMISER]


def capacity(dim: int, gpu_gb: float) -> int:
    """The simulated peak, in bytes, up to which a training fits a GPU."""
    return round(_reference_bytes(dim) * gpu_gb / REFERENCE_GB)


@cache
def _reference_bytes(dim: int) -> float:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    training = reference(nnUNetTrainer, dim)
    (peak,) = simulate(training, steps_only=True).values()
    scale = REFERENCE_FEATURES[dim] / feature_maps(training)
    return static(peak) + scale * (peak.total - static(peak))


def step_bytes(training: Training) -> int:
    """The largest peak of a training's phases."""
    return max(peak.total for peak in simulate(training, steps_only=True).values())


def largest_batch(training: Training, limit: int) -> int:
    """The most images in a batch whose step stays within so many bytes; 0 if one is too many."""
    sizes = range(1, MOST_IMAGES)
    planned = sizes.index(training.resolved["batch_size"])

    def held(place: int) -> int:
        return step_bytes(training.changed(batch_size=sizes[place]))

    return _last_within(sizes, held, limit, planned) + 1


def largest_patch(training: Training, limit: int) -> list[int] | None:
    """The largest patch, shaped like the planned one, whose step stays within so many bytes.

    It is a multiple of the network's strides, and exceeds the median image no more than it must.
    None if no patch is small enough, or the plans tell no strides.
    """
    resolved = training.resolved
    strides = resolved["architecture"]["arch_kwargs"].get("strides")
    if strides is None:
        return None
    planned = resolved["patch_size"]
    patches = _patches(planned, np.prod(strides, axis=0), resolved["median_image_size_in_voxels"])

    def held(place: int) -> int:
        return step_bytes(training.changed(patch_size=patches[place]))

    voxels = [prod(patch) for patch in patches]
    last = _last_within(voxels, held, limit, patches.index(planned))
    return patches[last] if last >= 0 else None


def _patches(planned: list[int], step: Any, image: Sequence[float]) -> list[list[int]]:
    """Patches in ascending order, each larger along one axis, by so many voxels, than the last.

    They keep the planned one's shape as well as that goes.
    """
    axes = range(len(planned))
    least = [min(2 * int(step[axis]), planned[axis]) for axis in axes]
    most = [max(planned[axis], ceil(image[axis] / step[axis]) * int(step[axis])) for axis in axes]
    growth = [
        (edge / planned[axis], axis)
        for axis in axes
        for edge in range(least[axis] + int(step[axis]), most[axis] + 1, int(step[axis]))
    ]
    patches = [least]
    for _, axis in sorted(growth):
        patches.append([edge + int(step[axis]) * (i == axis) for i, edge in enumerate(patches[-1])])
    return patches


def _last_within(amounts: Sequence[int], held: Callable[[int], int], limit: int, guess: int) -> int:
    """Place of the largest amount for which no more than so many bytes are held; -1 without any.

    Args:
        amounts: In ascending order.
        held: Bytes for the amount at a place; nearly proportional to the amount.
        limit: Bytes.
        guess: Place to begin with.
    """
    within, beyond = -1, len(amounts)
    known = [(0, 0)]
    while beyond - within > 1:
        known.append((amounts[guess], held(guess)))
        if known[-1][1] <= limit:
            within = guess
        else:
            beyond = guess
        (amount_0, bytes_0), (amount, size) = known[-2:]
        expected = amount + (limit - size) * (amount - amount_0) / (size - bytes_0)
        guess = min(max(bisect_right(amounts, expected) - 1, within + 1), beyond - 1)
    return within
