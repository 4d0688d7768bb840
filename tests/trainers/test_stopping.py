"""A training that somebody ends with a file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import contract, tiny
from tests.tiny import World

MakeWorld = Callable[..., World]
EPOCHS = {"num_epochs": 2, "seed": 0, "mind_the_gap": {"translator": "none"}}


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


@pytest.mark.parametrize("recipe", ["ExtensionTrainer", "MindTheGapTrainer"])
def test_stopped_training_ends_like_one_that_was_never_stopped(
    make_world: MakeWorld, recipe: str
) -> None:
    world = make_world(dim=2)
    whole = world.trainer(recipe, EPOCHS)
    whole.run_training()
    first = world.trainer(recipe, EPOCHS)
    request = Path(first.output_folder, "stop")
    request.touch()
    with pytest.raises(SystemExit) as leaving:
        first.run_training()
    assert leaving.value.code == 0
    assert not request.exists()
    latest = Path(first.output_folder, "checkpoint_latest.pth")
    assert contract.load(latest)["current_epoch"] == 1
    second = world.trainer(recipe, EPOCHS, continue_training=True)
    second.load_checkpoint(str(latest))
    second.run_training()
    assert tiny.same(whole.network.state_dict(), second.network.state_dict())
    assert not latest.exists()


def test_stop_after_the_last_epoch_leaves_only_the_validation(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    first = world.trainer("ExtensionTrainer", {"num_epochs": 1})
    Path(first.output_folder, "stop").touch()
    with pytest.raises(SystemExit):
        first.run_training()
    second = world.trainer("ExtensionTrainer", {"num_epochs": 1}, continue_training=True)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    assert second.current_epoch == 1
    second.run_training()
    assert contract.load(Path(first.output_folder, "checkpoint_final.pth"))["current_epoch"] == 1
