"""What fits, and how large it may be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.memory import limits
from nnunet_ext.memory.limits import GB, _last_within
from nnunet_ext.memory.steps import Training
from tests import tiny


def small(**changes: Any) -> Training:
    kind = tiny.Task()
    plans = tiny.World(Path("nowhere"), kind).plans()
    made = Training(nnUNetTrainer, plans, tiny.CONFIGURATION, kind.dataset_json)
    return made.changed(median_image_size_in_voxels=[64, 64, 64], **changes)


@pytest.mark.parametrize("limit", [0, 10, 11, 99, 100, 1000])
@pytest.mark.parametrize("guess", [0, 5, 9])
def test_the_last_amount_within_a_limit_is_found(limit: int, guess: int) -> None:
    asked = []

    def held(place: int) -> int:
        asked.append(place)
        return 10 * (place + 1)

    assert _last_within(range(1, 11), held, limit, guess) == min(limit // 10, 10) - 1
    assert len(asked) == len(set(asked)) <= 4


def test_a_larger_gpu_holds_more_in_proportion() -> None:
    eight = limits.capacity(3, 8)
    assert limits.capacity(3, 24) == pytest.approx(3 * eight)
    # nnU-Net's own plan for 8 GB holds less than that in a simulation
    (planned,) = limits.simulate(limits.reference(nnUNetTrainer, 3), steps_only=True).values()
    assert planned.total < eight < 8 * GB


def test_the_largest_batch_fits_and_one_more_image_does_not() -> None:
    limit = 3 * limits.step_bytes(small())
    batch = limits.largest_batch(small(), limit)
    assert batch > 2
    assert limits.step_bytes(small(batch_size=batch)) <= limit
    assert limits.step_bytes(small(batch_size=batch + 1)) > limit


def test_the_largest_patch_fits_and_is_one_that_the_network_takes() -> None:
    limit = 3 * limits.step_bytes(small())
    patch = limits.largest_patch(small(), limit)
    assert patch is not None
    assert tiny.EDGE**3 < np.prod(patch) <= 64**3
    assert all(edge % 8 == 0 for edge in patch)
    assert limits.step_bytes(small(patch_size=patch)) <= limit


def test_a_patch_need_not_be_larger_than_images() -> None:
    made = small().changed(median_image_size_in_voxels=[16, 20, 16])
    assert limits.largest_patch(made, limits.GB) == [16, 24, 16]


def test_where_nothing_fits_there_is_no_batch_and_no_patch() -> None:
    assert limits.largest_batch(small(), 1000) == 0
    assert limits.largest_patch(small(), 1000) is None
