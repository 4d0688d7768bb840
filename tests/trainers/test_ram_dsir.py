"""RAM-DSIR's recipe; numbers in brackets are the checks of the method's specification."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from nnunet_ext._common.errors import CheckpointError, SettingsError, UserError
from nnunet_ext.augmentation import amplitude_mixup, gin
from nnunet_ext.augmentation.amplitude_mixup import StyleBank, low_frequencies
from nnunet_ext.losses import RestorationLoss, SymmetricKLConsistency
from nnunet_ext.networks import RestorationDecoder
from nnunet_ext.networks.ram_dsir import return_features
from nnunet_ext.trainers import RAMDSIRTrainer, TopKSigmaTrainer, base, ram_dsir
from nnunet_ext.trainers.distributed import unwrap
from nnunet_ext.trainers.topk_sigma import TopKSigmaMixin
from tests import contract, tiny

MakeWorld = Callable[..., tiny.World]
NEUTRAL = {"max_ratio": 0.0, "consistency_weight": 0.0, "restoration_weight": 0.0}
ALWAYS = {"max_ratio": 1.0}

KINDS = pytest.mark.parametrize(
    "kind",
    [
        {"dim": 3},
        {"dim": 2, "norm": "batch", "regions": True},
        {"dim": 3, "residual": True, "anisotropic": True, "ignore": True, "channels": 2},
        {"dim": 2, "regions": True, "ignore": True, "deep_supervision": False},
        {"dim": 3, "cascade": True, "norm": "batch"},
    ],
    ids=["plain", "batch norm, regions", "residual, ignore", "one scale", "cascade"],
)


@pytest.fixture
def make_world(make_world: MakeWorld) -> MakeWorld:
    """Worlds whose batches hold both of two domains."""
    return partial(make_world, domains=("here", "there", "here", "there"))


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


def ready(world: tiny.World, trainer: Any = "RAMDSIRTrainer", **settings: Any) -> Any:
    return tiny.ready(world.trainer(trainer, {"ram_dsir": {"restoration": True} | settings}))


def losses_of(trainer: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = trainer.compute_losses(
        batch["data"], batch["target"], batch["keys"]
    )
    return losses


def acquaint(trainer: Any, batch: dict[str, Any]) -> None:
    """Let the bank meet a batch, so that every image of the next one finds a partner."""
    losses_of(trainer, batch)


class TestAgainstStock:
    @KINDS
    def test_neutral_settings_give_nnunets_loss(
        self, make_world: MakeWorld, kind: dict[str, Any]
    ) -> None:  # [11] [13]
        world = make_world(**kind)
        stock = tiny.ready(world.trainer("ExtensionTrainer"))
        ours = ready(world, **NEUTRAL)
        ours.network.load_state_dict(stock.network.state_dict(), strict=True)
        batch = tiny.batch_for(ours, world.task)
        expected = losses_of(stock, batch)["segmentation"]
        for _ in range(2):  # with an empty bank, and with one
            actual = sum(losses_of(ours, batch).values())
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)

    def test_everything_off_trains_as_stock_nnunet(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        off = {"view": "none", "consistency": False}
        results = []
        for trainer in (world.trainer(), world.trainer("RAMDSIRTrainer", {"ram_dsir": off})):
            tiny.ready(trainer).train_step(tiny.batch_for(trainer, world.task))
            results.append(trainer.network.state_dict())
        assert tiny.same(*results)

    @KINDS
    def test_evaluation_is_that_of_the_plain_network(
        self, make_world: MakeWorld, kind: dict[str, Any]
    ) -> None:  # [12]
        world = make_world(**kind)
        trainer = ready(world)
        trainer.train_step(tiny.batch_for(trainer, world.task))
        plain = world.task.unet()
        plain.load_state_dict(trainer.network.state_dict(), strict=True)
        contract.without_deep_supervision(plain.eval())
        images = world.task.images()
        assert torch.equal(contract.evaluate(trainer, images), plain(images))
        assert type(trainer.network) is type(plain)

    def test_what_restores_is_saved_apart_from_the_network(self, make_world: MakeWorld) -> None:
        settings = {"ram_dsir": {"restoration": True}}
        trainer = make_world(dim=2).trainer("RAMDSIRTrainer", settings)  # [12]
        trainer.run_training()
        saved = contract.load(Path(trainer.output_folder, "checkpoint_final.pth"))
        assert not any("restoration" in name for name in saved["network_weights"])
        assert saved["nnunet_ext"]["domains"] == ["here", "there"]
        restored = saved["nnunet_ext"]["auxiliary"]["restoration"]
        assert tiny.same(restored, trainer.auxiliary["restoration"].state_dict())


class TestViews:
    @pytest.mark.parametrize("norm", ["instance", "batch"])
    def test_the_network_sees_each_view_as_if_alone(
        self, make_world: MakeWorld, norm: str
    ) -> None:  # [11]
        world = make_world(dim=2, norm=norm)
        trainer = ready(world)
        trainer.runs_batches_apart = norm == "batch"  # as on a GPU
        views = [world.task.images(seed=0), world.task.images(seed=1) * 3 + 1]
        together = trainer.answers(trainer.network, views)
        apart = [trainer.network(view) for view in views]
        for (scales, features), (other_scales, other_features) in zip(together, apart, strict=True):
            for one, other in zip(
                [*scales, features], [*other_scales, other_features], strict=True
            ):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_running_statistics_are_those_of_the_images_as_they_are(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2, norm="batch")
        trainer = ready(world, view="ram+gin")
        alone = copy.deepcopy(trainer.network)
        batch = tiny.batch_for(trainer, world.task)
        for _ in range(3):
            losses_of(trainer, batch)
            alone(batch["data"])
        expected = tiny.running_statistics(alone)
        assert expected
        assert tiny.same(tiny.running_statistics(trainer.network), expected)

    def test_a_view_alone_is_augmentation(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2, norm="batch")
        trainer = ready(world, view="gin", original=False, consistency=False, restoration=False)
        batch = tiny.batch_for(trainer, world.task)
        state = trainer._generator.get_state()
        expected = gin(batch["data"], trainer._generator)
        trainer._generator.set_state(state)
        seen = []
        trainer.network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        assert losses_of(trainer, batch).keys() == {"mixed"}
        assert len(seen) == 1
        assert torch.equal(seen[0], expected)

    def test_losses_are_those_of_the_parts_by_hand(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2, ignore=True)
        trainer = ready(world, consistency_weight=0.7, restoration_weight=0.3, intensity_range=2.0)
        batch = tiny.batch_for(trainer, world.task)
        acquaint(trainer, batch)
        seen = []
        network = trainer.network
        handle = network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        assert trainer.runs_batches_apart  # on a CPU
        losses = losses_of(trainer, batch)
        handle.remove()
        original, mixed = seen
        assert torch.equal(original, batch["data"])
        assert not torch.equal(mixed, original)

        first, _ = network(original)
        second, features = network(mixed)
        valid = batch["target"][0][:, 0] != tiny.IGNORE
        restored = trainer.auxiliary["restoration"](features, torch.tensor([0, 1]), (16, 16))
        assert restored.shape == (2, 1, 8, 8)
        target = avg_pool2d(original.div(2).clamp(-1, 1), 2)
        expected = {
            "original": trainer.loss(first, batch["target"]) / 2,
            "mixed": trainer.loss(second, batch["target"]) / 2,
            "consistency": 0.35 * SymmetricKLConsistency()(first[0], second[0], valid),
            "restoration": 0.15 * 2 * (restored - target).square().mean(),
        }
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-5, msg=name)

    def test_views_are_averaged_under_sgd_and_summed_under_adam(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2)
        values = []
        for optimizer in ("sgd", "adam"):
            torch.manual_seed(0)
            settings = {"ram_dsir": {"max_ratio": 0.0}, "optimizer": optimizer}
            trainer = tiny.ready(world.trainer("RAMDSIRTrainer", settings))
            losses = losses_of(trainer, tiny.batch_for(trainer, world.task))
            values.append({name: loss.item() for name, loss in losses.items()})
        averaged, summed = values
        assert summed == pytest.approx({name: 2 * value for name, value in averaged.items()})

    @pytest.mark.parametrize(
        ("settings", "parts"),
        [
            ({}, {"original", "mixed", "consistency", "restoration"}),
            ({"consistency": False, "restoration": False}, {"original", "mixed"}),
            ({"restoration": False}, {"original", "mixed", "consistency"}),
            ({"consistency": False}, {"original", "mixed", "restoration"}),
            ({"view": "none", "consistency": False}, {"original", "restoration"}),
            ({"view": "gin", "restoration": False}, {"original", "mixed", "consistency"}),
            (
                {"view": "ram+gin", "original": False, "consistency": False},
                {"mixed", "restoration"},
            ),
        ],
        ids=[
            "full",
            "RAM",
            "RAM and consistency",
            "RAM and restoration",
            "restoration",
            "GIN",
            "one view",
        ],
    )
    @pytest.mark.parametrize("norm", ["instance", "batch"])
    def test_each_part_can_be_switched_off(
        self, make_world: MakeWorld, settings: dict[str, Any], parts: set[str], norm: str
    ) -> None:
        world = make_world(dim=2, norm=norm)
        trainer = ready(world, **settings)
        outputs = trainer.train_step(tiny.batch_for(trainer, world.task))
        assert outputs["parts"].keys() == parts
        assert bool(trainer.auxiliary) is ("restoration" in parts)

    def test_what_lies_under_the_ignore_mask_changes_no_consistency(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2, regions=True, ignore=True)
        trainer = ready(world)
        batch = tiny.batch_for(trainer, world.task)
        valid = trainer._valid(batch["target"])
        assert torch.equal(valid, batch["target"][0][:, -1] == 0)
        assert not valid.all()


class TestMixing:
    def test_images_get_the_style_of_the_other_domain(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = make_world(dim=2)
        trainer = ready(world, band=0.3)
        ratios = torch.tensor([0.3, 0.9])
        monkeypatch.setattr(ram_dsir, "draw_ratios", lambda *_: ratios)
        images, partner = world.task.images(), 1 + 2 * world.task.images(1, seed=1)
        trainer._bank.push(low_frequencies(partner, 0.3).style, [1])
        expected = amplitude_mixup(images, partner.expand_as(images), ratios, 0.3)
        assert torch.equal(trainer._mix(images, [0, 0]), expected)

    def test_without_partner_or_weight_of_it_images_stay(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)  # [8]
        trainer = ready(world)
        images = world.task.images()
        for _ in range(3):
            assert torch.equal(trainer._mix(images, [0, 0]), images)
        weightless = ready(world, max_ratio=0.0)
        for domains in ([0, 1], [1, 0]):
            assert torch.equal(weightless._mix(images, domains), images)

    def test_a_cascades_segmentations_are_neither_mixed_nor_restored(
        self, make_world: MakeWorld
    ) -> None:  # [8]
        world = make_world(cascade=True, channels=2)
        trainer = ready(world)
        batch = tiny.batch_for(trainer, world.task)
        acquaint(trainer, batch)
        mixed = torch.stack([trainer._mix(batch["data"], [0, 1]) for _ in range(5)])
        assert torch.equal(mixed[:, :, 2:], batch["data"][:, 2:].expand(5, -1, -1, -1, -1, -1))
        for channel in (0, 1):
            assert not torch.equal(
                mixed[:, :, channel], mixed[:1, :, channel].expand(5, 2, *[16] * 3)
            )
        assert trainer.auxiliary["restoration"].output.out_channels == 2

    def test_background_outside_the_mask_stays_zero(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = make_world(dim=2, channels=2)
        trainer = ready(world, **ALWAYS)
        monkeypatch.setitem(
            trainer.configuration_manager.configuration, "use_mask_for_norm", [False, True]
        )
        images = world.task.images()
        images[:, :, :5] = 0
        acquaint(trainer, tiny.batch_for(trainer, world.task))
        mixed = torch.stack([trainer._mix(images, [0, 1]) for _ in range(5)])
        assert (mixed[:, :, 1, :5] == 0).all()
        assert (mixed[:, :, 0, :5] != 0).any()
        assert not torch.equal(mixed[:, :, 1, 5:], images[:, 1, 5:].expand(5, -1, -1, -1))

    @pytest.mark.parametrize(("patch", "thick"), [([16] * 3, False), ([4, 16, 16], True)])
    def test_slices_are_thick_where_nnunet_augments_slices(
        self,
        make_world: MakeWorld,
        patch: list[int],
        thick: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trainer = make_world().trainer("RAMDSIRTrainer")
        monkeypatch.setitem(trainer.configuration_manager.configuration, "patch_size", patch)
        dummy_2d = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1]
        assert trainer.has_thick_slices == dummy_2d == thick

    def test_mixing_leaves_thick_slices_to_themselves(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = make_world()
        trainer = ready(world, **ALWAYS)
        monkeypatch.setitem(trainer.configuration_manager.configuration, "patch_size", [4, 16, 16])
        images = world.task.images()
        images[:, :, 3] = 0
        acquaint(trainer, tiny.batch_for(trainer, world.task))
        mixed = torch.stack([trainer._mix(images, [0, 1]) for _ in range(5)])
        empty = mixed[:, :, :, 3].flatten(3)
        assert (empty == empty[..., :1]).all()  # only its mean is mixed
        assert (empty != 0).any()

    def test_it_is_computed_in_single_precision_under_autocast(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = ready(world, **ALWAYS)
        batch = tiny.batch_for(trainer, world.task)
        acquaint(trainer, batch)
        bank, state = pickle.dumps(trainer._bank), trainer._generator.get_state()
        expected = trainer._mix(batch["data"], [0, 1])
        trainer._bank = pickle.loads(bank)
        trainer._generator.set_state(state)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(trainer._mix(batch["data"], [0, 1]), expected)
            losses = losses_of(trainer, batch)
        assert losses["consistency"].dtype == losses["restoration"].dtype == torch.float32
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()

    def test_a_seed_makes_draws_repeat_and_no_seed_does_not(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        drawn: dict[Any, list[Tensor]] = {}
        for seed in (1, 1, None, None):
            trainer = tiny.ready(world.trainer("RAMDSIRTrainer", {"seed": seed}))
            batch = tiny.batch_for(trainer, world.task)
            acquaint(trainer, batch)
            views = [trainer._mix(batch["data"], [0, 1]) for _ in range(5)]
            drawn.setdefault(seed, []).append(torch.stack(views))
        assert torch.equal(*drawn[1])
        assert not torch.equal(*drawn[None])


class TestLearning:
    @KINDS
    def test_ten_steps_on_one_batch_reduce_the_loss(
        self, make_world: MakeWorld, kind: dict[str, Any]
    ) -> None:  # [14]
        world = make_world(**kind)
        trainer = ready(world)
        batch = tiny.batch_for(trainer, world.task)
        acquaint(trainer, batch)
        steps = [trainer.train_step(batch) for _ in range(11)]
        totals = [sum(step["parts"].values()) for step in steps]
        assert totals[-1] < totals[0]
        assert steps[-1]["parts"]["restoration"] < steps[0]["parts"]["restoration"]

    def test_restoration_reaches_encoder_and_its_decoder_only(self, make_world: MakeWorld) -> None:
        world = make_world()  # [10]
        trainer = ready(world)
        losses_of(trainer, tiny.batch_for(trainer, world.task))["restoration"].backward()
        network = trainer.network
        encoder = {id(parameter) for parameter in network.encoder.parameters()}
        moved = {id(p) for p in network.parameters() if p.grad is not None and p.grad.any()}
        assert moved
        assert moved <= encoder
        assert all(p.grad is not None for p in trainer.auxiliary.parameters())

    @pytest.mark.parametrize(
        ("settings", "factor"),
        [
            ({}, 1.0),
            ({"optimizer": "adam", "ram_dsir": {"restoration": True}}, 0.5),
            ({"optimizer": "adam"}, 1.0),
            ({"ram_dsir": {"encoder_lr_factor": 0.25}}, 0.25),
        ],
    )
    def test_the_encoder_may_learn_at_another_rate(
        self, make_world: MakeWorld, settings: dict[str, Any], factor: float
    ) -> None:
        trainer = tiny.ready(make_world(dim=2).trainer("RAMDSIRTrainer", settings))
        rates: dict[int, float] = {}
        for epoch in (0, 1):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            groups = trainer.optimizer.param_groups
            rates = {id(p): group["lr"] for group in groups for p in group["params"]}
            assert len(rates) == sum(len(group["params"]) for group in groups)
        everything = [*trainer.network.parameters(), *trainer.auxiliary.parameters()]
        assert rates.keys() == {id(p) for p in everything}
        rate = trainer.lr_scheduler.get_last_lr()[0]
        encoder = {id(p) for p in trainer.network.encoder.parameters()}
        for parameter, each in rates.items():
            assert each == pytest.approx(rate * (factor if parameter in encoder else 1))

    def test_another_rate_of_the_encoder_survives_a_continuation(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2)
        settings = {"optimizer": "adam", "save_every": 1, "ram_dsir": {"restoration": True}}
        trainer = world.trainer("RAMDSIRTrainer", settings)
        trainer.run_training()
        other = world.trainer("RAMDSIRTrainer", settings, continue_training=True)
        other.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
        assert tiny.same(other.optimizer.state_dict(), trainer.optimizer.state_dict())

    def test_style_augmentation_can_be_left_to_the_mixing(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        names = []
        for kept in (True, False):
            trainer = ready(world, style_augmentation=kept)
            transforms = trainer.get_dataloaders()[0].data_loader.transforms.transforms
            names.append([type(getattr(t, "transform", t)).__name__ for t in transforms])
        removed = {"MultiplicativeBrightnessTransform", "ContrastTransform", "GammaTransform"}
        assert removed <= set(names[0])
        assert names[1] == [name for name in names[0] if name not in removed]

    def test_it_trains_compiled(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = ready(world)
        batch = tiny.batch_for(trainer, world.task)
        torch._dynamo.reset()
        expected = losses_of(trainer, batch)
        trainer.network = torch.compile(trainer.network, backend="eager", fullgraph=True)
        trainer.auxiliary["restoration"].compile(backend="eager", fullgraph=True)
        trainer._bank = StyleBank(2)  # as before
        compiled = losses_of(trainer, batch)
        assert expected.keys() == compiled.keys()
        for name, loss in compiled.items():
            torch.testing.assert_close(loss, expected[name], msg=name)
        trainer.train_step(batch)


class TestLog:
    def test_every_epoch_tells_what_was_mixed_and_restored(self, make_world: MakeWorld) -> None:
        settings = {"num_iterations_per_epoch": 6, "ram_dsir": {"restoration": True}}
        trainer = make_world(dim=2).trainer("RAMDSIRTrainer", settings)
        trainer.run_training()
        for row in trainer.history.rows:
            assert 0 < row["mixed_share"] < 1
            assert 0 < row["restoration_here"] < 4
            assert 0 < row["restoration_there"] < 4


class TestCheckpoint:
    def test_styles_outlive_epochs_and_continuations(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = world.trainer("RAMDSIRTrainer", {"save_every": 1})
        trainer.run_training()
        images = trainer.num_epochs * trainer.num_iterations_per_epoch * trainer.batch_size
        assert len(trainer._bank) == images
        other = world.trainer("RAMDSIRTrainer", {"save_every": 1}, continue_training=True)
        other.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
        assert tiny.same(other._bank.styles, trainer._bank.styles)

    def test_other_domains_are_refused(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = ready(world)
        path = Path(trainer.output_folder, "checkpoint_latest.pth")
        trainer.on_train_epoch_end([trainer.train_step(tiny.batch_for(trainer, world.task))])
        trainer.logger.log("ema_fg_dice", 0.5, 0)
        trainer.save_checkpoint(str(path))
        other = world.trainer("RAMDSIRTrainer", {"ram_dsir": {"restoration": True}})
        other.domains = {case: f"site {case}" for case in tiny.CASES}
        with pytest.raises(CheckpointError, match="trained with the domains here, there, but"):
            other.load_checkpoint(str(path))

    def test_weights_of_stock_nnunet_continue(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        ours = ready(world, restoration=False)
        stock = world.trainer()
        stock.run_training()
        ours.load_checkpoint(str(Path(stock.output_folder, "checkpoint_final.pth")))
        assert tiny.same(ours.network.state_dict(), stock.network.state_dict())


class TestCombination:
    def test_the_top_k_sigma_loss_envelopes_both_views(self, make_world: MakeWorld) -> None:
        class Both(TopKSigmaMixin, RAMDSIRTrainer):
            pass

        world = make_world(dim=2)
        envelope = {"topk_sigma": {"warm_up": 0.0, "ramp": 0.0, "sigma": 0.2, "top_fraction": 0.5}}
        neutral = {"ram_dsir": NEUTRAL}
        both = tiny.ready(world.trainer(Both, envelope | neutral))
        alone = tiny.ready(world.trainer(TopKSigmaTrainer, envelope))
        both.network.load_state_dict(alone.network.state_dict())
        batch = tiny.batch_for(both, world.task)
        expected = losses_of(alone, batch)["segmentation"]
        losses = losses_of(both, batch)
        torch.testing.assert_close(losses["original"] + losses["mixed"], expected)
        both.train_step(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"band": 0.6}, '"band" is 0.6'),
        ({"veiw": "ram"}, 'unknown setting "veiw". Did you mean view'),
        ({"max_ratio": 1.5}, '"max_ratio" is 1.5'),
        ({"intensity_range": 0}, '"intensity_range" is 0'),
        ({"encoder_lr_factor": 2.0}, '"encoder_lr_factor" is 2.0'),
        ({"view": "none"}, '"consistency" compares the "original" with a "view" of it'),
        ({"original": False}, '"consistency" compares the "original" with a "view" of it'),
        (
            {"view": "none", "original": False, "consistency": False},
            'without "view" and "original" nothing is left to train with',
        ),
        ({"ram": False}, '"ram" is no longer a setting'),
    ],
)
def test_settings_out_of_range_are_refused(
    make_world: MakeWorld, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        make_world().trainer("RAMDSIRTrainer", {"ram_dsir": settings})


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ((), "RAMDSIRTrainer needs the domain of every training case"),
        (("A", None, "B", "B"), r"1 case.*\(case_1\)"),
        (("A", "A", "A", "B"), "at least 2 domains"),
    ],
)
def test_missing_domains_are_refused_before_training(
    make_world: MakeWorld, domains: tuple[str | None, ...], message: str
) -> None:  # [13]
    with pytest.raises(UserError, match=message):
        make_world(dim=2, domains=domains).trainer("RAMDSIRTrainer").run_training()


# --------------------------------------------------------------------------- several processes

TASK = tiny.Task(dim=2)


def _gradients(
    images: Tensor, domains: list[int], apart: bool, rank: int | None = None
) -> list[Any]:
    """Gradients of two views' losses; the views do not depend on the rank."""
    torch.manual_seed(0)
    unet: Any = TASK.unet()
    decoder = RestorationDecoder(unet.encoder, 1, 2)
    return_features(unet, decoder.stage)
    trainer: Any = object.__new__(RAMDSIRTrainer)  # its constructor insists on CUDA under DDP
    trainer.local_rank = rank
    trainer.network = unet
    trainer.auxiliary = nn.ModuleDict({"restoration": decoder})
    trainer.auxiliary_optimizers = {}
    if rank is not None:
        trainer.network = tiny.OnCpu(unet, [rank])  # nnU-Net's wrapper
        trainer._share_auxiliary()
    trainer.runs_batches_apart = apart
    trainer._restoration, trainer._errors = RestorationLoss(), torch.zeros(2, 2)
    outputs, features = zip(
        *trainer.answers(trainer.network, [images, images.flip(-1) * 2]), strict=True
    )
    first, second = (scales[0] for scales in outputs)
    # every parameter needs gradient here, which deep supervision's lowest scale gives
    loss = sum(scale.square().mean() for scales in outputs for scale in scales)
    loss = loss + SymmetricKLConsistency()(first, second)
    loss = loss + trainer._restore(features[-1], images, domains)
    loss.backward()
    modules = (unwrap(trainer.network), unwrap(trainer.auxiliary["restoration"]))
    return [p.grad for module in modules for p in module.parameters()]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    setattr(base, "DistributedDataParallel", tiny.OnCpu)  # noqa: B010
    images = TASK.images(4).split(2)[rank]
    gradients = [_gradients(images, [0, 1], apart, rank) for apart in (False, True)]
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(gradients))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]
    assert tiny.same(*ranks)
    for apart, gradients in zip((False, True), ranks[0], strict=True):
        expected = _gradients(TASK.images(4), [0, 1, 0, 1], apart)
        torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)


def test_banks_of_unequal_domains_give_every_domain_the_same_chance() -> None:
    bank = StyleBank(3)
    images = torch.arange(10.0).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    bank.push(low_frequencies(images).style, [1] * 9 + [2])
    generator = torch.Generator().manual_seed(0)
    style = low_frequencies(images[:1]).style
    drawn = [float(bank.draw(style, [0], generator)[0].low) for _ in range(400)]
    assert sum(value == 9 for value in drawn) == pytest.approx(200, abs=40)
