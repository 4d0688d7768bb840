"""Peaks of memory: of a training step in each phase, of Step A, and of prediction."""

from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnunet_ext.memory.simulation import IMAGES, PARAMETERS, TEMPORARIES, Follower, Peak, simulated
from nnunet_ext.memory.steps import CPU, Training, networks_of, random_batch, steps

PREDICTION = "prediction"
STEP_A = "Step A"


def simulate(
    training: Training, on_gpu: bool = True, *, steps_only: bool = False, only: str | None = None
) -> dict[str, Peak]:
    """Find out what a training and its prediction hold, without computing anything.

    Args:
        training: What to simulate.
        on_gpu: As on a GPU, with mixed precision; otherwise as on a CPU.
        steps_only: Look at the phases of training alone.
        only: Of them, at the one of this name alone.

    Returns:
        Name of each phase, and :data:`STEP_A` and :data:`PREDICTION` -> peak.
    """
    peaks: dict[str, Peak] = {}
    with simulated(on_gpu) as follower, training.trainer_without_data() as trainer:
        if on_gpu and hasattr(trainer, "runs_batches_apart"):
            trainer.runs_batches_apart = trainer.has_batch_statistics
        follower.watch(p for network in networks_of(trainer) for p in network.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=on_gpu):
            if not steps_only:
                peaks |= _step_a(trainer)
            with follower.counting_as(IMAGES):
                batch = random_batch(trainer)
            for phase, take in steps(trainer, batch, only):
                peaks[phase] = follower.peak_of(take)
            if not steps_only:
                peaks[PREDICTION] = _prediction(trainer, follower)
    return peaks


@torch.inference_mode()
def _prediction(trainer: Any, follower: Follower) -> Peak:
    """What nnU-Net's predictor holds if everything is on the device."""
    trainer.set_deep_supervision_enabled(False)
    network = trainer.network.eval()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    axes = [axis + 2 for axis in trainer.inference_allowed_mirroring_axes or ()]
    patch = torch.zeros(1, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    before = follower.held
    follower.start()
    answer = network(patch)
    if axes:
        answer += torch.flip(network(torch.flip(patch, axes)), axes)
    states = (*network.parameters(), *network.buffers())
    return Peak(
        {
            PARAMETERS: sum(state.untyped_storage().nbytes() for state in states),
            IMAGES: _image_and_logits(trainer),
            TEMPORARIES: follower.peak.total - before,
        }
    )


def _image_and_logits(trainer: Any) -> int:
    """Bytes of a median image, of its logits and how often each voxel is predicted."""
    configuration = trainer.configuration_manager
    shape = np.maximum(configuration.median_image_size_in_voxels, configuration.patch_size)
    voxels = int(prod(shape.tolist()))
    if len(shape) == 2:
        voxels *= round(trainer.plans_manager.original_median_shape_after_transp[0])
    halves = trainer.label_manager.num_segmentation_heads + 1
    return voxels * (4 * trainer.num_input_channels + 2 * halves)


class _Noise:
    """A data set of one case (C, Z, Y, X), as nnU-Net's would give it."""

    identifiers = ("noise",)

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self.voxels = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)

    def load_case(self, _case: str) -> tuple[NDArray[np.float32], None, None, dict[str, Any]]:
        return self.voxels, None, None, {}


def _step_a(trainer: Any) -> dict[str, Peak]:
    """The step of Mind the Gap's translator, which trains before all else."""
    from nnunet_ext.settings.mind_the_gap import MindTheGapSettings
    from nnunet_ext.trainers.mind_the_gap import MindTheGapTrainer
    from nnunet_ext.translation.training import TranslatorTraining

    if not isinstance(trainer, MindTheGapTrainer):
        return {}
    settings = trainer.settings.of(MindTheGapSettings)
    if not settings.translates:
        return {}
    with simulated() as follower, TemporaryDirectory() as folder:
        median = trainer.plans_manager.original_median_shape_after_transp
        # images larger than crops do not matter; nor does how many slices there are
        shape = tuple(min(round(n), settings.translator_crop) for n in median)
        if settings.translator_dim == 2:
            shape = (1, *shape[1:])
        noise = _Noise(trainer.image_channels, shape)
        step_a = TranslatorTraining([noise, noise], settings, Path(folder), CPU)
        networks = nn.ModuleList([step_a.translator, step_a.discriminator])
        follower.watch(networks.parameters())
        with follower.counting_as(IMAGES):
            images = torch.zeros(
                2 * settings.translator_batch, trainer.image_channels, *step_a.shape
            )
            for pool in step_a.pools:
                pool.images = [images[0].clone() for _ in range(pool.size)]
        return {STEP_A: follower.peak_of(lambda: step_a.step(images))}
