"""What is simulated is what really happens, only without values."""

import os
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext import trainers
from nnunet_ext.memory.limits import reference
from nnunet_ext.memory.peaks import PREDICTION, STEP_A, simulate
from nnunet_ext.memory.simulation import ACTIVATIONS, IMAGES, OPTIMISER, PARAMETERS, Follower
from nnunet_ext.memory.steps import Training, networks_of, random_batch, steps
from tests import tiny

CLOSE = 0.05


def training(trainer: str, settings: dict[str, Any] | None = None, **task: Any) -> Training:
    """A trainer on a data set that is described, but nowhere."""
    kind = tiny.Task(**task)
    plans = tiny.World(tiny.Path("nowhere"), kind).plans({"num_epochs": 10, **(settings or {})})
    found = nnUNetTrainer if trainer == "nnUNetTrainer" else getattr(trainers, trainer)
    return Training(found, plans, tiny.CONFIGURATION, kind.dataset_json)


def followed(real: Training) -> dict[str, int]:
    """Peaks of real steps: of the second, because after the first the optimiser has a state."""
    peaks = {}
    with Follower() as follower, real.trainer_without_data() as trainer:
        follower.watch(p for network in networks_of(trainer) for p in network.parameters())
        batch = random_batch(trainer)
        for phase, take in steps(trainer, batch):
            take()
            trainer.on_train_epoch_start()  # whose first step may do more than others
            follower.start()
            take()
            peaks[phase] = follower.peak.total
    return peaks


@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "ConDSegTrainer" else ())
        for name in ("nnUNetTrainer", *trainers.__all__)
    ],
)
def test_a_simulated_step_holds_what_a_real_one_holds(trainer: str) -> None:
    made = training(trainer, domains=tiny.TWO_SITES)
    simulated = simulate(made, on_gpu=False, steps_only=True)
    assert {phase: peak.total for phase, peak in simulated.items()} == pytest.approx(
        followed(made), rel=CLOSE
    )


@pytest.mark.parametrize(
    "task",
    [
        pytest.param({"dim": 2, "norm": "batch"}, marks=pytest.mark.slow),
        {"residual": True, "anisotropic": True},
        pytest.param({"regions": True, "ignore": True, "channels": 2}, marks=pytest.mark.slow),
        {"cascade": True, "deep_supervision": False},
    ],
    ids=str,
)
def test_so_it_is_for_every_kind_of_data_and_network(task: dict[str, Any]) -> None:
    made = training("CateNormTopKSigmaTrainer", **task)
    simulated = simulate(made, on_gpu=False, steps_only=True)
    assert {phase: peak.total for phase, peak in simulated.items()} == pytest.approx(
        followed(made), rel=CLOSE
    )


def test_parameters_and_optimiser_are_counted_for_themselves() -> None:
    made = training("ExtensionTrainer")
    (peak,) = simulate(made, steps_only=True).values()
    network = tiny.Task().unet()
    size = sum(parameter.nbytes for parameter in network.parameters())
    assert peak.parts[PARAMETERS] == size
    # SGD's momentum, but none for the head that deep supervision leaves out
    assert 0.99 * size < peak.parts[OPTIMISER] < size
    assert peak.parts[IMAGES] > 0


def test_mixed_precision_halves_activations() -> None:
    large = reference(nnUNetTrainer, 3)
    (mixed,), (full,) = (simulate(large, gpu, steps_only=True).values() for gpu in (True, False))
    assert mixed.parts[ACTIVATIONS] / full.parts[ACTIVATIONS] == pytest.approx(0.5, abs=0.05)


def test_recomputation_holds_less() -> None:
    kept, recomputed = (
        simulate(
            training("CateNormTrainer", {"catenorm": {"recompute": recompute}}), steps_only=True
        )
        for recompute in (False, True)
    )
    *_, second_pass = kept.values()
    *_, with_less = recomputed.values()
    assert with_less.total < 0.95 * second_pass.total


def test_prediction_holds_weights_image_and_logits_but_nothing_of_training() -> None:
    made = training("MindTheGapTrainer", {"mind_the_gap": {"translator": "none"}})
    peaks = simulate(made)
    assert STEP_A not in peaks
    predicted, trained = peaks[PREDICTION], peaks["training"]
    voxels = tiny.EDGE**3
    assert predicted.parts[IMAGES] == voxels * (4 + 2 * (3 + 1))  # float32; 3 logits and a count
    assert predicted.parts[PARAMETERS] < trained.parts[PARAMETERS]
    assert predicted.total < trained.total


def test_step_a_depends_on_its_own_settings() -> None:
    def step_a(filters: int) -> int:
        few = {"translator_filters": filters, "translator_blocks": 1, "translator_batch": 2}
        return simulate(training("MindTheGapTrainer", {"mind_the_gap": few}))[STEP_A].total

    assert step_a(4) < step_a(8)


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "mine")
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    made, before = training("RAMDSIRTrainer"), torch.get_rng_state()
    plans = repr(made.plans)
    simulate(made)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(made.plans) == plans
    assert os.environ["nnUNet_results"] == "mine"
    assert "nnUNet_preprocessed" not in os.environ
