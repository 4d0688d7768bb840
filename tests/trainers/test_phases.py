"""Phases: when they begin, what that changes, and that a training never goes back in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext._common.errors import UserError
from nnunet_ext.trainers import ExtensionTrainer
from nnunet_ext.trainers.phases import Phase
from tests import contract, tiny
from tests.tiny import World

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


class InPhases(ExtensionTrainer):
    """A second phase from the middle on, and a last one."""

    def phases(self) -> list[Phase]:
        second = Phase("second", 0.5, fresh_schedule=True, fresh_optimizer=True, outdates_best=True)
        return [*super().phases(), second, Phase("last", 0.8)]

    def on_phase_begin(self, phase: Phase) -> None:
        super().on_phase_begin(phase)
        self.seen = [*getattr(self, "seen", []), (phase.name, self.current_epoch)]


def trained(world: World, recipe: Any, settings: dict[str, Any], epochs: int, planned: int) -> str:
    """Path of the checkpoint after so many epochs of a training that was to have more."""
    chosen = {"num_epochs": planned, "save_every": 1, **settings}
    trainer = world.trainer(recipe, chosen)
    with pytest.MonkeyPatch.context() as monkeypatch:
        contract.interrupt_after(trainer, epochs, monkeypatch)
        with pytest.raises(contract.InterruptionError):
            trainer.run_training()
    return str(Path(trainer.output_folder, "checkpoint_latest.pth"))


def continued(world: World, recipe: Any, settings: dict[str, Any], path: str, planned: int) -> Any:
    """The trainer of such a checkpoint with another number of epochs, before it goes on."""
    trainer = world.trainer(recipe, {"num_epochs": planned, **settings}, continue_training=True)
    trainer.load_checkpoint(path)
    return trainer


def of_first_edition(path: str) -> None:
    """Take out of a checkpoint what our first edition did not write."""
    checkpoint = contract.load(Path(path))
    del checkpoint["nnunet_ext"]["phases"]
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("after", "num_epochs", "first"),
    [(0.5, 5, 2), (0.29, 100, 29), (0.2, 4, 0), (0.9, 2, 1), (1.0, 7, 7), (0.0, 7, 0)],
)
def test_a_phase_begins_after_its_share_of_the_epochs(
    after: float, num_epochs: int, first: int
) -> None:
    assert Phase("any", after).first_epoch(num_epochs) == first


def test_phases_begin_in_their_epoch_and_the_log_tells(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2).trainer(InPhases, {"num_epochs": 5})
    trainer.run_training()
    assert trainer.seen == [("second", 2), ("last", 4)]
    assert 'The phase "second" begins.' in Path(trainer.log_file).read_text()


def test_a_training_too_short_for_what_comes_before_a_phase_says_so(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(dim=2)
    for planned, told in ((1, True), (2, False)):
        world.trainer(InPhases, {"num_epochs": planned}).on_train_start()
        warning = f'WARNING: the phase "second" begins at once, because {planned} epochs are'
        assert (warning in capsys.readouterr().out) is told


def test_a_fresh_schedule_falls_from_the_start_of_its_phase_to_the_end(
    make_world: MakeWorld,
) -> None:
    trainer = make_world(dim=2).trainer(InPhases, {"num_epochs": 10})
    trainer.initialize()
    rates = []
    for trainer.current_epoch in range(10):
        trainer.on_train_epoch_start()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    half = [0.01 * (1 - epoch / 5) ** 0.9 for epoch in range(5)]
    assert rates == pytest.approx(half + half)


def test_without_such_a_phase_the_schedule_is_nnunets_own(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    for name in ("ExtensionTrainer", "CateNormTrainer", "TopKSigmaTrainer"):
        trainer = world.trainer(name)
        trainer.initialize()
        assert type(trainer.lr_scheduler).__name__ == "PolyLRScheduler"


def test_a_fresh_optimiser_forgets_what_it_has_accumulated(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = tiny.ready(world.trainer(InPhases))
    trainer.train_step(tiny.batch_for(trainer, world.task))
    assert trainer.optimizer.state
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    assert not trainer.optimizer.state


def test_a_phase_that_outdates_the_best_checkpoint_begins_averages_anew(
    make_world: MakeWorld,
) -> None:
    trainer = make_world(dim=2).trainer(InPhases, {"num_epochs": 4})
    trainer.run_training()
    dice, averages = (
        trainer.logger.get_value(name, step=None) for name in ("mean_fg_dice", "ema_fg_dice")
    )
    assert averages[2] == dice[2]
    assert averages[3] == pytest.approx(0.9 * dice[2] + 0.1 * dice[3])
    assert trainer._best_ema == max(averages[2:])


def test_compiled_networks_are_compiled_anew_where_a_phase_begins(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(dim=2)
    resets: list[int] = []
    trainer: Any
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(trainer.current_epoch))
    for compiles, expected in ((False, []), (True, [2, 4])):
        trainer = tiny.ready(world.trainer(InPhases, {"num_epochs": 5}))
        monkeypatch.setattr(trainer, "_do_i_compile", lambda compiles=compiles: compiles)
        for trainer.current_epoch in range(1, 5):
            trainer.on_train_epoch_start()
        assert resets == expected


def test_a_checkpoint_tells_when_phases_began_and_they_do_not_begin_again(
    make_world: MakeWorld,
) -> None:
    world = make_world(dim=2)
    path = trained(world, InPhases, {}, epochs=3, planned=4)
    assert contract.load(Path(path))["nnunet_ext"]["phases"] == {"second": 2}
    trainer = continued(world, InPhases, {}, path, planned=4)
    trainer.run_training()
    assert trainer.seen == [("last", 3)]


# ------------------------------------------------------------------- another number of epochs

RECIPES = {
    "ConDSegTrainer": {"condseg": {"first_phase": 0.5}},
    "CateNormTrainer": {"catenorm": {"plain_fraction": 0.5}},
    "TopKSigmaTrainer": {"topk_sigma": {"warm_up": 0.5, "ramp": 0.0, "sigma": 0.1}},
}
AFTERWARDS = {"ConDSegTrainer": "complementary", "CateNormTrainer": "second_pass"}


def is_past(name: str, row: dict[str, float]) -> bool:
    """Whether an epoch was trained in the second phase of a recipe."""
    return row["sigma"] > 0 if name == "TopKSigmaTrainer" else AFTERWARDS[name] in row


EDITIONS = pytest.mark.parametrize(
    "edition", ["first", pytest.param("this", marks=pytest.mark.slow)]
)


@EDITIONS
@pytest.mark.parametrize("name", RECIPES)
def test_more_epochs_never_lead_back_into_a_phase_that_is_past(
    make_world: MakeWorld, name: str, edition: str
) -> None:
    world = make_world(dim=2)
    path = trained(world, name, RECIPES[name], epochs=2, planned=3)
    if edition == "first":
        of_first_edition(path)
    trainer = continued(world, name, RECIPES[name], path, planned=8)  # whose half is still to come
    assert {trainer.start_of(phase.name) for phase in trainer.phases()} == {1}
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    assert is_past(name, trainer._figures)
    if name == "ConDSegTrainer":  # its second phase goes on from epoch 1 to 8
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (6 / 7) ** 0.9)


@EDITIONS
@pytest.mark.parametrize("name", RECIPES)
def test_more_epochs_leave_a_training_in_the_first_phase_until_its_share_of_them(
    make_world: MakeWorld, name: str, edition: str
) -> None:
    world = make_world(dim=2)
    path = trained(world, name, RECIPES[name], epochs=1, planned=4)
    if edition == "first":
        of_first_edition(path)
    trainer = continued(world, name, RECIPES[name], path, planned=6)
    assert {trainer.start_of(phase.name) for phase in trainer.phases()} == {3}


@pytest.mark.parametrize("name", RECIPES)
def test_fewer_epochs_change_the_phase_at_once_if_its_share_is_past(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(dim=2)
    path = trained(world, name, RECIPES[name], epochs=3, planned=8)
    trainer = continued(world, name, RECIPES[name], path, planned=4)
    trainer.run_training()
    assert [is_past(name, row) for row in trainer.history.rows] == [False, False, False, True]
    assert set(trainer.phases_begun.values()) == {3}
    assert "begins." in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_is_not_ended_before_a_phase_without_a_word(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(dim=2)
    path = trained(world, name, RECIPES[name], epochs=1, planned=4)
    trainer = continued(world, name, RECIPES[name], path, planned=1)
    with pytest.raises(UserError, match=r"Set num_epochs to more than 1\."):
        trainer.run_training()


def test_a_finished_training_may_be_asked_for_again(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    first = world.trainer(InPhases)
    first.run_training()
    path = str(Path(first.output_folder, "checkpoint_final.pth"))
    continued(world, InPhases, {}, path, planned=2).run_training()


def test_a_stock_checkpoint_continues_in_the_phase_of_its_epoch(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    stock = world.trainer(nnUNetTrainer)
    stock.num_epochs, stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 1, 1, 1
    stock.run_training()
    path = str(Path(stock.output_folder, "checkpoint_final.pth"))
    for planned, begun in ((2, {}), (1, {"second": 0, "last": 0})):
        assert continued(world, InPhases, {}, path, planned).phases_begun == begun


def test_phases_of_recipes_that_are_mixed_run_side_by_side(make_world: MakeWorld) -> None:
    settings = {
        "num_epochs": 4,
        "catenorm": {"plain_fraction": 0.5},
        "topk_sigma": {"warm_up": 0.25, "ramp": 0.5, "sigma": 0.1},
    }
    trainer = make_world(dim=2).trainer("CateNormTopKSigmaTrainer", settings)
    trainer.run_training()
    assert trainer.phases_begun == {"two passes": 2, "ramp": 1, "full strength": 3}
    rows = trainer.history.rows
    assert [row["sigma"] for row in rows] == pytest.approx([0, 0, 0.05, 0.1])
    assert ["second_pass" in row for row in rows] == [False, False, True, True]
