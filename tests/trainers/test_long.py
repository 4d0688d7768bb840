"""Long trainings: nothing grows with their epochs, and interruptions change nothing.

An hour or more for all trainers; ``LONG_EPOCHS=40`` makes them short, to see the tests work.
"""

import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ext import registry
from tests import contract, tiny
from tests.tiny import World

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]
EPOCHS = int(os.environ.get("LONG_EPOCHS", "200"))
SETTLED = EPOCHS // 4
"""Epoch after which nothing may grow: caches are filled, all phases but the last have begun."""
INTERRUPTIONS = EPOCHS // 10
MOST_MIB = 30
"""Of resident memory, which allocators give back as they like; tensors are counted one by one."""
SETTINGS: dict[str, Any] = {
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "mind_the_gap": {
        "translator_iterations": 1,
        "translator_batch": 1,
        "translator_filters": 2,
        "translator_blocks": 1,
    },
    "condseg": {"first_phase": 0.1},
    "catenorm": {"plain_fraction": 0.1},
    "topk_sigma": {"warm_up": 0.05, "ramp": 0.1},
}

EVERY_TRAINER = pytest.mark.parametrize("name", list(registry.TRAINERS))


@pytest.fixture
def world(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> World:
    contract.without_progress_plot(monkeypatch)
    return make_world(dim=2, norm="batch", domains=tiny.TWO_SITES)


@dataclass(frozen=True)
class Held:
    """What this process and the training hold at the end of an epoch."""

    mib: float  # resident
    tensors: int
    files: int
    threads: int
    log: int  # bytes

    @classmethod
    def now(cls, trainer: Any) -> "Held":
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            sum(isinstance(each, torch.Tensor) for each in gc.get_objects()),
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            Path(trainer.log_file).stat().st_size,
        )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@EVERY_TRAINER
def test_nothing_grows_with_epochs(world: World, name: str) -> None:
    trainer = world.trainer(name, {**SETTINGS, "num_epochs": EPOCHS, "save_every": 10})
    held: list[Held] = []
    end_of_epoch = trainer.on_epoch_end

    def watched() -> None:
        end_of_epoch()
        held.append(Held.now(trainer))

    trainer.on_epoch_end = watched
    trainer.run_training()
    assert len(held) == EPOCHS
    settled, last = held[SETTLED], held[-1]
    assert last.tensors <= settled.tensors
    assert last.files <= settled.files
    assert last.threads <= settled.threads
    assert last.mib - settled.mib < MOST_MIB
    written = np.diff([each.log for each in held])
    assert written[-SETTLED:].mean() <= 1.1 * written[SETTLED : 2 * SETTLED].mean()


@EVERY_TRAINER
def test_a_training_that_is_interrupted_again_and_again_ends_with_the_same_weights(
    world: World, name: str
) -> None:
    settings = {**SETTINGS, "num_epochs": 2 * INTERRUPTIONS, "save_every": 1}
    whole = world.trainer(name, settings)
    whole.run_training()
    final = Path(whole.output_folder, "checkpoint_final.pth")
    expected = contract.load(final)["network_weights"]
    final.unlink()
    rng = np.random.default_rng(0)
    trainer = world.trainer(name, settings)
    for number in range(INTERRUPTIONS):
        _interrupt(trainer, within=int(rng.integers(1, 9)))
        with pytest.raises(contract.InterruptionError):
            trainer.run_training()
        np.random.seed(number)
        torch.manual_seed(number)
        latest = final.with_name("checkpoint_latest.pth")
        trainer = world.trainer(name, settings, continue_training=latest.exists())
        if latest.exists():
            trainer.load_checkpoint(str(latest))
    trainer.run_training()
    actual = contract.load(final)["network_weights"]
    assert tiny.same(actual, expected)


def _interrupt(trainer: Any, within: int) -> None:
    """Let a training die in one of its next steps: of optimisation, or of validation."""
    left = iter(range(within))

    def counted(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def dying(batch: Any) -> Any:
            if next(left, None) is None:
                raise contract.InterruptionError
            return step(batch)

        return dying

    trainer.train_step = counted(trainer.train_step)
    trainer.validation_step = counted(trainer.validation_step)
