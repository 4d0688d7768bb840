"""The recipe of Mind the Gap: which images it sees, and who learns from what."""

import copy
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.multiprocessing.reductions import StorageWeakRef

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET
from nnunet_ext.nnunet import ddp
from nnunet_ext.trainers import base
from nnunet_ext.trainers.distributed import first_rank_first, unwrap
from nnunet_ext.translation.training import TranslatorTraining
from tests import tiny
from tests.contract import TASKS, Recipe, TrainerContract
from tests.tiny import World

MakeWorld = Callable[..., World]

QUICK_STEP_A = {
    "translator_iterations": 1,
    "translator_batch": 1,
    "translator_filters": 2,
    "translator_blocks": 1,
}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TranslatorTraining, "draw", lambda *_: None)


class TestContract(TrainerContract):
    recipes = (Recipe("MindTheGapTrainer", {"mind_the_gap": QUICK_STEP_A}),)
    tasks = tuple(task for task in TASKS if not task.cascade)


def make(world: World, **settings: Any) -> Any:
    trainer = world.trainer("MindTheGapTrainer", {"mind_the_gap": QUICK_STEP_A | settings})
    tiny.ready(trainer)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


def record_calls(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Any]]:
    """What the network is given: images, and their domain."""
    calls: list[tuple[Tensor, Any]] = []
    forward = trainer.network.forward

    def recording(images: Tensor, domain: Tensor | None = None, **options: Any) -> Any:
        calls.append((images, domain))
        return forward(images, domain, **options)

    monkeypatch.setattr(trainer.network, "forward", recording)
    return calls


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_each_step_sees_a_batch_of_each_domain(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, norm: str, deep_supervision: bool
) -> None:
    trainer = make(make_world(dim=2, norm=norm, deep_supervision=deep_supervision))
    trainer.runs_batches_apart = norm == "batch"  # as on a GPU
    drawn: list[set[str]] = []
    loader = trainer._unlabelled

    def recording() -> Any:
        while True:
            batch = next(loader)
            drawn.append(set(batch["keys"]))
            yield batch

    trainer._unlabelled = recording()
    calls = record_calls(trainer, monkeypatch)
    batch = next(trainer.dataloader_train)
    assert set(batch["keys"]) <= set(tiny.TRAIN)
    parts = trainer.train_step(batch)["parts"]
    domains = [SOURCE, SOURCE, TARGET, TARGET]
    assert torch.cat([domain for _, domain in calls]).tolist() == domains
    assert len(calls) == (2 if norm == "batch" else 1)
    assert torch.equal(torch.cat([images for images, _ in calls])[:2], batch["data"])
    assert len(drawn) == 1
    assert drawn[0] <= set(tiny.UNLABELLED)
    assert list(parts) == [
        "segmentation",
        "local_alignment",
        "global_alignment",
        "feature_critic",
        "output_critic",
    ]


def test_running_statistics_are_those_of_target_images(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(make_world(dim=2, norm="batch"))
    alone = copy.deepcopy(trainer.network)
    calls = record_calls(trainer, monkeypatch)
    batch = next(trainer.dataloader_train)
    for _ in range(3):
        next(trainer.compute_losses(batch["data"], batch["target"], batch["keys"]))
    for images, domain in calls:
        if (domain == TARGET).all():
            alone(images, domain)
    expected = tiny.running_statistics(alone)
    assert expected
    assert tiny.same(tiny.running_statistics(trainer.network), expected)


def test_labelled_images_are_read_in_target_looks(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = make(world)
    translated = Path(trainer.preprocessed_dataset_folder)
    assert "_translated_" in translated.parent.name
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        assert loader.data_loader._data.source_folder == str(translated)
    assert set(trainer.dataloader_val.data_loader._data.identifiers) == set(tiny.VALIDATION)
    assert Path(trainer._unlabelled.data_loader._data.source_folder).parent.name == (
        f"{tiny.PLANS}_data_unlabelled"
    )
    assert trainer._unlabelled.data_loader.oversample_foreground_percent == 0
    assert trainer.oversample_foreground_percent > 0


@pytest.mark.parametrize("none", [{"translator": "none"}, {"translator_iterations": 0}])
def test_without_step_a_labelled_images_are_read_as_they_are(
    make_world: MakeWorld, none: dict[str, Any]
) -> None:
    trainer = make(make_world(dim=2), **none)
    assert Path(trainer.dataloader_train.data_loader._data.source_folder) == trainer.labelled_folder
    assert not list(trainer.labelled_folder.parent.glob("*_translated_*"))
    assert "local_alignment" in trainer.train_step(next(trainer.dataloader_train))["parts"]


def test_labels_of_unlabelled_images_would_change_nothing(make_world: MakeWorld) -> None:
    results = []
    world = make_world(dim=2)
    for labels in (0, 2):
        trainer = make(world)
        batch = tiny.batch_for(trainer, world.task)
        target = [torch.full_like(scale, labels) for scale in batch["target"]]
        trainer._unlabelled = iter([{"data": batch["data"].flip(0), "target": target}])
        results.append(trainer.train_step(batch)["parts"])
    assert results[0] == results[1]


def test_segmenter_and_critics_each_learn_in_their_own_update(make_world: MakeWorld) -> None:
    trainer = make(make_world(dim=2))
    critics = [*trainer.network.feature_critic.parameters(), *trainer.auxiliary.parameters()]
    segmenter = [*trainer.network.encoder.parameters(), *trainer.network.decoder.parameters()]

    def snapshot(parameters: list[Tensor]) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in parameters]).clone()

    batch = next(trainer.dataloader_train)
    moved = []
    optimise = trainer._optimise

    def watched(update: Any) -> Tensor:
        before = snapshot(segmenter), snapshot(critics)
        total: Tensor = optimise(update)
        after = snapshot(segmenter), snapshot(critics)
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
        return total

    trainer._optimise = watched
    trainer.train_step(batch)
    assert moved == [[True, False], [False, True]]


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])
def test_logits_are_freed_before_the_critics_learn(make_world: MakeWorld, apart: bool) -> None:
    world = make_world(dim=2)
    trainer = make(world)
    trainer.runs_batches_apart = apart
    answers: list[StorageWeakRef] = []  # of all scales of both domains
    decode = trainer.network.decoder.forward

    def watched(features: Any) -> Any:
        logits = decode(features)
        answers.extend(StorageWeakRef(scale.untyped_storage()) for scale in logits)
        return logits

    trainer.network.decoder.forward = watched
    alive: list[int] = []
    optimise = trainer._optimise

    def counting(update: Any) -> Tensor:
        alive.append(sum(not answer.expired() for answer in answers))
        total: Tensor = optimise(update)
        return total

    trainer._optimise = counting
    trainer.train_step(next(trainer.dataloader_train))
    assert answers
    assert alive[1] == 0


class MeanOfChannels(nn.Module):
    """A critic whose scores can be told without it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(1, keepdim=True)


@pytest.mark.parametrize("regions", [False, True])
def test_losses_are_those_of_the_paper(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, regions: bool
) -> None:
    """Segmenters pull target scores to 0, critics to 1, and those of the source to 0."""
    trainer = make(make_world(dim=2, regions=regions))
    heads = trainer.label_manager.num_segmentation_heads
    logits = {SOURCE: 0.0, TARGET: 3.0}  # in the first class

    def answer(images: Tensor, domain: Tensor, return_features: bool) -> Any:
        (number,) = set(domain.tolist())
        found = torch.zeros(len(images), heads, 4, 4)
        found[:, 0] = logits[number]
        features = torch.full((len(images), 2, 2, 2), 0.1 if number == SOURCE else 0.25)
        return (found, features) if return_features else found

    monkeypatch.setattr(trainer.network, "forward", answer)
    monkeypatch.setattr(trainer.network, "score", MeanOfChannels().forward)
    trainer.auxiliary["output_critic"] = MeanOfChannels()
    trainer.loss = lambda found, _: found.mean()
    trainer.runs_batches_apart = True
    batch = {"data": torch.zeros(2, 1, 8, 8)}
    trainer._unlabelled = iter([batch])
    updates = list(trainer.compute_losses(batch["data"], torch.zeros(1), []))
    found = {
        name: float(part)
        for losses in (updates[0], updates[1].losses)
        for name, part in losses.items()
    }
    if regions:  # the mean over heads of the sigmoid
        source = 0.5
        target = (1 / (1 + np.exp(-3)) + 0.5 * (heads - 1)) / heads
    else:
        source = target = 1 / heads
    assert found == {
        "segmentation": 0,
        "local_alignment": pytest.approx(0.02 * 0.25**2),
        "global_alignment": pytest.approx(0.02 * target**2),
        "feature_critic": pytest.approx(0.1**2 + 0.75**2),
        "output_critic": pytest.approx(source**2 + (1 - target) ** 2),
    }


def test_labelled_patches_drawn_alike_are_those_that_nnunet_draws_at_random(
    make_world: MakeWorld,
) -> None:
    trainer = make(make_world(dim=2))
    loader = trainer.dataloader_train.data_loader
    for size in (1, 2, 3, 8):
        trainer.batch_size = loader.batch_size = size
        at_random = [not loader.get_do_oversample(position) for position in range(size)]
        alike = trainer._drawn_alike
        assert at_random == [True] * alike + [False] * (size - alike)


@pytest.mark.parametrize(("oversampled", "all_seen"), [(0.33, False), (0.0, True), (1.0, True)])
def test_critics_do_not_see_patches_that_were_drawn_for_their_foreground_unless_all_were(
    make_world: MakeWorld, oversampled: float, all_seen: bool
) -> None:
    trainer = make(make_world(dim=2))
    trainer.oversample_foreground_percent = oversampled
    batch, others = next(trainer.dataloader_train), next(trainer._unlabelled)
    changed = batch["data"].clone()
    changed[-1] += torch.linspace(0, 1, changed.shape[-1])
    found = []
    for images in (batch["data"], changed):
        trainer._unlabelled = iter([others])
        segmenting, judging = trainer.compute_losses(images, batch["target"], [])
        found.append({name: p.item() for name, p in (segmenting | judging.losses).items()})
    differ = [name for name in found[0] if found[0][name] != found[1][name]]
    critics = ["feature_critic", "output_critic"] if all_seen else []
    assert differ == ["segmentation", *critics]


def test_the_critics_rate_falls_as_nnunets(make_world: MakeWorld) -> None:
    trainer = make(make_world(dim=2))
    optimizer = trainer.auxiliary_optimizers["critics"]
    rates = []
    for trainer.current_epoch in (0, 1):
        trainer.on_train_epoch_start()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [pytest.approx(1e-4), pytest.approx(1e-4 * 0.5**0.9)]


def test_mixed_precision_keeps_critics_in_full(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(make_world(dim=2))
    trainer.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    given: list[tuple[torch.dtype, bool]] = []
    for critic in (trainer.network.feature_critic["seg_layers"], trainer.auxiliary.output_critic):
        critic.register_forward_pre_hook(
            lambda _, inputs: given.append((inputs[0].dtype, torch.is_autocast_enabled("cpu")))
        )
    parts = trainer.train_step(next(trainer.dataloader_train))["parts"]
    assert all(np.isfinite(list(parts.values())))
    assert set(given) == {(torch.float32, False)}
    # the masks and the alignment ask the critics, then these ask themselves about either domain
    assert len(given) == 4 + 4


def test_validation_takes_images_for_labelled_ones(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(make_world(dim=2))
    seen = []
    forward = trainer.network.forward

    def recording(*args: Any, **options: Any) -> Any:
        seen.append(int(trainer.network.inference_domain))
        return forward(*args, **options)

    monkeypatch.setattr(trainer.network, "forward", recording)
    with torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_val))
    assert seen == [SOURCE]
    assert trainer.network.inference_domain == TARGET


def test_without_alignment_only_step_a_remains(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    with_all = make(world)
    trainer = make(world, lambda_adv=0.0, mask_scope="off")
    assert trainer._unlabelled is None
    assert trainer.preprocessed_dataset_folder == with_all.preprocessed_dataset_folder
    assert list(trainer.train_step(next(trainer.dataloader_train))["parts"]) == ["segmentation"]


def test_settings_shape_the_network(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = make(world, mask_stride=2, mask_scope="stage", mask_at_inference=False)
    network = trainer.network
    assert (network.stage, network.scope, network.inference_domain) == (1, "stage", SOURCE)


def test_a_cascade_is_refused(make_world: MakeWorld) -> None:
    world = make_world(dim=3, cascade=True)
    with pytest.raises(UserError, match='MindTheGapTrainer cannot train "tiny" in TinyPlans, beca'):
        world.trainer("MindTheGapTrainer")
    assert not world.results.exists()  # an empty folder would stop find_best_configuration


def test_a_preprocessed_folder_may_be_read_only_once_all_is_there(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    first = make(world)
    preprocessed = world.root / "preprocessed"
    for lock in preprocessed.rglob(".*lock"):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in preprocessed.rglob("*")}
    second = make(world)
    assert second.preprocessed_dataset_folder == first.preprocessed_dataset_folder
    assert {path: path.stat().st_mtime_ns for path in preprocessed.rglob("*")} == before


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write in a folder; root needs a mount for it, which containers may refuse."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    place = str(folder)
    if subprocess.run(["mount", "--bind", place, place], check=False).returncode:
        pytest.skip("root may write everywhere, and may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_read_only_folder_is_named_only_where_something_must_be_written(
    make_world: MakeWorld,
) -> None:
    world = make_world(dim=2)
    folder = world.root / "preprocessed" / tiny.DATASET
    told = f"Cannot write into {folder}: "
    with read_only(folder), pytest.raises(UserError, match=told):
        make(world)
    make(world)
    with read_only(folder):
        make(world)


def test_plans_for_ct_are_doubted(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make(make_world(dim=2))
    assert "the plans clip" not in capsys.readouterr().out
    trainer.configuration_manager.normalization_schemes[0] = "CTNormalization"
    with pytest.raises(UserError, match="Cannot read"):
        trainer._use_translated_images()
    assert "the plans clip" in capsys.readouterr().out


def test_missing_unlabelled_images_are_named(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    world.write_raw()
    trainer = world.trainer("MindTheGapTrainer", {"mind_the_gap": QUICK_STEP_A})
    preprocessed = Path(trainer.preprocessed_dataset_folder)
    shutil.rmtree(preprocessed.with_name(f"{preprocessed.name}_unlabelled"))
    with pytest.raises(UserError, match="imagesUn must hold images without labels"):
        trainer.run_training()


def test_final_validation_predicts_translated_images(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(make_world(dim=2))
    seen: list[str] = []
    load_case = nnUNetDatasetBlosc2.load_case

    def recording(self: Any, identifier: str) -> Any:
        seen.append(self.source_folder)
        return load_case(self, identifier)

    trainer.preprocessed_dataset_folder = str(trainer.labelled_folder)  # as after --val
    trainer.set_deep_supervision_enabled(False)
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", recording)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    trainer.perform_actual_validation()
    assert seen
    assert all("_translated_" in folder for folder in seen)
    assert Path(trainer.output_folder, "validation", "summary.json").exists()


def test_without_step_a_validation_needs_no_unlabelled_images(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(make_world(dim=2), translator="none")
    monkeypatch.setattr(trainer, "_use_translated_images", lambda: pytest.fail("asked for them"))
    trainer.set_deep_supervision_enabled(False)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    trainer.perform_actual_validation()
    assert Path(trainer.output_folder, "validation", "summary.json").exists()


def test_other_translations_than_those_of_the_checkpoint_are_announced(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(dim=2)
    trainer = make(world)
    trainer.current_epoch = 1
    checkpoint = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(checkpoint))
    case = trainer.labelled_folder / f"{tiny.TRAIN[0]}.pkl"
    for changed in (False, True):
        if changed:
            case.write_bytes(case.read_bytes() + b" ")
        capsys.readouterr()
        continued = world.trainer("MindTheGapTrainer", {"mind_the_gap": QUICK_STEP_A})
        tiny.ready(continued)
        continued.load_checkpoint(str(checkpoint))
        continued.get_dataloaders()
        images = Path(trainer.preprocessed_dataset_folder).parent.name
        warned = f"began with the translated images in {images}"
        assert (warned in capsys.readouterr().out) == changed


# --------------------------------------------------------------------------- several processes


def _after_two_steps(trainer: Any, images: Tensor, others: Tensor) -> list[Tensor]:
    """Weights of network and critics after two steps."""
    trainer.initialize()
    trainer.batch_size, trainer.oversample_foreground_percent = len(images), 0
    trainer.on_train_epoch_start()
    trainer._unlabelled = iter([{"data": others}] * 2)
    trainer.loss = lambda outputs, _: sum(output.square().mean() for output in outputs)
    for _ in range(2):
        trainer.train_step({"data": images, "target": images})
    return [
        p.detach() for p in (*unwrap(trainer.network).parameters(), *trainer.auxiliary.parameters())
    ]


def _rank(rank: int, world: World, folder: str) -> None:
    torch.set_num_threads(1)
    trainer = world.trainer("MindTheGapTrainer")  # which insists on CUDA under DDP
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for module in (ddp, base):
        setattr(module, "DistributedDataParallel", tiny.OnCpu)  # noqa: B010
    trainer.is_ddp, trainer.local_rank = True, rank  # ranks begin with different weights
    images, others = (world.task.images(4, seed=seed).split(2)[rank] for seed in (0, 1))
    weights = _after_two_steps(trainer, images, others)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(weights))
    log = Path(folder, "order")
    with first_rank_first():
        if rank == 0:
            time.sleep(0.5)
        with log.open("a") as file:
            file.write(str(rank))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_equal_one_on_both_batches_and_the_first_one_works_first(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(dim=2)
    mp.spawn(_rank, args=(world, str(tmp_path)), nprocs=2)
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]
    assert tiny.same(*ranks)
    assert (tmp_path / "order").read_text() == "01"
    alone = world.trainer("MindTheGapTrainer")
    images, others = (world.task.images(4, seed=seed) for seed in (0, 1))
    expected = _after_two_steps(alone, images, others)
    torch.testing.assert_close(ranks[0], expected, atol=1e-5, rtol=1e-4)
