"""Whatever nnU-Net may plan: every trainer takes a finite step, or refuses in words."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nnunet_ext.trainers
from nnunet_ext import registry
from nnunet_ext._common.errors import UserError
from nnunet_ext.memory.steps import random_batch
from tests import tiny
from tests.tiny import World

MakeWorld = Callable[..., World]


@st.composite
def changes(draw: Any, dim: int) -> dict[str, Any]:
    """Patch and architecture of a configuration: strides of all kinds, odd and flat patches."""
    stages = draw(st.integers(3, 5))
    strides = [[1] * dim]
    factors = np.ones(dim, dtype=int)
    for _ in range(stages - 1):
        # nnU-Net halves some axis at every stage, and none so far that less than four are left
        allowed = [axis for axis in range(dim) if factors[axis] < (8 if dim == 2 else 4)]
        halved = draw(st.sets(st.sampled_from(allowed), min_size=1)) if allowed else set()
        strides.append([2 if axis in halved else 1 for axis in range(dim)])
        factors *= strides[-1]
    edges = [draw(st.integers(4, 5) if factor > 1 else st.integers(1, 9)) for factor in factors]
    kernels = [draw(st.lists(st.sampled_from([1, 3]), min_size=dim, max_size=dim)), [3] * dim]
    per_stage = [kernels[0], *[kernels[1]] * (stages - 1)]
    return {
        "patch_size": [int(edge * factor) for edge, factor in zip(edges, factors, strict=True)],
        "batch_size": draw(st.integers(2, 3)),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [draw(st.integers(2, 5)) for _ in range(stages)],
            "kernel_sizes": per_stage,
            "strides": strides,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        },
    }


@st.composite
def labels(draw: Any) -> dict[str, Any]:
    """Labels of dataset.json: up to five classes or nested regions, with an ignore label or not."""
    number = draw(st.integers(1, 5))
    found: dict[str, Any] = {"background": 0}
    regions = draw(st.booleans()) and number > 1
    for label in range(1, number + 1):
        found[f"label {label}"] = [*range(label, number + 1)] if regions else label
    content: dict[str, Any] = {"labels": found}
    if regions:
        content["regions_class_order"] = [*range(1, number + 1)]
    if draw(st.booleans()):
        found["ignore"] = number + 1
    return content


@pytest.mark.parametrize("name", list(registry.TRAINERS))
@pytest.mark.parametrize("dim", [2, pytest.param(3, marks=pytest.mark.slow)])
@given(data=st.data())
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
def test_a_step_is_finite_or_refused(
    make_world_once: Callable[[int], World], name: str, dim: int, data: st.DataObject
) -> None:
    world = make_world_once(dim)
    changed, described = data.draw(changes(dim)), data.draw(labels())
    residual, channels = data.draw(st.booleans()), data.draw(st.integers(1, 4))
    norm = data.draw(st.sampled_from(["InstanceNorm", "BatchNorm"]))
    plans = world.plans() | {"continue_training": False}
    base = plans["configurations"][tiny.BASE]
    arguments = base["architecture"]["arch_kwargs"] | changed.pop("arch_kwargs")
    per_stage = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    arguments.pop("n_conv_per_stage")
    arguments[per_stage] = [1] * arguments["n_stages"]
    arguments["norm_op"] = f"torch.nn.modules.{norm.lower()}.{norm}{dim}d"
    base |= changed | {
        "normalization_schemes": ["NoNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
    }
    base["architecture"]["arch_kwargs"] = arguments
    if residual:
        unet = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        base["architecture"]["network_class_name"] = unet
    described |= {
        "channel_names": {str(channel): "noNorm" for channel in range(channels)},
        "numTraining": len(tiny.CASES),
        "file_ending": ".nii.gz",
        "domains": dict(zip(tiny.CASES, tiny.TWO_SITES, strict=True)),
    }
    trainer = getattr(nnunet_ext.trainers, name)(plans, tiny.CONFIGURATION, 0, described, tiny.CPU)
    try:
        trainer.initialize()
    except UserError as refusal:
        if "stages" not in str(refusal):  # too few for this method
            raise
        return
    batch = random_batch(trainer)
    trainer._unlabelled = itertools.repeat(batch)
    for epoch in (0, trainer.num_epochs - 1):  # the first phase and the last
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        parts = trainer.train_step(batch)["parts"]
        assert np.isfinite(list(parts.values())).all()


@pytest.fixture
def make_world_once(make_world: MakeWorld) -> Callable[[int], World]:
    """One world for all examples of a test."""
    made: dict[int, World] = {}

    def make(dim: int) -> World:
        if dim not in made:
            made[dim] = make_world(dim=dim)
        return made[dim]

    return make
