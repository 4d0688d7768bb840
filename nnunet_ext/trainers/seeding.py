"""What it takes to repeat a training."""

import random
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform


def seed_everything(*numbers: int) -> None:
    """Seed all generators by a hash of what is to have draws of its own: seed, process, epoch."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # the global generator, because batchgenerators draws from it
    torch.manual_seed(seed)


def without_clock(loader: Any) -> None:
    """Keep a loader of this process from letting the clock choose how to blur."""
    if isinstance(loader, SingleThreadedAugmenter):
        # stock nnU-Net times two ways to blur and takes the faster; their rounding differs
        for transform in loader.data_loader.transforms.transforms:
            transform = getattr(transform, "transform", transform)  # from its RandomTransform
            if isinstance(transform, GaussianBlurTransform):
                transform.benchmark = False
