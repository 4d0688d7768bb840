"""The top-k / sigma recipe: when the envelope is in force, what is logged, how it combines."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_topk_loss
from torch import nn

from nnunet_ext._common.errors import SettingsError, UserError
from nnunet_ext.losses import TopKSigmaCompoundLoss, TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.noise import Suspect
from nnunet_ext.settings import read_method_settings
from nnunet_ext.settings.topk_sigma import TopKSigmaSettings
from nnunet_ext.trainers import CateNormTopKSigmaTrainer, CateNormTrainer, TopKSigmaTrainer
from nnunet_ext.trainers.topk_sigma import TopKSigmaMixin
from tests import contract, tiny
from tests.contract import TASKS

MakeWorld = Callable[..., tiny.World]
AT_ONCE = {"warm_up": 0.0, "ramp": 0.0}
OFF = {"topk_sigma": {"sigma": 0.0, "top_fraction": 1.0}}


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


def at_once(**settings: Any) -> dict[str, Any]:
    return {"topk_sigma": {**AT_ONCE, **settings}}


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


class TestAgainstStock:
    @pytest.mark.parametrize("task", TASKS, ids=str)
    @pytest.mark.parametrize("sigma", [0.0, 1e-9], ids=["off", "nothing_to_leave_out"])
    def test_leaving_nothing_out_gives_nnunets_loss_and_gradients(
        self, task: tiny.Task, sigma: float, make_world: MakeWorld
    ) -> None:
        world = make_world(**vars(task))
        stock = tiny.ready(world.trainer("ExtensionTrainer"))
        ours = tiny.ready(world.trainer("TopKSigmaTrainer", at_once(sigma=sigma, top_fraction=1.0)))
        batch = tiny.batch_for(stock, task)
        if task.ignore:  # as many ignored voxels in each image; means of means differ otherwise
            for target in batch["target"] if task.deep_supervision else [batch["target"]]:
                target[1] = target[0]
        logits = stock.network(batch["data"])
        scales = logits if task.deep_supervision else [logits]
        results = []
        for trainer in (stock, ours):
            loss = trainer.loss(logits, batch["target"])
            gradients = torch.autograd.grad(loss, scales[:-1] or scales, retain_graph=True)
            results.append([loss.detach(), *gradients])
        torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)

    def test_switched_off_it_trains_as_stock_nnunet(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        weights = []
        for name, settings in (("ExtensionTrainer", {}), ("TopKSigmaTrainer", OFF)):
            trainer = world.trainer(name, settings)
            trainer.run_training()
            weights.append(trainer.network.state_dict())
        assert tiny.same(*weights)

    def test_validation_reports_nnunets_loss(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        settings = at_once(sigma=0.3)
        stock = tiny.ready(world.trainer("ExtensionTrainer"))
        ours = tiny.ready(world.trainer("TopKSigmaTrainer", settings))
        ours.network.load_state_dict(stock.network.state_dict())
        batch = tiny.batch_for(stock, world.task)
        logits = stock.network(batch["data"])
        stock_loss = stock.loss(logits, batch["target"])
        assert not torch.isclose(ours.loss(logits, batch["target"]), stock_loss)
        losses = []
        for trainer in (stock, ours):
            trainer.on_validation_epoch_start()
            losses.append(float(trainer.validation_step(batch)["loss"]))
        assert losses[0] == losses[1]
        ours.on_train_epoch_start()
        assert not torch.isclose(ours.loss(logits, batch["target"]), stock_loss)


class TestSchedule:
    def test_after_the_warm_up_the_envelope_grows_linearly(self, make_world: MakeWorld) -> None:
        settings = {
            "num_epochs": 10,
            "topk_sigma": {"sigma": 0.1, "top_fraction": 0.5, "warm_up": 0.3, "ramp": 0.4},
        }
        trainer = make_world(dim=2).trainer("TopKSigmaTrainer", settings)
        trainer.run_training()
        rows = trainer.history.rows
        strength = [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
        assert [row["sigma"] for row in rows] == pytest.approx([0.1 * s for s in strength])
        assert [row["top_fraction"] for row in rows] == pytest.approx(
            [1 - 0.5 * s for s in strength]
        )
        for row, s in zip(rows, strength, strict=True):
            assert (row["trimmed_background"] > 0) is (s > 0)

    @pytest.mark.parametrize(
        ("warm_up", "ramp", "strengths"),
        [
            (0.1, 0.1, {0: 0, 99: 0, 100: 0, 101: 0.01, 150: 0.5, 199: 0.99, 200: 1, 999: 1}),
            (0.29, 0, {0: 0, 289: 0, 290: 1, 999: 1}),
            (0, 0, {0: 1, 999: 1}),
            (1, 0.1, {0: 0, 999: 0}),
        ],
    )
    def test_the_strength_follows_from_the_epoch_alone(
        self, make_world: MakeWorld, warm_up: float, ramp: float, strengths: dict[int, float]
    ) -> None:
        settings = {"num_epochs": 1000, "topk_sigma": {"warm_up": warm_up, "ramp": ramp}}
        trainer = make_world(dim=2).trainer("TopKSigmaTrainer", settings)
        for epoch, strength in strengths.items():
            trainer.current_epoch = epoch
            assert trainer.strength == strength

    def test_a_continued_training_goes_on_where_the_ramp_was(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        settings = {
            "num_epochs": 4,
            "save_every": 1,
            "topk_sigma": {"sigma": 0.1, "warm_up": 0.0, "ramp": 1.0},
        }
        first = world.trainer("TopKSigmaTrainer", settings)
        with pytest.MonkeyPatch.context() as monkeypatch:
            contract.interrupt_after(first, 2, monkeypatch)
            with pytest.raises(contract.InterruptionError):
                first.run_training()
        second = world.trainer("TopKSigmaTrainer", settings, continue_training=True)
        second.load_checkpoint(str(Path(second.output_folder, "checkpoint_latest.pth")))
        second.run_training()
        sigmas = [row["sigma"] for row in second.history.rows]
        assert sigmas == pytest.approx([0, 0.025, 0.05, 0.075])

    def test_another_recipe_may_choose_sigma_itself(self, make_world: MakeWorld) -> None:
        class Chosen(TopKSigmaTrainer):
            target_sigma = 0.07

        trainer = tiny.ready(make_world(dim=2).trainer(Chosen, at_once()))
        assert trainer.loss.envelope.sigma == 0.07


class TestDefaults:
    @pytest.mark.parametrize(
        ("dim", "batch_size", "expected"), [(2, 2, 0.5), (3, 2, 1.0), (3, 3, 1.0), (3, 4, 0.5)]
    )
    def test_small_batches_of_volumes_keep_all_images(
        self, make_world: MakeWorld, dim: int, batch_size: int, expected: float
    ) -> None:
        trainer = make_world(dim=dim).trainer("TopKSigmaTrainer", at_once(sigma=0.02))
        trainer.configuration_manager.configuration["batch_size"] = batch_size
        assert trainer.target_top_fraction == expected

    @pytest.mark.parametrize("sigma", [0.1, "auto"])
    def test_a_chosen_share_of_images_is_kept_also_in_small_batches(
        self, make_world: MakeWorld, sigma: Any
    ) -> None:
        settings = {"topk_sigma": {"top_fraction": 0.25, "sigma": sigma}}
        assert make_world().trainer("TopKSigmaTrainer", settings).target_top_fraction == 0.25

    def test_auto_without_evidence_trains_as_stock_nnunet(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        weights = []
        for trainer in (world.trainer(), world.trainer("TopKSigmaTrainer", at_once(sigma="auto"))):
            tiny.ready(trainer).train_step(tiny.batch_for(trainer, world.task))
            weights.append(trainer.network.state_dict())
        assert tiny.same(*weights)

    def test_all_settings_reach_the_loss(self, make_world: MakeWorld) -> None:
        chosen = {
            "sigma": 0.1,
            "top_fraction": 0.25,
            "smoothing": "integral",
            "scope": "class",
            "dice": "plain",
        }
        trainer = tiny.ready(make_world().trainer("TopKSigmaTrainer", at_once(**chosen)))
        loss = trainer.loss
        in_force = {name: getattr(loss.envelope, name) for name in chosen if name != "dice"}
        assert {**in_force, "dice": loss.dice} == chosen
        assert loss.envelope.num_classes == loss.num_classes == 3

    def test_processes_rank_their_images_together(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = make_world(dim=2).trainer("TopKSigmaTrainer")
        assert trainer._build_loss().images_per_rank is None
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        trainer.is_ddp = True
        trainer.configuration_manager.configuration["batch_size"] = 5
        assert trainer._build_loss().images_per_rank == 3


class TestLog:
    @pytest.mark.parametrize(
        ("task", "names"),
        [
            ({"ignore": True}, ["background", "organ", "lesion"]),
            ({"regions": True, "ignore": True}, ["background", "whole", "core"]),
        ],
        ids=["classes", "regions"],
    )
    def test_every_epoch_names_what_was_left_out_of_each_class(
        self, make_world: MakeWorld, task: dict[str, Any], names: list[str]
    ) -> None:
        trainer = make_world(dim=2, **task).trainer("TopKSigmaTrainer", at_once(sigma=0.2))
        trainer.run_training()
        for row in trainer.history.rows:
            assert [name for name in row if name.startswith("trimmed_")] == [
                f"trimmed_{name}" for name in names
            ]
            assert row["sigma"] == 0.2
            assert row["top_fraction"] == 0.5
            assert 0.1 < max(row[f"trimmed_{name}"] for name in names) <= 1

    def test_leaving_out_most_of_a_class_is_warned_of_once_it_persists(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("TopKSigmaTrainer", at_once(sigma=0.1)))
        outputs = [trainer.train_step(tiny.batch_for(trainer, world.task))]
        much, little = ([[0.1, 0.2, of_lesion], [2.0, 2.0, 2.0]] for of_lesion in (1.2, 0.9))
        for observed, warns in [(much, 0), (little, 0), (much, 0), (much, 0), (much, 1), (much, 1)]:
            trainer.loss._observed = torch.tensor(observed)
            trainer.on_train_epoch_end(copy.deepcopy(outputs))
            warning = 'WARNING: the loss left out 60% of the voxels labelled "lesion"'
            assert log_of(trainer).count(warning) == warns
        assert 'labelled "organ"' not in log_of(trainer)

    def test_labels_are_named_by_number_however_they_are_listed(
        self, make_world: MakeWorld
    ) -> None:
        trainer = make_world().trainer("TopKSigmaTrainer")
        trainer.dataset_json["labels"] = {"b": 2, "ignore": 3, "background": 0, "a": [1]}
        assert trainer.class_names == ["background", "a", "b"]


class TestAuto:
    """Labels that a confident network contradicts in some cases."""

    AUTO: ClassVar[dict[str, Any]] = at_once(sigma="auto")

    def test_it_is_the_default(self, make_world: MakeWorld) -> None:
        trainer = tiny.ready(make_world(dim=2).trainer("TopKSigmaTrainer"))
        assert trainer.loss.record is not None
        assert trainer.target_sigma == 0
        assert not trainer.loss.envelope.is_active

    @pytest.mark.parametrize("task", TASKS, ids=str)
    def test_what_is_missing_in_a_suspected_image_is_left_out_and_nothing_else(
        self, make_world: MakeWorld, task: tiny.Task
    ) -> None:
        trainer = tiny.ready(make_world(**vars(task)).trainer("TopKSigmaTrainer", self.AUTO))
        batch = tiny.batch_for(trainer, task)
        scales = batch["target"] if task.deep_supervision else [batch["target"]]
        heads = trainer.label_manager.num_segmentation_heads
        outputs = [confident(scale, trainer).requires_grad_() for scale in scales]
        net_output = outputs if task.deep_supervision else outputs[0]
        foreground = (outputs[0] > 0).any(1) if task.regions else (outputs[0][:, 1:] > 0).any(1)
        for scale in scales:  # in the first image all is background
            labels = scale[:1, :heads] if task.regions else scale[:1]
            labels[labels < heads] = 0
        evidence = torch.zeros(2, heads, dtype=torch.bool)
        evidence[0, 0 if task.regions else 1 :] = True  # all foreground is missing
        trainer.loss.train().suspected = {"first": evidence}

        left_out = []
        for cases in (["first", "second"], ["third", "second"]):
            trainer.loss.expect(cases)
            loss = trainer.loss(net_output, batch["target"])
            (gradient,) = torch.autograd.grad(loss, outputs[0])
            left_out.append((gradient == 0).all(1))
        suspected, trusted = left_out
        assert (suspected & ~trusted)[0].any()
        foreground[1] = False
        assert torch.equal(suspected, trusted | foreground)

    def test_each_case_is_counted_and_suspects_are_listed(self, make_world: MakeWorld) -> None:
        trainer = make_world(dim=2).trainer("TopKSigmaTrainer", self.AUTO)
        trainer.run_training()
        assert trainer.loss.record.total.cases.keys() <= set(tiny.TRAIN)
        assert trainer.loss.record.total.cases
        table = pd.read_csv(Path(trainer.output_folder, "suspects.csv"))
        assert list(table) == ["case", "label", "kind", "share", "voxels"]
        for row in trainer.history.rows:
            assert row["suspected_cases"] == len(set(table["case"])) == 0

    def test_suspects_are_named_with_their_class(self, make_world: MakeWorld) -> None:
        trainer = tiny.ready(make_world(dim=2).trainer("TopKSigmaTrainer", self.AUTO))
        trainer._write([Suspect("case_7", 2, "missing", 0.98765, 1234)])
        written = Path(trainer.output_folder, "suspects.csv").read_text()
        assert written == "case,label,kind,share,voxels\ncase_7,lesion,missing,0.988,1234\n"

    def test_evidence_acts_in_the_next_epoch_but_not_in_the_warm_up(
        self, make_world: MakeWorld
    ) -> None:
        settings = {"topk_sigma": {"sigma": "auto", "warm_up": 0.5, "ramp": 0.0}, "num_epochs": 4}
        trainer = tiny.ready(make_world(dim=2).trainer("TopKSigmaTrainer", settings))
        found = torch.ones(2, 3, dtype=torch.bool)
        trainer.loss.record.suspected = lambda: {"case_0": found}
        in_force = []
        for epoch in range(4):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            in_force.append(list(trainer.loss.suspected))
        assert in_force == [[], [], ["case_0"], ["case_0"]]

    def test_a_continued_training_remembers_its_cases(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        first = world.trainer("TopKSigmaTrainer", self.AUTO)
        first.run_training()
        second = tiny.ready(world.trainer("TopKSigmaTrainer", self.AUTO))
        second.load_checkpoint(str(Path(first.output_folder, "checkpoint_final.pth")))
        assert tiny.same(tuple(second.loss.record.total), tuple(first.loss.record.total))

    def test_a_fixed_sigma_suspects_nobody(self, make_world: MakeWorld) -> None:
        trainer = make_world(dim=2).trainer("TopKSigmaTrainer", at_once(sigma=0.1))
        trainer.run_training()
        assert trainer.loss.record is None
        assert not Path(trainer.output_folder, "suspects.csv").exists()


def confident(target: torch.Tensor, trainer: Any) -> torch.Tensor:
    """Logits of a network that is nearly sure of what the target (B, 1 or R, *S) says."""
    if trainer.label_manager.has_regions:
        regions = trainer.label_manager.num_segmentation_heads
        return (target[:, :regions].float() * 2 - 1) * 5
    heads = trainer.label_manager.num_segmentation_heads
    known = target.long().clamp(0, heads - 1)
    return torch.zeros(len(target), heads, *target.shape[2:]).scatter_(1, known, 5.0)


class TestCombination:
    def test_with_catenorm_both_passes_are_enveloped(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        settings = {**at_once(sigma=0.2), "catenorm": {"plain_fraction": 0.0}}
        trainer = tiny.ready(world.trainer("CateNormTopKSigmaTrainer", settings))
        outputs = trainer.train_step(tiny.batch_for(trainer, world.task))
        assert outputs["parts"].keys() == {"first_pass", "second_pass"}
        _, batches = trainer.loss.pop_observed()
        assert batches.tolist() == [2, 2, 2]

    def test_with_catenorm_each_image_is_counted_once(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        settings = {**at_once(sigma="auto"), "catenorm": {"plain_fraction": 0.0}}
        trainer = tiny.ready(world.trainer("CateNormTopKSigmaTrainer", settings))
        batch = tiny.batch_for(trainer, world.task)
        trainer.train_step(batch)
        counted = trainer.loss.record.pop_seen().own[:, 1].sum()
        assert counted == batch["target"][0].numel()

    def test_combining_takes_a_class_statement(self) -> None:
        assert CateNormTopKSigmaTrainer.__bases__ == (TopKSigmaMixin, CateNormTrainer)
        own = {name for name in vars(CateNormTopKSigmaTrainer) if not name.startswith("_")}
        assert not own
        settings = CateNormTopKSigmaTrainer.collected_method_settings()
        assert settings.keys() == {"catenorm", "topk_sigma"}

    def test_a_recipe_with_a_loss_of_its_own_is_refused(self, make_world: MakeWorld) -> None:
        class WithOwnLoss(tiny.nnUNetTrainer):
            def _build_loss(self) -> nn.Module:
                return DC_and_topk_loss({"ddp": False}, {"k": 10})

        class Combined(TopKSigmaMixin, WithOwnLoss):
            pass

        trainer = make_world(dim=2).trainer(Combined)
        with (
            pytest.warns(UserWarning, match="size_average"),
            pytest.raises(UserError, match="DC_and_topk_loss"),
        ):
            trainer.initialize()

    def test_losses_can_be_used_without_a_trainer(self) -> None:
        assert TopKSigmaCompoundLoss.__module__.startswith("nnunet_ext.losses")
        assert float(TopKSigmaLoss(0, 1)(torch.ones(1, 4))) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 1.0}, '"sigma" is 1.0. Input should be less than 1'),
        ({"sigma": -0.1}, '"sigma" is -0.1. Input should be greater than or equal to 0'),
        ({"top_fraction": 0}, '"top_fraction" is 0. Input should be greater than 0'),
        ({"top_fraction": 1.5}, '"top_fraction" is 1.5. Input should be less than or equal to 1'),
        ({"scope": "voxel"}, "'image', 'class' or 'batch'"),
        ({"smoothing": "soft"}, "'gate', 'integral' or 'hard'"),
        ({"dice": "soft"}, "'masked', 'plain' or 'none'"),
        ({"warm_up": 1.1}, "less than or equal to 1"),
        ({"ramp": -0.1}, "greater than or equal to 0"),
        ({"sigmas": 0.1}, 'unknown setting "sigmas". Did you mean sigma?'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_refused_with_the_allowed_ones(
    settings: dict[str, Any], message: str
) -> None:
    configuration = {"nnunet_ext": {"topk_sigma": settings}}
    with pytest.raises(SettingsError) as refusal:
        read_method_settings(configuration, "topk_sigma", TopKSigmaSettings)
    assert message in str(refusal.value)
