"""CateNorm's recipe: two updates per batch, a plain phase, and what prediction needs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_ext._common.errors import SettingsError
from nnunet_ext.networks import CateNormUNet
from nnunet_ext.networks.catenorm.passes import OwnStatistics
from nnunet_ext.trainers.base import Losses
from nnunet_ext.trainers.catenorm import SECOND_PASS, CateNormTrainer
from nnunet_ext.trainers.catenorm_priors import other_priors
from tests import contract, tiny

MakeWorld = Callable[..., tiny.World]
NO_PLAIN_PHASE = {"catenorm": {"plain_fraction": 0.0}}


@pytest.fixture(autouse=True)
def _without_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


def modulation(trainer: Any) -> dict[str, Tensor]:
    weights = trainer.network.catenorm.state_dict()
    return {name: weight.clone() for name, weight in weights.items()}


class SecondLossScaled(CateNormTrainer):
    """Multiplies the loss of the second pass."""

    factor = 1.0

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Iterator[Losses]:
        for losses in super().compute_losses(data, target, keys):
            factor = self.factor if SECOND_PASS in losses else 1.0
            yield {name: factor * loss for name, loss in losses.items()}


class TestUpdates:
    @pytest.mark.parametrize("updates", ["alternating", "joint"])
    def test_evaluation_of_each_pass_equals_statistics_recalibrated_for_it(
        self, make_world: MakeWorld, updates: str
    ) -> None:
        world = make_world(dim=2, norm="batch", deep_supervision=False)
        settings = {"catenorm": {"plain_fraction": 0.0, "updates": updates}}
        trainer = tiny.ready(world.trainer("CateNormTrainer", settings))
        batch = tiny.batch_for(trainer, world.task)
        trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.1)
        trainer.train_step(batch)
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0  # statistics follow weights that change only with delay
        for _ in range(100):
            trainer.train_step(batch)
        network, data = trainer.network, batch["data"]
        with torch.no_grad():
            prior = network.prior_from(network(data, mode="first"))
            for arguments in ({"mode": "first"}, {"mode": "second", "prior": prior}):
                expected = tiny.recalibrated(network, data, **arguments)
                actual = network.eval()(data, **arguments)
                torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
                network.train()

    @pytest.mark.parametrize(("factor", "moves"), [(0.0, False), (1.0, True)])
    def test_modulation_learns_through_the_second_pass_only(
        self, make_world: MakeWorld, factor: float, moves: bool
    ) -> None:
        world = make_world()
        trainer = tiny.ready(world.trainer(SecondLossScaled, NO_PLAIN_PHASE))
        trainer.factor = factor
        trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.1)
        before = modulation(trainer)
        trainer.train_step(tiny.batch_for(trainer, world.task))
        assert tiny.same(before, modulation(trainer)) is not moves

    @pytest.mark.parametrize(
        ("updates", "steps"), [("alternating", 2), ("joint", 1)], ids=["alternating", "joint"]
    )
    def test_each_kind_of_update_takes_its_number_of_steps_and_logs_both_losses(
        self,
        make_world: MakeWorld,
        updates: str,
        steps: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        world = make_world(dim=2)
        settings = {"catenorm": {"plain_fraction": 0.0, "updates": updates}}
        trainer = tiny.ready(world.trainer("CateNormTrainer", settings))
        taken = []
        step = trainer.optimizer.step
        monkeypatch.setattr(trainer.optimizer, "step", lambda: taken.append(step()))
        outputs = trainer.train_step(tiny.batch_for(trainer, world.task))
        assert len(taken) == steps
        assert outputs["parts"].keys() == {"first_pass", "second_pass"}
        if updates == "alternating":
            assert outputs["loss"] == pytest.approx(outputs["parts"]["second_pass"])

    def test_what_lies_under_the_ignore_mask_of_regions_changes_nothing(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(regions=True, ignore=True)
        trainer = tiny.ready(world.trainer("CateNormTrainer", NO_PLAIN_PHASE))
        batch = tiny.batch_for(trainer, world.task)
        other = [scale.clone() for scale in batch["target"]]
        for scale in other:
            regions, ignored = scale[:, :-1], scale[:, -1:].bool()
            regions[:] = torch.where(ignored, 1 - regions, regions)
        assert not tiny.same(other, batch["target"])
        results = []
        for target in (batch["target"], other):
            trainer.network.zero_grad()
            parts = [
                loss
                for losses in trainer.compute_losses(batch["data"], target, batch["keys"])
                for loss in losses.values()
            ]
            torch.stack(parts).sum().backward()
            gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
            results.append([*(part.detach() for part in parts), *(g.clone() for g in gradients)])
        assert tiny.same(*results)

    def test_ignored_voxels_of_classes_have_no_gradient(self, make_world: MakeWorld) -> None:
        world = make_world(ignore=True, deep_supervision=False)
        trainer = tiny.ready(world.trainer("CateNormTrainer", NO_PLAIN_PHASE))
        batch = tiny.batch_for(trainer, world.task)
        logits = trainer.network(batch["data"]).detach().requires_grad_()
        trainer.loss(logits, batch["target"]).backward()
        ignored = (batch["target"] == tiny.IGNORE).expand_as(logits)
        assert logits.grad[ignored].abs().max() == 0
        assert logits.grad[~ignored].abs().max() > 0


class TestPlainPhase:
    def test_the_second_pass_starts_after_the_plain_share_of_epochs(
        self, make_world: MakeWorld
    ) -> None:
        settings = {"num_epochs": 4, "catenorm": {"plain_fraction": 0.5}}
        trainer = make_world(dim=2).trainer("CateNormTrainer", settings)
        trainer.run_training()
        names = [sorted(row.keys() - {"epoch"}) for row in trainer.history.rows]
        both = ["first_pass", "first_pass_dice", "second_pass", "second_pass_dice"]
        priors = ["foreign_prior_dice", "prior_gain", "true_prior_dice", "uniform_prior_dice"]
        assert names == [["first_pass"], ["first_pass"], both, sorted([*both, *priors])]

    def test_the_best_checkpoint_is_never_from_the_plain_phase(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = {"num_epochs": 2, "catenorm": {"plain_fraction": 0.5}}
        trainer = make_world(dim=2).trainer("CateNormTrainer", settings)
        averages = []
        on_epoch_end = trainer.on_epoch_end

        def remember_average() -> None:
            averages.append(trainer._best_ema)
            on_epoch_end()

        monkeypatch.setattr(trainer, "on_epoch_end", remember_average)
        trainer.run_training()
        assert averages == [None, None]  # forgotten when the second pass was switched on
        logged = trainer.logger.get_value("ema_fg_dice", step=None)
        assert logged[-1] == pytest.approx(trainer.history.rows[-1]["second_pass_dice"])
        best = torch.load(f"{trainer.output_folder}/checkpoint_best.pth", weights_only=False)
        assert best["current_epoch"] == 2
        assert best["network_weights"]["catenorm.seg_layers.active"] == 1

    def test_joint_updates_start_from_a_copy_of_the_first_pass_with_the_first_learning_rate(
        self, make_world: MakeWorld
    ) -> None:
        settings = {"catenorm": {"plain_fraction": 0.5, "updates": "joint", "stages": "low"}}
        world = make_world(norm="batch")
        trainer = tiny.ready(world.trainer("CateNormTrainer", settings))
        batch = tiny.batch_for(trainer, world.task)
        trainer.train_step(batch)
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        assert trainer.optimizer.param_groups[0]["lr"] == trainer.initial_lr
        first, second = trainer.network.eval()(batch["data"], mode="both")
        torch.testing.assert_close(second[0], first[0], atol=1e-4, rtol=0)

    def test_alternating_updates_start_from_random_layers_and_go_on_with_the_schedule(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("CateNormTrainer"))
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        assert trainer.optimizer.param_groups[0]["lr"] < trainer.initial_lr
        batch = tiny.batch_for(trainer, world.task)
        first, second = trainer.network.eval()(batch["data"], mode="both")
        assert (second[0] - first[0]).abs().max() > 0.01


class TestCheckpoints:
    def test_one_of_the_first_edition_loads_and_the_log_tells_what_it_lacks(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2, norm="batch")
        chosen = {"encoder_stages": [0], "plain_fraction": 0.0}
        trainer = world.trainer("CateNormTrainer", {"catenorm": chosen})
        trainer.run_training()
        path = Path(trainer.output_folder, "checkpoint_final.pth")
        checkpoint = torch.load(path, weights_only=False)
        weights = checkpoint["network_weights"]
        layers = [
            own for own in trainer.network.catenorm["seg_layers"] if isinstance(own, OwnStatistics)
        ]
        for number, _ in enumerate(layers, start=len(trainer.network._modified)):
            for key in [k for k in weights if k.startswith(f"catenorm.seg_layers.{number}.")]:
                del weights[key]
        settings = checkpoint["nnunet_ext"]["settings"]["catenorm"]
        settings |= {"initialisation": "default", "follow_stage_kernel": False}
        for name in ("stages", "prior", "prior_augmentation"):
            del settings[name]
        torch.save(checkpoint, path)

        continued = world.trainer("CateNormTrainer", {"catenorm": chosen}, continue_training=True)
        continued.initialize()
        continued.load_checkpoint(str(path))
        log = Path(continued.log_file).read_text()
        assert f"lacks running statistics of each pass for {len(layers)} layers" in log
        predictor = nnUNetPredictor(device=tiny.CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
        assert predictor.network.lacks_statistics == len(layers)


class TestScores:
    @pytest.mark.parametrize("predict", ["first", "second"])
    def test_nnunet_gets_the_scores_of_the_pass_that_answers(
        self, make_world: MakeWorld, predict: str
    ) -> None:
        chosen = {"catenorm": {"plain_fraction": 0.0, "predict": predict}}
        trainer = make_world(dim=2).trainer("CateNormTrainer", chosen)
        trainer.run_training()
        logged = trainer.logger.get_value("mean_fg_dice", step=-1)
        scores = trainer.history.rows[-1]
        assert logged == pytest.approx(scores[f"{predict}_pass_dice"])
        assert scores["first_pass_dice"] != scores["second_pass_dice"]
        gain = scores["second_pass_dice"] - scores["uniform_prior_dice"]
        assert scores["prior_gain"] == pytest.approx(gain)

    def test_predicting_by_the_first_pass_costs_what_stock_does(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2)
        chosen = {"catenorm": {"plain_fraction": 0.0, "predict": "first"}}
        trainer = tiny.ready(world.trainer("CateNormTrainer", chosen))
        runs = []
        for module in trainer.network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *_: runs.append(1))
        trainer.network(world.task.images())
        stock = [m for m in world.task.unet().modules() if isinstance(m, nn.Conv2d)]
        assert len(runs) == len(stock)

    @pytest.mark.parametrize("regions", [False, True])
    def test_other_priors_know_nothing_another_image_or_the_labels(
        self, make_world: MakeWorld, regions: bool
    ) -> None:
        world = make_world(regions=regions, ignore=True)
        trainer = world.trainer("CateNormTrainer")
        trainer.initialize()
        batch = tiny.batch_for(trainer, world.task)
        heads = world.task.heads
        prior = torch.rand(2, heads, *world.task.patch_size)
        others = other_priors(prior, batch["target"], trainer.label_manager, True)
        assert (others["uniform"] == (0.5 if regions else 1 / heads)).all()
        assert torch.equal(others["foreign"], prior.flip(0))
        target = batch["target"][0]
        ignored = target[:, -1] > 0 if regions else target[:, 0] == tiny.IGNORE
        for channel in range(heads):
            right = target[:, channel] > 0 if regions else target[:, 0] == channel
            true = others["true"][:, channel]
            assert torch.equal(true[~ignored], right[~ignored].float())
            assert torch.equal(true[ignored], prior[:, channel][ignored])


class TestCascade:
    CHOSEN: ClassVar[dict[str, Any]] = {"catenorm": {"prior": "previous_stage"}}

    def test_training_and_prediction_take_one_pass_under_the_previous_stage(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(cascade=True)
        trainer = world.trainer("CateNormTrainer", self.CHOSEN)
        trainer.run_training()
        plain, conditioned = trainer.history.rows
        assert plain.keys() == {"epoch", "first_pass"}
        scores = {"uniform_prior_dice", "foreign_prior_dice", "true_prior_dice", "prior_gain"}
        assert conditioned.keys() == {"epoch", "conditioned_pass", *scores}
        predictor = contract.load_predictor(
            contract.Training(
                contract.Recipe("CateNormTrainer", self.CHOSEN),
                world,
                trainer,
                {},
                Path(trainer.output_folder),
            )
        )
        network = predictor.network.eval()
        runs = []
        network.encoder.stages[0].register_forward_hook(lambda *_: runs.append(1))
        x = world.task.images()
        x[:, 1:] = (x[:, 1:] > 1).float()
        with torch.no_grad():
            answer = network(x)
            assert len(runs) == 1
            previous = x[:, 1:]
            prior = torch.cat([1 - previous.sum(1, keepdim=True), previous], 1)
            assert torch.equal(answer, network(x, prior=prior, mode="second"))
            assert not torch.equal(answer, network(x, mode="first"))
        assert torch.equal(answer, contract.evaluate(trainer, x))

    def test_it_starts_as_a_copy_of_a_stock_cascade_with_the_first_learning_rate(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2, cascade=True)
        trainer = tiny.ready(world.trainer("CateNormTrainer", self.CHOSEN))
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        assert trainer.optimizer.param_groups[0]["lr"] == trainer.initial_lr
        x = world.task.images()
        conditioned, plain = trainer.network(x), trainer.network(x, mode="first")
        torch.testing.assert_close(conditioned, plain, atol=1e-4, rtol=0)

    def test_of_regions_the_labels_are_the_prior(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2, cascade=True, regions=True)
        trainer = world.trainer("CateNormTrainer", self.CHOSEN)
        trainer.run_training()
        scores = trainer.history.rows[-1]
        assert "prior_gain" in scores
        assert "true_prior_dice" not in scores  # labels are not among the targets

    def test_a_configuration_without_previous_stage_is_refused(self, make_world: MakeWorld) -> None:
        with pytest.raises(
            SettingsError, match=r"has no previous stage\. .* set it in 3d_cascade_fullres"
        ) as error:
            make_world().trainer("CateNormTrainer", self.CHOSEN)
        assert '"tiny"' in str(error.value)


class TestNetworkOfTheRecipe:
    def test_regions_tell_the_network_to_use_a_sigmoid(self, make_world: MakeWorld) -> None:
        trainer = tiny.ready(make_world(regions=True).trainer("CateNormTrainer", NO_PLAIN_PHASE))
        assert trainer.network.state_dict()["catenorm.seg_layers.regions"] == 1

    @pytest.mark.parametrize("norm", ["batch", "instance"])
    def test_the_normalisation_can_be_chosen_against_the_plan(
        self, make_world: MakeWorld, norm: str
    ) -> None:
        planned = {"batch": "instance", "instance": "batch"}[norm]
        world = make_world(dim=2, norm=planned)
        trainer = tiny.ready(world.trainer("CateNormTrainer", {"catenorm": {"norm": norm}}))
        kinds = {type(m).__name__ for m in trainer.network.modules() if "Norm2d" in str(type(m))}
        assert kinds == {{"batch": "BatchNorm2d", "instance": "InstanceNorm2d"}[norm]}

    def test_prediction_rebuilds_the_network_with_the_settings_of_training(
        self, make_world: MakeWorld
    ) -> None:
        chosen = {"reduction": 4, "decoder_stages": [0], "norm": "batch", "predict": "first"}
        trainer = make_world(dim=2).trainer("CateNormTrainer", {"catenorm": chosen})
        trainer.run_training()
        predictor = nnUNetPredictor(device=tiny.CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
        assert isinstance(predictor.network, CateNormUNet)
        assert predictor.network.active
        assert predictor.network.predict == "first"
        assert tiny.same(predictor.network.state_dict(), trainer.network.state_dict())

    def test_mirrored_images_give_mirrored_logits_under_full_mirroring(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world()
        trainer = tiny.ready(world.trainer("CateNormTrainer", NO_PLAIN_PHASE))
        trainer.set_deep_supervision_enabled(False)
        trainer.network.eval()
        predictor = nnUNetPredictor(device=tiny.CPU, allow_tqdm=False)
        predictor.manual_initialization(
            trainer.network,
            trainer.plans_manager,
            trainer.configuration_manager,
            None,
            trainer.dataset_json,
            "CateNormTrainer",
            (0, 1, 2),
        )
        # nnU-Net's own routine for one tile; whole volumes are stored in half precision
        image = world.task.images(batch_size=1)
        with torch.no_grad():
            logits, mirrored = (
                predictor._internal_maybe_mirror_and_predict(each)
                for each in (image, image.flip(3))
            )
        torch.testing.assert_close(mirrored, logits.flip(3), atol=1e-4, rtol=1e-4)
