"""What a GPU holds, beside what is simulated for it."""

import pytest
import torch

from nnunet_ext import trainers
from nnunet_ext.memory.limits import reference
from nnunet_ext.memory.peaks import simulate
from nnunet_ext.memory.steps import random_batch, steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WORKSPACES = 1.5
"""Most that libraries may add to what tensors hold, as a factor."""


@pytest.mark.parametrize("trainer", ["ExtensionTrainer", "CateNormTrainer"])
def test_a_gpu_holds_what_is_simulated_and_workspaces(
    trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "f")
    training = reference(getattr(trainers, trainer), 3).changed(patch_size=[64, 64, 64])
    simulated = max(peak.total for peak in simulate(training, steps_only=True).values())
    with training.trainer_without_data(torch.device("cuda")) as made:
        torch.cuda.reset_peak_memory_stats()
        for _, take in steps(made, random_batch(made)):
            take()
            take()
        allocated = torch.cuda.max_memory_allocated()
    assert 0.9 * simulated < allocated < WORKSPACES * simulated
