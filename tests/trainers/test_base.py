"""The base trainer: stock training step by step, and what it adds around it."""

import copy
import csv
import io
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise import gaussian_blur
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ext._common.errors import CheckpointError, NonFiniteLossError, SettingsError
from nnunet_ext.trainers import CateNormTrainer, ExtensionTrainer, checkpoint
from nnunet_ext.trainers.optimisation import Losses, Update
from nnunet_ext.trainers.seeding import seed_everything
from tests import contract, tiny
from tests.tiny import World

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


class WithAuxiliary(ExtensionTrainer):
    """A network beside the main one reconstructs the logits' mean; both share an optimiser."""

    def build_auxiliary(self) -> dict[str, nn.Module]:
        return {"side": nn.Linear(1, 1)}

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Losses:
        logits = self.network(data)
        guess = self.auxiliary["side"](logits[0].mean().reshape(1, 1))
        return {"segmentation": self.loss(logits, target), "side": (guess - 1).square().mean()}


class WithCritic(WithAuxiliary):
    """Two updates per batch, the second with an optimiser of its own."""

    def build_auxiliary_optimizers(self) -> dict[str, Optimizer]:
        return {"critic": torch.optim.Adam(self.auxiliary["side"].parameters(), 0.1)}

    def compute_losses(  # type: ignore[override]
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Iterator[Losses | Update]:
        logits = self.network(data)
        yield {"segmentation": self.loss(logits, target)}
        guess = self.auxiliary["side"](logits[0].detach().mean().reshape(1, 1))
        critic = self.auxiliary_optimizers["critic"]
        yield Update({"critic": (guess - 1).square().mean()}, critic)


class TwoUpdates(ExtensionTrainer):
    """The stock update twice per batch."""

    def compute_losses(
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Iterator[Losses | Update]:
        for number in ("once", "twice"):
            yield {number: self.loss(self.network(data), target)}


class Exploding(ExtensionTrainer):
    """One part of the loss divides by zero."""

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Losses:
        losses = super().compute_losses(data, target, keys)
        assert isinstance(losses, dict)
        return losses | {"consistency": losses["segmentation"] / 0}


def started(trainer: Any) -> Any:
    """A trainer that is ready for :meth:`train_step`."""
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    return copy.deepcopy(trainer.network.state_dict())


def final(trainer: Any) -> dict[str, Any]:
    return contract.load(Path(trainer.output_folder, "checkpoint_final.pth"))


# --------------------------------------------------------------------------- as stock nnU-Net

KINDS = pytest.mark.parametrize(
    "task",
    [
        {"dim": 3},
        {"dim": 2, "regions": True, "norm": "batch"},
        {"dim": 3, "ignore": True, "residual": True, "anisotropic": True},
        {"dim": 2, "regions": True, "ignore": True, "deep_supervision": False},
    ],
    ids=["labels", "regions", "ignore", "regions and ignore"],
)


@KINDS
def test_training_steps_equal_those_of_stock_nnunet_bit_by_bit(
    make_world: MakeWorld, task: dict[str, Any]
) -> None:
    world = make_world(**task)
    ours = started(world.trainer("ExtensionTrainer"))
    stock = started(world.trainer(nnUNetTrainer))
    stock.network.load_state_dict(ours.network.state_dict())
    stock.lr_scheduler = stock.lr_scheduler.__class__(stock.optimizer, 1e-2, ours.num_epochs)
    stock.lr_scheduler.step(0)
    for _ in range(3):
        batch = next(ours.dataloader_train)
        losses = [trainer.train_step(copy.deepcopy(batch))["loss"] for trainer in (ours, stock)]
        assert losses[0] == losses[1]
    assert tiny.same(weights(ours), weights(stock))
    assert tiny.same(ours.optimizer.state_dict(), stock.optimizer.state_dict())


def test_large_gradients_are_clipped_as_in_stock_nnunet(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainers = [started(world.trainer(each)) for each in (ExtensionTrainer, nnUNetTrainer)]
    batch = next(trainers[0].dataloader_train)
    for trainer in trainers:
        trainer.network.load_state_dict(trainers[0].network.state_dict())
        trainer.loss = lambda logits, target, loss=trainer.loss: 1000 * loss(logits, target)
    for trainer in trainers:
        trainer.train_step(copy.deepcopy(batch))
    gradients = [p.grad for p in trainers[1].network.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert float(norm) == pytest.approx(12, rel=1e-3)
    assert tiny.same(*(weights(trainer) for trainer in trainers))
    assert tiny.same(*(trainer.optimizer.state_dict() for trainer in trainers))


def test_attributes_of_nnunet_keep_their_values_without_settings(make_world: MakeWorld) -> None:
    world = make_world()
    plans = world.plans() | {"continue_training": False}
    plans["configurations"][tiny.CONFIGURATION] = {"inherits_from": tiny.BASE}
    made = [
        trainer(
            copy.deepcopy(plans), tiny.CONFIGURATION, 0, world.task.dataset_json, device=tiny.CPU
        )
        for trainer in (ExtensionTrainer, nnUNetTrainer)
    ]
    ours, stock = map(vars, made)
    differ = {"logger", "log_file", "output_folder", "output_folder_base", "my_init_kwargs"}
    objects = {"plans_manager", "configuration_manager", "label_manager"}
    for name in stock.keys() - differ - objects:
        assert ours[name] == stock[name], name


# ------------------------------------------------------------------------------------ updates


def test_losses_of_one_update_are_summed(make_world: MakeWorld) -> None:
    trainer = started(make_world().trainer(WithAuxiliary))
    output = trainer.train_step(next(trainer.dataloader_train))
    assert output["parts"].keys() == {"segmentation", "side"}
    assert output["loss"] == pytest.approx(sum(output["parts"].values()))


def test_a_generator_steps_once_for_each_yield(make_world: MakeWorld) -> None:
    world = make_world()
    twice, once = started(world.trainer(TwoUpdates)), started(world.trainer("ExtensionTrainer"))
    once.network.load_state_dict(twice.network.state_dict())
    batch = next(once.dataloader_train)
    parts = twice.train_step(batch)["parts"]
    losses = [once.train_step(batch)["loss"] for _ in range(2)]
    assert [parts["once"], parts["twice"]] == losses
    assert tiny.same(weights(twice), weights(once))


@pytest.mark.parametrize("recipe", [WithAuxiliary, TwoUpdates], ids=["dict", "generator"])
def test_losses_are_computed_inside_autocast_and_optimised_outside(
    make_world: MakeWorld, recipe: type[ExtensionTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = started(make_world(dim=2).trainer(recipe))
    seen: dict[str, set[bool]] = {"forward": set(), "step": set()}
    trainer.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    forward, step = trainer.network.forward, trainer.optimizer.step

    def watched_forward(data: torch.Tensor) -> Any:
        seen["forward"].add(torch.is_autocast_enabled("cpu"))
        return forward(data)

    def watched_step() -> None:
        seen["step"].add(torch.is_autocast_enabled("cpu"))
        step()

    monkeypatch.setattr(trainer.network, "forward", watched_forward)
    monkeypatch.setattr(trainer.optimizer, "step", watched_step)
    trainer.train_step(next(trainer.dataloader_train))
    assert seen == {"forward": {True}, "step": {False}}


@pytest.mark.parametrize("name", ["ExtensionTrainer", "CateNormTrainer"])
def test_scaling_gradients_changes_nothing_in_float32(make_world: MakeWorld, name: str) -> None:
    world = make_world(dim=2)
    settings = {"catenorm": {"plain_fraction": 0.0}}
    scaled, plain = (started(world.trainer(name, settings)) for _ in range(2))
    scaled.network.load_state_dict(plain.network.state_dict())
    scaled.grad_scaler = torch.GradScaler("cpu", init_scale=2.0**8)
    batch = next(plain.dataloader_train)
    for trainer in (scaled, plain):
        trainer.train_step(copy.deepcopy(batch))
    torch.testing.assert_close(weights(scaled), weights(plain), atol=1e-6, rtol=1e-5)


def test_an_update_with_its_own_optimizer_leaves_the_network_alone(make_world: MakeWorld) -> None:
    world = make_world()
    critic, plain = started(world.trainer(WithCritic)), started(world.trainer("ExtensionTrainer"))
    plain.network.load_state_dict(critic.network.state_dict())
    side = copy.deepcopy(critic.auxiliary.state_dict())
    batch = next(plain.dataloader_train)
    output, expected = critic.train_step(batch), plain.train_step(batch)
    assert output["loss"] == expected["loss"]
    assert tiny.same(weights(critic), weights(plain))
    assert not tiny.same(critic.auxiliary.state_dict(), side)


def test_parameters_with_their_own_optimizer_are_in_no_other(make_world: MakeWorld) -> None:
    trainer = make_world().trainer(WithCritic)
    trainer.initialize()
    own = {id(p) for p in trainer.auxiliary.parameters()}
    shared = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not own & shared


# ------------------------------------------------------------------------- auxiliary networks


@pytest.mark.parametrize("recipe", [WithAuxiliary, WithCritic])
def test_auxiliary_networks_are_optimised_saved_apart_and_restored(
    make_world: MakeWorld, recipe: type[ExtensionTrainer]
) -> None:
    world = make_world()
    trainer = world.trainer(recipe)
    trainer.initialize()
    before = copy.deepcopy(trainer.auxiliary.state_dict())
    trainer.run_training()
    assert not tiny.same(trainer.auxiliary.state_dict(), before)

    saved = final(trainer)
    assert not [name for name in saved["network_weights"] if "side" in name]
    assert saved["nnunet_ext"]["auxiliary"].keys() == {"side"}

    continued = world.trainer(recipe, {"seed": 5}, continue_training=True)
    continued.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert tiny.same(continued.auxiliary.state_dict(), trainer.auxiliary.state_dict())
    assert tiny.same(continued.optimizer.state_dict(), trainer.optimizer.state_dict())
    for name, optimizer in trainer.auxiliary_optimizers.items():
        assert optimizer.state_dict()["state"]
        restored = continued.auxiliary_optimizers[name]
        assert tiny.same(restored.state_dict(), optimizer.state_dict())


def test_auxiliary_networks_train_in_training_mode(make_world: MakeWorld) -> None:
    trainer = started(make_world().trainer(WithAuxiliary))
    trainer.auxiliary.eval()
    trainer.on_train_epoch_start()
    assert trainer.auxiliary["side"].training


# ----------------------------------------------------------------------------------- settings


def test_settings_of_the_plans_reach_nnunets_attributes(make_world: MakeWorld) -> None:
    chosen = {
        "num_epochs": 7,
        "num_iterations_per_epoch": 5,
        "num_val_iterations_per_epoch": 3,
        "save_every": 2,
        "initial_lr": 0.5,
    }
    trainer = make_world().trainer("ExtensionTrainer", chosen)
    assert {name: getattr(trainer, name) for name in chosen} == chosen


def test_the_length_in_the_name_wins_over_the_settings(make_world: MakeWorld) -> None:
    trainer = make_world().trainer("CateNormTrainer_3epochs", {"num_epochs": 7})
    assert trainer.num_epochs == 3
    assert "CateNormTrainer_3epochs__" in trainer.output_folder
    assert isinstance(trainer, CateNormTrainer)


def test_adam_comes_with_its_own_learning_rate_and_nnunets_schedule(make_world: MakeWorld) -> None:
    trainer = started(make_world().trainer("ExtensionTrainer", {"optimizer": "adam"}))
    trainer.on_train_epoch_start()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**0.9)


def test_settings_in_force_are_printed_and_stored(make_world: MakeWorld) -> None:
    trainer = make_world().trainer("CateNormTrainer", {"catenorm": {"reduction": 4}})
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert "nnunet_ext settings" in log
    assert "'reduction': 4" in log
    assert "'num_epochs': 2" in log
    stored = final(trainer)["nnunet_ext"]
    assert stored["settings"]["catenorm"]["reduction"] == 4
    assert stored["training_settings"]["num_epochs"] == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"catenorm": {"reductoin": 2}}, ["reductoin", "reduction", "encoder_stages", "tiny"]),
        ({"num_epoch": 2}, ["num_epoch", "num_epochs", "catenorm"]),
        ({"num_epochs": 0}, ["num_epochs", "0"]),
    ],
)
def test_refused_settings_name_the_key_and_leave_no_folder(
    make_world: MakeWorld, settings: dict[str, Any], named: list[str]
) -> None:
    world = make_world()
    with pytest.raises(SettingsError) as refusal:
        world.trainer("CateNormTrainer", settings)
    assert all(word in str(refusal.value) for word in named)
    assert not list(world.results.parent.iterdir())


def test_a_seed_makes_trainings_repeat_themselves(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trained = []
    for seed in (3, 3, 4):
        trainer = world.trainer("ExtensionTrainer", {"seed": seed})
        trainer.run_training()
        trained.append((weights(trainer), trainer.history.rows))
    assert tiny.same(trained[0], trained[1])
    assert not tiny.same(trained[0], trained[2])


def test_a_seeded_training_does_not_depend_on_how_fast_the_machine_blurs(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    trained = []
    for sign in (1, -1):
        # nnU-Net's augmentation measures two ways to blur; the clock decides which wins
        ticks = iter(sign * 1.01**n for n in range(10_000))
        monkeypatch.setattr(gaussian_blur, "time", lambda ticks=ticks: next(ticks))
        trainer = world.trainer("ExtensionTrainer", {"num_iterations_per_epoch": 15})
        trainer.run_training()
        trained.append(weights(trainer))
    assert tiny.same(*trained)


# ----------------------------------------------------------------------------- non-finite loss


def test_a_non_finite_loss_stops_with_its_part_and_its_cases(make_world: MakeWorld) -> None:
    trainer = make_world().trainer(Exploding)
    with pytest.raises(NonFiniteLossError) as stop:
        trainer.run_training()
    message = str(stop.value)
    assert '"consistency" became inf in epoch 0' in message
    assert any(case in message for case in tiny.TRAIN)
    assert "segmentation" not in message


class Overflowing(ExtensionTrainer):
    """Says of each batch in turn whether its loss overflows."""

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Losses:
        loss = self.loss(self.network(data), target)
        return {"segmentation": loss * float("inf") if next(self.overflows) else loss}


def in_half_precision(world: World, overflows: list[bool], **settings: Any) -> Any:
    """A trainer with the gradient scaler that nnU-Net has on GPUs."""
    trainer = world.trainer(Overflowing, settings)
    trainer.initialize()
    trainer.grad_scaler = torch.GradScaler("cpu", init_scale=2.0**8)
    trainer.overflows = iter(overflows)
    return trainer


def test_in_mixed_precision_a_step_that_is_not_finite_is_left_out_and_counted(
    make_world: MakeWorld,
) -> None:
    trainer = in_half_precision(make_world(dim=2), [True, False, False, False])
    started(trainer)
    before = weights(trainer)
    outputs = [trainer.train_step(next(trainer.dataloader_train))]
    assert tiny.same(weights(trainer), before)
    outputs.append(trainer.train_step(next(trainer.dataloader_train)))
    assert not tiny.same(weights(trainer), before)
    expected = outputs[1]["parts"]["segmentation"]
    trainer.on_train_epoch_end(outputs)
    assert trainer._figures == {"segmentation": expected, "skipped_steps": 1}
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    assert trainer._figures["skipped_steps"] == 1  # of the first epoch


def test_ten_steps_in_a_row_that_are_not_finite_stop_also_in_mixed_precision(
    make_world: MakeWorld,
) -> None:
    trainer = started(in_half_precision(make_world(dim=2), 9 * [True] + [False] + 10 * [True]))
    batch = next(trainer.dataloader_train)
    for _ in range(19):
        trainer.train_step(batch)
    with pytest.raises(NonFiniteLossError, match="became inf in epoch 0, 10 times in a row, case"):
        trainer.train_step(batch)


class OverflowingCritic(WithCritic):
    """The critic's loss is not a number, as where what it judges has overflowed."""

    def compute_losses(  # type: ignore[override]
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Iterator[Losses | Update]:
        yield from super().compute_losses(data, target, keys)
        critic = self.auxiliary_optimizers["critic"]
        guess = self.auxiliary["side"](torch.full((1, 1), torch.nan))
        yield Update({"overflowed": guess.mean()}, critic)


def test_in_mixed_precision_other_optimisers_leave_out_such_steps_too(
    make_world: MakeWorld,
) -> None:
    trainer = started(make_world(dim=2).trainer(OverflowingCritic))
    trainer.grad_scaler = torch.GradScaler("cpu", init_scale=2.0**8)
    trainer.train_step(next(trainer.dataloader_train))
    assert all(p.isfinite().all() for p in trainer.auxiliary.parameters())


# --------------------------------------------------------------------------------------- seeds


def test_draws_of_a_process_are_those_of_no_other_process_epoch_or_seed() -> None:
    drawn = set()
    moments = [*itertools.product((0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 100, 101, 102))]
    for numbers in moments:
        seed_everything(*numbers)
        drawn.add((int(torch.randint(2**60, ())), float(np.random.rand()), random.random()))
    assert len(drawn) == len(moments)
    # seed 1, rank 0, epoch e was once seed 0, rank 3, epoch e + 100
    seed_everything(1, 0, 2)
    first = torch.rand(4)
    seed_everything(0, 3, 102)
    assert not torch.equal(first, torch.rand(4))
    seed_everything(1, 0, 2)
    assert torch.equal(first, torch.rand(4))


# ------------------------------------------------------------------------------------- records


def test_every_epoch_has_one_line_in_losses_csv(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(dim=2)
    chosen = {"num_epochs": 3, "save_every": 2}
    interrupted = world.trainer(WithAuxiliary, chosen)
    contract.interrupt_after(interrupted, 2, monkeypatch)
    with pytest.raises(contract.InterruptionError):
        interrupted.run_training()
    continued = world.trainer(WithAuxiliary, chosen, continue_training=True)
    continued.load_checkpoint(str(Path(continued.output_folder, "checkpoint_latest.pth")))
    continued.run_training()
    with Path(continued.output_folder, "losses.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["0", "1", "2"]
    assert lines[0].keys() == {"epoch", "segmentation", "side"}
    assert float(lines[2]["side"]) == continued.history.rows[2]["side"]


def test_epochs_after_the_checkpoint_are_replaced_not_repeated(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    first = world.trainer("ExtensionTrainer")
    first.run_training()
    best = Path(first.output_folder, "checkpoint_best.pth")
    stale = contract.load(best)
    again = world.trainer("ExtensionTrainer", continue_training=True)
    again.load_checkpoint(str(best))
    assert len(again.history.rows) == stale["current_epoch"]
    again.run_training()
    assert [row["epoch"] for row in again.history.rows] == [0, 1]


def test_a_continued_training_still_tells_losses_from_other_figures(
    make_world: MakeWorld,
) -> None:
    world = make_world(dim=2)
    settings = {"catenorm": {"plain_fraction": 0.5}}
    first = world.trainer("CateNormTrainer", settings)
    first.run_training()
    assert first.history.losses == ["first_pass", "second_pass"]
    assert set(first.history.names) > set(first.history.losses)
    second = tiny.ready(world.trainer("CateNormTrainer", settings))
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_final.pth")))
    assert second.history.losses == first.history.losses


def test_the_plot_of_losses_is_a_picture(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2).trainer("CateNormTrainer")
    trainer.run_training()
    picture = Path(trainer.output_folder, "losses.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


class Listener:
    """Stands for Weights & Biases."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any, int]] = []

    def log(self, key: str, value: Any, step: int) -> None:
        self.heard.append((key, value, step))

    def update_config(self, config: dict[str, Any]) -> None:
        pass


def test_nnunets_other_loggers_hear_every_part_of_the_loss(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2).trainer(WithAuxiliary)
    listener = Listener()
    trainer.logger.loggers.append(listener)
    trainer.run_training()
    ours = {(key, step) for key, _, step in listener.heard if key.startswith("nnunet_ext/")}
    assert ours == {(f"nnunet_ext/{name}", e) for name in ("segmentation", "side") for e in (0, 1)}


# -------------------------------------------------------------------------------- progress bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "wanted", "shown"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)],
    ids=["terminal", "terminal, switched off", "file"],
)
def test_the_progress_bar_shows_only_on_a_terminal(
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    wanted: bool,
    shown: bool,
) -> None:
    trainer = make_world(dim=2).trainer("ExtensionTrainer", {"progress_bar": wanted})
    monkeypatch.setattr(sys, "stderr", stream)
    trainer.run_training()
    assert ("0/2" in stream.getvalue()) == shown


@pytest.mark.parametrize("mirror", [True, False])
def test_prediction_mirrors_unless_told_otherwise_and_the_model_remembers(
    make_world: MakeWorld, mirror: bool
) -> None:
    trainer = make_world(dim=2).trainer("ExtensionTrainer", {"mirror_prediction": mirror})
    trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    expected = (0, 1) if mirror else None
    assert checkpoint["inference_allowed_mirroring_axes"] == expected


# --------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_made_with_other_settings_is_refused(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = world.trainer("CateNormTrainer")
    trainer.run_training()
    path = Path(trainer.output_folder, "checkpoint_final.pth")
    other = world.trainer("CateNormTrainer", {"catenorm": {"reduction": 4}})
    with pytest.raises(CheckpointError) as refusal:
        other.load_checkpoint(str(path))
    assert "catenorm.reduction was 2, now 4" in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_training_is_not_continued_with_another_optimizer(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = world.trainer("ExtensionTrainer")
    trainer.run_training()
    other = world.trainer("ExtensionTrainer", {"optimizer": "adam"})
    with pytest.raises(CheckpointError, match=r"nnunet_ext\.optimizer was 'sgd', now 'adam'"):
        other.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))


def test_settings_that_do_not_change_what_is_learned_may_change(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = world.trainer("CateNormTrainer")
    trainer.run_training()
    other = world.trainer("CateNormTrainer", {"catenorm": {"recompute": True}})
    other.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert other.current_epoch == 2


def test_a_checkpoint_with_a_former_setting_goes_on_unless_it_was_another_than_what_is_left(
    make_world: MakeWorld,
) -> None:
    world = make_world(dim=2)
    trainer = world.trainer("CateNormTrainer")
    trainer.run_training()
    path = Path(trainer.output_folder, "checkpoint_final.pth")
    for value in (False, True):
        stored = final(trainer)
        stored["nnunet_ext"]["settings"]["catenorm"]["follow_stage_kernel"] = value
        torch.save(stored, path)
        other = world.trainer("CateNormTrainer")
        if value:
            with pytest.raises(CheckpointError, match="follow_stage_kernel was True, now False"):
                other.load_checkpoint(str(path))
        else:
            other.load_checkpoint(str(path))
            assert other.current_epoch == 2


def test_a_setting_that_the_checkpoint_does_not_know_yet_is_no_difference() -> None:
    checkpoint.refuse_other_settings(
        {"catenorm": {"reduction": 2}}, {"catenorm": {"newer": 1}}, "file"
    )


def test_a_stock_checkpoint_continues(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    stock = world.trainer(nnUNetTrainer)
    stock.num_epochs, stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 1, 1, 1
    stock.run_training()
    ours = world.trainer("ExtensionTrainer")
    ours.load_checkpoint(str(Path(stock.output_folder, "checkpoint_final.pth")))
    assert ours.current_epoch == 1
    assert tiny.same(weights(ours), weights(stock))


def test_a_continued_training_remembers_the_best_epoch(make_world: MakeWorld) -> None:
    # stock nnU-Net saves the latest checkpoint before it notices that the epoch is the best,
    # so that a continued training would replace the best checkpoint by a worse one
    world = make_world(dim=2)
    trainer = world.trainer("ExtensionTrainer", {"save_every": 1})
    started(trainer)
    for value in (0.8, 0.3):
        trainer.on_epoch_start()
        for name in ("train_losses", "val_losses", "lrs"):
            trainer.logger.log(name, 1.0, trainer.current_epoch)
        trainer.logger.log("mean_fg_dice", value, trainer.current_epoch)
        trainer.logger.log("dice_per_class_or_region", [value], trainer.current_epoch)
        trainer.record("segmentation", 1.0)
        trainer.num_epochs = 3
        trainer.on_epoch_end()
        latest = contract.load(Path(trainer.output_folder, "checkpoint_latest.pth"))
        assert latest["_best_ema"] == trainer._best_ema == 0.8


@pytest.fixture(scope="module")
def intact() -> bytes:
    """The bytes of a small checkpoint."""
    buffer = io.BytesIO()
    torch.save({"network_weights": {"a": torch.arange(50.0)}, "epoch": 1}, buffer)
    return buffer.getvalue()


def read(folder: Path, content: bytes) -> dict[str, Any]:
    path = folder / "checkpoint_latest.pth"
    path.write_bytes(content)
    return checkpoint.read(path)


def test_an_intact_checkpoint_is_read(tmp_path: Path, intact: bytes) -> None:
    assert torch.equal(read(tmp_path, intact)["network_weights"]["a"], torch.arange(50.0))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_checkpoint_cut_off_anywhere_gets_a_clear_message(
    tmp_path: Path, intact: bytes, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(intact) - 1))
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint_latest\.pth.*cut off"):
        read(tmp_path, intact[:length])


@given(st.binary() | st.binary().map(lambda end: b"\x80\x02" + end))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_anything_gets_a_clear_message(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint_latest\.pth"):
        read(tmp_path, content)


class Unknown:
    """A class that will be gone when its pickle is read."""


def test_a_checkpoint_that_needs_missing_code_gets_a_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    torch.save({"network_weights": Unknown()}, buffer)
    monkeypatch.delattr(sys.modules[__name__], "Unknown")
    with pytest.raises(CheckpointError, match=r"Unknown"):
        read(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], "weights"])
def test_a_file_of_another_program_is_no_checkpoint(tmp_path: Path, content: Any) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with pytest.raises(CheckpointError, match="not a checkpoint of an nnU-Net trainer"):
        read(tmp_path, buffer.getvalue())


def test_a_checkpoint_that_does_not_exist_gets_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        checkpoint.read(tmp_path / "absent.pth")


def test_disabled_checkpointing_writes_none(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2).trainer("ExtensionTrainer")
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth*"))


# ---------------------------------------------------------------------------------- validation


def test_the_final_validation_scores_every_case(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.default_num_processes", 1)
    trainer = make_world(dim=2, regions=True).trainer("CateNormTrainer")
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder, "validation")
    assert {file.name for file in folder.iterdir()} == {
        "summary.json",
        *(f"{case}.nii.gz" for case in tiny.VALIDATION),
    }
