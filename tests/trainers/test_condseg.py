"""ConDSeg's recipe: two phases in one training, and what each of them learns from."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks import ConDSegNet
from nnunet_ext.trainers import ConDSegTrainer, condseg
from nnunet_ext.trainers.topk_sigma import TopKSigmaMixin
from tests import tiny

MakeWorld = Callable[..., tiny.World]
FIRST = {"plain_view", "strong_view", "consistency"}
SECOND = {"segmentation", "foreground", "background", "complementary"}
FIGURES = {"uncertain_share", "auxiliary_share", "auxiliary_weight"}


def settings(**condseg_settings: Any) -> dict[str, Any]:
    return {"condseg": condseg_settings}


ENCODER = settings(first_phase=0.5)
"""Of two epochs the first trains the encoder."""
WHOLE = settings(first_phase=0.0)


def parts(trainer: Any, task: tiny.Task) -> dict[str, float]:
    found: dict[str, float] = trainer.train_step(tiny.batch_for(trainer, task))["parts"]
    return found


def changed(trainer: Any, act: Callable[[], object]) -> set[str]:
    """First part of the names of those weights that something changes."""
    named = dict(trainer.network.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    act()
    return {name.split(".")[0] for name, p in named.items() if not torch.equal(p, before[name])}


def stopped_after(epochs: int, trainer: Any) -> Callable[[], None]:
    """What a trainer does at the end of an epoch, but then it is stopped."""
    on_epoch_end: Callable[[], None] = trainer.on_epoch_end

    def stop() -> None:
        on_epoch_end()
        if trainer.current_epoch == epochs:
            raise KeyboardInterrupt

    return stop


class TestPhases:
    @pytest.mark.parametrize("decoder", ["condseg", pytest.param("plan", marks=pytest.mark.slow)])
    def test_epochs_report_the_losses_of_their_phase(
        self, make_world: MakeWorld, decoder: str
    ) -> None:
        chosen = {"num_epochs": 4, **settings(first_phase=0.5, decoder=decoder)}
        trainer = make_world(dim=2).trainer("ConDSegTrainer", chosen)
        trainer.run_training()
        names = [row.keys() - {"epoch"} for row in trainer.history.rows]
        second = {"segmentation"} if decoder == "plan" else SECOND | FIGURES
        assert names == [FIRST, FIRST, second, second]

    def test_each_phase_moves_what_it_is_for(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        assert changed(trainer, lambda: parts(trainer, world.task)) == {"encoder", "head"}
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        second = changed(trainer, lambda: parts(trainer, world.task))
        assert second == {"encoder", "head", "decoder"}

    @pytest.mark.parametrize("norm", ["instance", "batch"])
    def test_the_second_phase_begins_with_the_answer_of_the_first(
        self, make_world: MakeWorld, norm: str
    ) -> None:
        world = make_world(dim=2, norm=norm)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        for _ in range(3):
            parts(trainer, world.task)
        data = world.task.images()
        trainer.network.eval()
        with torch.no_grad():
            head = trainer.network(data, answer="head")
            torch.testing.assert_close(trainer.network(data), head, atol=1e-6, rtol=0)
        assert head.std() > 0.01

    def test_defaults_train_in_two_phases(self, make_world: MakeWorld) -> None:
        """Defect 4 of the authors' code: run as it is, it skips the first phase."""
        trainer = make_world(dim=2).trainer("ConDSegTrainer", {"num_epochs": 10})
        assert trainer.start_of("whole network") == 2

    def test_statistics_of_the_first_phase_are_kept(self, make_world: MakeWorld) -> None:
        """Defect 3 of the authors' code: it loses those of batch normalisation."""
        world = make_world(dim=2, norm="batch")
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        parts(trainer, world.task)
        buffers = [b.clone() for b in trainer.network.encoder.buffers()]
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        assert tiny.same(buffers, list(trainer.network.encoder.buffers()))
        assert any(b.is_floating_point() and (b != 0).all() for b in buffers)

    def test_momentum_of_the_first_phase_is_forgotten(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        parts(trainer, world.task)
        assert trainer.optimizer.state
        trainer.current_epoch = 1
        trainer.on_train_epoch_start()
        assert not trainer.optimizer.state

    def test_the_best_checkpoint_is_never_from_the_first_phase(self, make_world: MakeWorld) -> None:
        chosen = {"num_epochs": 2, "save_every": 1, **ENCODER}
        trainer = make_world(dim=2).trainer("ConDSegTrainer", chosen)
        best = Path(trainer.output_folder, "checkpoint_best.pth")
        seen = []
        on_epoch_end = trainer.on_epoch_end

        def look() -> None:
            on_epoch_end()
            seen.append(best.exists())

        trainer.on_epoch_end = look
        trainer.run_training()
        assert seen == [False, True]
        saved = torch.load(best, weights_only=False)
        assert saved["current_epoch"] == 2
        logged = trainer.logger.get_value("ema_fg_dice", step=None)
        assert logged[1] == trainer.logger.get_value("mean_fg_dice", step=None)[1]

    def test_a_training_that_is_shortened_past_the_change_of_phase_changes_it_at_once(
        self, make_world: MakeWorld
    ) -> None:
        world = make_world(dim=2)
        long = world.trainer("ConDSegTrainer", {"num_epochs": 8, "save_every": 1, **ENCODER})
        long.on_epoch_end = stopped_after(3, long)
        with pytest.raises(KeyboardInterrupt):
            long.run_training()
        short = world.trainer("ConDSegTrainer", {"num_epochs": 4, **ENCODER})
        latest = Path(long.output_folder, "checkpoint_latest.pth")
        short.load_checkpoint(str(latest))
        assert short.current_epoch == 3
        short.run_training()
        best = torch.load(Path(short.output_folder, "checkpoint_best.pth"), weights_only=False)
        assert best["current_epoch"] == 4
        logged = short.logger.get_value("ema_fg_dice", step=None)
        assert logged[3] == short.logger.get_value("mean_fg_dice", step=None)[3]

    def test_the_top_k_sigma_loss_serves_both_phases_of_the_planned_decoder(
        self, make_world: MakeWorld
    ) -> None:
        class Both(TopKSigmaMixin, ConDSegTrainer):
            pass

        world = make_world(dim=2)
        envelope = {"topk_sigma": {"warm_up": 0.0, "ramp": 0.0, "sigma": 0.2, "top_fraction": 0.5}}
        trainer = tiny.ready(
            world.trainer(Both, settings(first_phase=0.5, decoder="plan") | envelope)
        )
        assert trainer.enable_deep_supervision
        for epoch in (0, 1):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            parts(trainer, world.task)
            left_out, _ = trainer.loss.pop_observed()
            assert left_out.sum() > 0

    @pytest.mark.parametrize("decoder", ["condseg", "plan"])
    def test_the_first_phase_validates_the_light_head(
        self, make_world: MakeWorld, decoder: str
    ) -> None:
        world = make_world(dim=2)
        chosen = settings(first_phase=0.5, decoder=decoder)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", chosen))
        batch = tiny.batch_for(trainer, world.task)
        trainer.on_validation_epoch_start()
        asked = []
        trainer.network.register_forward_hook(lambda _, __, ___: asked.append("network"))
        trainer.network.decoder.register_forward_hook(lambda *_: asked.append("decoder"))
        scores = []
        for sign in (1, -1):
            with torch.no_grad():
                for parameter in trainer.network.head.parameters():
                    parameter.mul_(sign)
                scores.append(trainer.validation_step(copy.deepcopy(batch)))
        assert asked == ["network", "network"]
        assert not tiny.same(*scores)


class TestLearningRates:
    def test_the_encoder_keeps_a_share_throughout_the_second_phase(
        self, make_world: MakeWorld
    ) -> None:
        chosen = {"num_epochs": 20, "condseg": {"first_phase": 0.5, "encoder_lr_factor": 0.1}}
        trainer = make_world(dim=2).trainer("ConDSegTrainer", chosen)
        trainer.initialize()
        others, encoder = trainer.optimizer.param_groups
        assert len(encoder["params"]) == len(list(trainer.network.encoder.parameters()))
        for epoch in range(20):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            left = 1 - epoch % 10 / 10
            assert others["lr"] == pytest.approx(0.01 * left**0.9)
            factor = 0.1 if epoch >= 10 else 1.0
            assert encoder["lr"] == pytest.approx(factor * others["lr"])

    @pytest.mark.parametrize("chosen", [ENCODER, settings(consistency="off")])
    @pytest.mark.parametrize("pretrained", [False, True])
    def test_a_pretrained_encoder_alone_learns_more_slowly_by_itself(
        self, make_world: MakeWorld, chosen: dict[str, Any], pretrained: bool, tmp_path: Path
    ) -> None:
        world = make_world(dim=2)
        chosen = {"num_epochs": 2, "save_every": 1, **chosen}
        trainer = world.trainer("ConDSegTrainer", chosen)
        trainer.initialize()
        if pretrained:
            stock = world.trainer("ExtensionTrainer", {"seed": 1})
            stock.initialize()
            stock.save_checkpoint(str(tmp_path / "stock.pth"))
            load_pretrained_weights(trainer.network, str(tmp_path / "stock.pth"))
        trainer.on_epoch_end = stopped_after(1, trainer)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()
        going_on = world.trainer("ConDSegTrainer", chosen)
        going_on.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
        going_on.on_train_start()  # which finds other weights than the first, in either case
        going_on.on_train_epoch_start()
        others, encoder = going_on.optimizer.param_groups
        assert encoder["lr"] == pytest.approx((0.1 if pretrained else 1) * others["lr"])

    @pytest.mark.parametrize("chosen", [WHOLE, settings(consistency="off")])
    def test_without_a_first_phase_all_learn_alike(
        self, make_world: MakeWorld, chosen: dict[str, Any]
    ) -> None:
        trainer = make_world(dim=2).trainer("ConDSegTrainer", chosen)
        trainer.initialize()
        trainer.on_train_epoch_start()
        assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_every_parameter_is_optimised_once(self, make_world: MakeWorld, optimizer: str) -> None:
        chosen = {"optimizer": optimizer, **settings(decoder="plan")}
        trainer = make_world(dim=2).trainer("ConDSegTrainer", chosen)
        trainer.initialize()
        optimised = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
        expected = [*trainer.network.parameters(), *trainer.auxiliary.parameters()]
        assert sorted(optimised) == sorted(map(id, expected))


class TestSwitches:
    @pytest.mark.parametrize(
        ("consistency", "names"),
        [("on", FIRST), ("views", FIRST - {"consistency"}), ("off", {"segmentation"})],
    )
    def test_consistency(self, make_world: MakeWorld, consistency: str, names: set[str]) -> None:
        world = make_world(dim=2)
        chosen = settings(first_phase=0.5, consistency=consistency, decoder="plan")
        trainer = tiny.ready(world.trainer("ConDSegTrainer", chosen))
        assert parts(trainer, world.task).keys() == names
        assert ("seg_layers" in trainer.network.head) == (consistency != "off")

    def test_without_both_halves_it_is_stock_nnunet(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        chosen = settings(consistency="off", decoder="plan")
        results: list[Any] = []
        for name, mine in (("ConDSegTrainer", chosen), ("ExtensionTrainer", {})):
            trainer = tiny.ready(world.trainer(name, mine))
            found = parts(trainer, world.task)
            results.append((found, trainer.network.state_dict()))
        assert results[0][0].keys() == results[1][0].keys()
        assert results[0][0]["segmentation"] == pytest.approx(results[1][0]["segmentation"])
        for name, weights in results[1][1].items():
            torch.testing.assert_close(results[0][1][name], weights)

    @pytest.mark.parametrize(
        "decoder",
        ["condseg", *(pytest.param(d, marks=pytest.mark.slow) for d in ("alone", "head", "plan"))],
    )
    def test_prediction_rebuilds_the_network_from_the_plans(
        self, make_world: MakeWorld, decoder: str
    ) -> None:
        chosen = settings(first_phase=0.5, decoder=decoder, width=6, maps="classes")
        trainer = make_world(dim=2).trainer("ConDSegTrainer", chosen)
        trainer.run_training()
        predictor = nnUNetPredictor(device=tiny.CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
        assert type(predictor.network) is ConDSegNet
        assert tiny.same(predictor.network.state_dict(), trainer.network.state_dict())


class TestLosses:
    def test_views_share_the_place_of_every_voxel(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without change of appearance both views are segmented alike."""
        monkeypatch.setattr(condseg, "strong_view", lambda images, **_: images)
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        found = parts(trainer, world.task)
        assert found["plain_view"] == pytest.approx(found["strong_view"], rel=1e-5)

    @pytest.mark.parametrize("chosen", [ENCODER, WHOLE], ids=["encoder", "whole"])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_what_lies_under_the_ignore_mask_changes_nothing(
        self, make_world: MakeWorld, chosen: dict[str, Any], dim: int
    ) -> None:
        world = make_world(dim=dim, regions=True, ignore=True)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", chosen))
        batch = tiny.batch_for(trainer, world.task)
        other = batch["target"].clone()
        regions, ignored = other[:, :-1], other[:, -1:].bool()
        regions[:] = torch.where(ignored, 1 - regions, regions)
        assert not torch.equal(other, batch["target"])
        results = []
        for target in (batch["target"], other):
            torch.manual_seed(5)
            losses = trainer.compute_losses(batch["data"], target, batch["keys"])
            results.append({name: loss.detach() for name, loss in losses.items()})
        assert tiny.same(*results)

    @pytest.mark.parametrize("chosen", [ENCODER, WHOLE], ids=["encoder", "whole"])
    @pytest.mark.parametrize("label", [0, tiny.IGNORE], ids=["background", "ignored"])
    def test_patches_without_foreground_or_without_labels(
        self, make_world: MakeWorld, chosen: dict[str, Any], label: int
    ) -> None:
        world = make_world(dim=2, ignore=True)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", chosen))
        batch = tiny.batch_for(trainer, world.task)
        batch["target"].fill_(label)
        trainer.train_step(batch)  # which refuses losses that are not finite
        assert all(p.isfinite().all() for p in trainer.network.parameters())

    @pytest.mark.parametrize("chosen", [ENCODER, WHOLE], ids=["encoder", "whole"])
    def test_twenty_steps_on_one_batch_reduce_the_loss(
        self, make_world: MakeWorld, chosen: dict[str, Any]
    ) -> None:
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", chosen))
        batch = tiny.batch_for(trainer, world.task)
        batch["target"] = (batch["data"] > 0).long()
        losses = [float(trainer.train_step(batch)["loss"]) for _ in range(20)]
        assert sum(losses[-3:]) < sum(losses[:3])

    def test_the_weights_of_both_maps_add_up_to_two(self, make_world: MakeWorld) -> None:
        world = make_world(dim=2)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", WHOLE))
        batch = tiny.batch_for(trainer, world.task)
        losses = trainer.compute_losses(batch["data"], batch["target"], batch["keys"])
        answer = trainer.network(batch["data"], answer="decoupled")
        found = trainer._decoupling(answer.maps, trainer._any_foreground(batch["target"]))
        ratio = found.foreground_weight / found.background_weight
        weights = [losses[name] / getattr(found, name) for name in ("foreground", "background")]
        torch.testing.assert_close(
            weights[0] + weights[1], torch.tensor(2.0 * trainer._auxiliary_weight)
        )
        torch.testing.assert_close(weights[0] / weights[1], ratio)

    @pytest.mark.parametrize("maps", ["classes", "merged"])
    @pytest.mark.parametrize("loud", [False, True])
    def test_maps_move_the_encoder_no_more_than_the_segmentation_does(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, maps: str, loud: bool
    ) -> None:
        world = make_world(dim=2)
        monkeypatch.setattr(condseg, "AUXILIARY_WEIGHT", 200.0 if loud else 0.02)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", settings(first_phase=0.0, maps=maps)))
        batch = tiny.batch_for(trainer, world.task)
        trainer.compute_losses(batch["data"], batch["target"], batch["keys"])
        features = trainer.network.encoder(batch["data"])
        answer = trainer.network.answer(features, "decoupled")
        segmentation, parts_of_maps, _ = trainer._decoupled(answer, batch["target"])
        maps_loss = trainer._auxiliary_weight * torch.stack(list(parts_of_maps.values())).sum()

        def share_of(places: list[Tensor]) -> float:
            norms = [
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(loss, places, retain_graph=True)]
                ).norm()
                for loss in (maps_loss, segmentation)
            ]
            return float(norms[0] / norms[1])

        share = share_of(features[-1:])
        assert share_of(list(trainer.network.encoder.parameters())) <= share
        assert trainer._figures["auxiliary_share"] == pytest.approx(share, rel=1e-3)
        if loud:
            assert share == pytest.approx(1, rel=1e-3)
            assert trainer._figures["auxiliary_weight"] < 1
        else:
            assert share < 1
            assert trainer._figures["auxiliary_weight"] == 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("chosen", [ENCODER, WHOLE], ids=["encoder", "whole"])
    def test_mixed_precision(
        self, make_world: MakeWorld, dtype: torch.dtype, chosen: dict[str, Any]
    ) -> None:
        world = make_world(dim=2, channels=2)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", chosen))
        trainer.autocast = lambda: torch.autocast("cpu", dtype=dtype)
        trainer.train_step(tiny.batch_for(trainer, world.task))
        assert all(p.isfinite().all() for p in trainer.network.parameters())


class TestStrongView:
    def seen(self, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def look(images: Tensor, **options: Any) -> Tensor:
            found.update(options, channels=images.shape[1])
            return images + 1

        monkeypatch.setattr(condseg, "strong_view", look)
        return found

    def test_the_labels_of_a_cascade_stay_as_they_are(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = make_world(cascade=True)
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        found = self.seen(trainer, monkeypatch)
        data = world.task.images()
        moved = (trainer._strong_view(data) != data).flatten(2).any(2).any(0)
        assert moved.tolist() == [True, False, False]
        assert found["channels"] == 1

    @pytest.mark.parametrize(("patch", "axes"), [([4, 16, 16], (1, 2)), ([8, 16, 16], None)])
    def test_thick_slices_are_blurred_in_their_plane(
        self,
        make_world: MakeWorld,
        monkeypatch: pytest.MonkeyPatch,
        patch: list[int],
        axes: tuple[int, ...] | None,
    ) -> None:
        world = make_world()
        trainer = tiny.ready(world.trainer("ConDSegTrainer", ENCODER))
        found = self.seen(trainer, monkeypatch)
        trainer.configuration_manager.configuration["patch_size"] = patch
        trainer._strong_view(world.task.images())
        assert found["axes"] == axes

    @pytest.mark.parametrize(
        ("names", "colour"),
        [(["R", "G", "B"], True), (["red", "green", "blue"], True), (["T1", "T2", "FLAIR"], False)],
    )
    def test_colours_are_known_by_name(
        self,
        make_world: MakeWorld,
        monkeypatch: pytest.MonkeyPatch,
        names: list[str],
        colour: bool,
    ) -> None:
        trainer = tiny.ready(make_world(dim=2, channels=3).trainer("ConDSegTrainer", ENCODER))
        found = self.seen(trainer, monkeypatch)
        trainer.dataset_json["channel_names"] = dict(enumerate(names))
        trainer._strong_view(torch.randn(1, 3, 16, 16))
        assert found["colour"] is colour


class TestBadInput:
    def test_checkpoints_of_the_first_edition_are_refused_by_what_they_lack(
        self, make_world: MakeWorld, tmp_path: Path
    ) -> None:
        world = make_world(dim=2)
        chosen = {"num_epochs": 2, **ENCODER}
        trainer = world.trainer("ConDSegTrainer", chosen)
        trainer.run_training()
        saved = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
        del saved["nnunet_ext"]["settings"]["condseg"]["maps"]
        saved["nnunet_ext"]["settings"]["condseg"]["encoder_lr_factor"] = 0.1
        torch.save(saved, tmp_path / "old.pth")
        with pytest.raises(UserError, match=r"old\.pth lacks the light head"):
            world.trainer("ConDSegTrainer", chosen).load_checkpoint(str(tmp_path / "old.pth"))

    @pytest.mark.parametrize(
        "chosen", [{"first_phase": 1.0}, {"width": 0}, {"encoder_lr_factor": 0.0}, {"maps": "u"}]
    )
    def test_settings_out_of_range_are_refused(
        self, make_world: MakeWorld, chosen: dict[str, Any]
    ) -> None:
        with pytest.raises(UserError, match=next(iter(chosen))):
            make_world(dim=2).trainer("ConDSegTrainer", settings(**chosen))

    def test_regions_have_no_maps_of_classes(self, make_world: MakeWorld) -> None:
        with pytest.raises(UserError, match=r'regions, which overlap\. Choose "merged"'):
            make_world(dim=2, regions=True).trainer("ConDSegTrainer", settings(maps="classes"))


def _both_phases(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    bare = ConDSegNet(tiny.Task(dim=2).unet(), 3, (16, 16))
    network = DistributedDataParallel(bare, find_unused_parameters=True)
    torch.manual_seed(rank)  # from here on, ranks see different batches
    gradients = []
    for phase in ("first", "second", "second"):
        data = torch.randn(2, 1, 16, 16)
        if phase == "first":
            loss = network(data, answer="head").square().mean()
        else:
            answer = network(data, answer="decoupled")
            loss = answer.logits.square().mean() + answer.maps.square().mean()
        network.zero_grad(set_to_none=True)
        loss.backward()
        gradients.append([p.grad for p in bare.parameters() if p.grad is not None])
    Path(folder, f"rank{rank}.pickle").write_bytes(pickle.dumps(gradients))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_agree_in_both_phases(tmp_path: Path) -> None:
    mp.spawn(_both_phases, args=(str(tmp_path),), nprocs=2)
    first, second = (
        pickle.loads((tmp_path / f"rank{rank}.pickle").read_bytes()) for rank in (0, 1)
    )
    assert tiny.same(first, second)
    assert len(first[0]) > 0
    assert len(first[1]) > len(first[0])


def test_compiled_graphs_stay_whole_where_attention_is_computed_again_under_ddp(
    make_world: MakeWorld,
) -> None:
    trainer = tiny.ready(make_world(dim=2).trainer("ConDSegTrainer"))
    with torch._dynamo.config.patch(optimize_ddp=True):
        trainer._share_auxiliary()
        assert not torch._dynamo.config.optimize_ddp
