"""What is refused before the first step, and what is said of a training that fails."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_ext.trainers
from nnunet_ext import registry
from nnunet_ext._common.errors import NonFiniteLossError, UserError
from tests import contract, tiny
from tests.tiny import World

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


def change(world: World, case: str, edit: Callable[[Any, Any], None]) -> None:
    """Edit image (C, *S) and labels (1, *S) of a preprocessed case in place."""
    folder = world.root / "preprocessed" / tiny.DATASET / f"{tiny.PLANS}_data"
    image, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    voxels, labels = image[:], seg[:]
    edit(voxels, labels)
    for file in folder.glob(f"{case}*"):
        file.unlink()
    nnUNetDatasetBlosc2.save_case(
        voxels,
        labels,
        properties,
        str(folder / case),
        chunks=voxels.shape,
        blocks=voxels.shape,
        chunks_seg=labels.shape,
        blocks_seg=labels.shape,
    )


# ---------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("trainer", ["ExtensionTrainer", "TopKSigmaTrainer"])
@pytest.mark.parametrize("regions", [False, True])
def test_a_label_that_dataset_json_does_not_name_is_refused_with_its_case(
    make_world: MakeWorld, trainer: str, regions: bool
) -> None:
    world = make_world(dim=2, regions=regions)

    def spoil(_image: Any, labels: Any) -> None:
        labels[0, 0, 0, :2] = 7

    change(world, "case_3", spoil)  # held out, so that only validation would have seen it
    with pytest.raises(UserError, match=r"Case case_3 has the label 7 in 2 .* names is 2\."):
        world.trainer(trainer).run_training()


def test_the_ignore_label_and_what_lies_outside_an_image_are_known(make_world: MakeWorld) -> None:
    world = make_world(dim=2, ignore=True)

    def outside(_image: Any, labels: Any) -> None:
        labels[0, 0] = -1

    change(world, "case_0", outside)
    training, _ = world.trainer().get_tr_and_val_datasets()  # raises if it is refused
    assert training.identifiers == list(tiny.TRAIN)


# ---------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("augmentation", ["stock", "gin"])
def test_an_image_that_is_nan_is_named_and_the_clean_ones_are_not(
    make_world: MakeWorld, augmentation: str
) -> None:
    world = make_world(dim=2)

    def spoil(image: Any, _labels: Any) -> None:
        image[:] = np.nan

    change(world, "case_1", spoil)
    settings = {"augmentation": augmentation, "num_iterations_per_epoch": 20}
    with pytest.raises(NonFiniteLossError) as refusal:
        world.trainer("ExtensionTrainer", settings).run_training()
    message = str(refusal.value)
    told = message.partition("Images are NaN or infinite: ")[2]
    assert "case_1 in " in told
    assert "case_0" not in told
    assert "case_2" not in told
    assert "initial_lr" not in message


# --------------------------------------------------------------------------------- shallow plans


def shallow(world: World, settings: Any = None) -> dict[str, Any]:
    """Plans as nnU-Net makes them for images of 8 to 12 pixels."""
    plans = world.plans(settings) | {"continue_training": False}
    arguments = plans["configurations"][tiny.BASE]["architecture"]["arch_kwargs"]
    arguments["n_stages"] = 2
    for key, stages in {
        "features_per_stage": 2,
        "kernel_sizes": 2,
        "strides": 2,
        "n_conv_per_stage": 2,
        "n_conv_per_stage_decoder": 1,
    }.items():
        arguments[key] = arguments[key][:stages]
    return plans


@pytest.mark.parametrize("name", ["ExtensionTrainer", "CateNormTrainer"])
def test_a_network_too_shallow_for_deep_supervision_is_the_cause_that_is_named(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(dim=2)
    trainer = getattr(nnunet_ext.trainers, name)
    made = trainer(shallow(world), tiny.CONFIGURATION, 0, world.task.dataset_json, tiny.CPU)
    with pytest.raises(UserError, match=r'"tiny" in TinyPlans has a network of 2 stages.*0/0'):
        made.run_training()


def test_it_trains_without_deep_supervision(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    trainer = nnunet_ext.trainers.ExtensionTrainerNoDeepSupervision
    made = trainer(shallow(world), tiny.CONFIGURATION, 0, world.task.dataset_json, tiny.CPU)
    made.run_training()
    assert all(np.isfinite(row["segmentation"]) for row in made.history.rows)


# ----------------------------------------------------------------------------------- pretraining


def test_weights_that_are_taken_are_told_from_those_that_are_drawn(
    make_world: MakeWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(dim=2)
    stock = world.trainer(nnUNetTrainer)
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "stock.pth"))
    trainer = world.trainer("CateNormTrainer", {"num_epochs": 1})
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "stock.pth"))
    trainer.run_training()
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "Pretrained" in line]
    taken, _, left = said.partition(";")
    assert "decoder.stages" in taken
    assert "encoder.stages" in taken
    assert "decoder.seg_layers" in left
    assert "catenorm.seg_layers" in left


def test_nothing_is_said_of_weights_that_are_all_drawn(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    make_world(dim=2).trainer("ExtensionTrainer", {"num_epochs": 1}).run_training()
    assert "Pretrained weights" not in capsys.readouterr().out


@pytest.mark.parametrize("name", registry.TRAINERS)
def test_plans_that_name_weights_are_refused_before_a_folder_is_made(
    make_world: MakeWorld, name: str
) -> None:
    world = make_world(dim=2)
    trainer = getattr(nnunet_ext.trainers, name)
    plans = world.plans() | {"pretrain_info": {"checkpoint_path": "w.pth"}}
    with pytest.raises(UserError, match=f"{name} does not load the weights"):
        trainer(plans, tiny.CONFIGURATION, 0, world.task.dataset_json, tiny.CPU)
    assert not world.results.exists()


def test_being_told_to_use_pretrained_weights_is_refused(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2).trainer()
    trainer.use_pretrained_weights = False
    with pytest.raises(UserError, match="nnUNetv2_train with -pretrained_weights"):
        trainer.use_pretrained_weights = True


# ----------------------------------------------------------------------- another version's folder


def test_a_preprocessed_folder_of_another_version_is_refused_in_words_or_trained_on(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    """nnU-Net up to 2.5 wrote .npz; its reader is still there, and takes all cases or none."""
    world = make_world(dim=2)
    folder = world.root / "preprocessed" / tiny.DATASET / f"{tiny.PLANS}_data"
    for case in tiny.CASES:
        image, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        arrays = image[:], seg[:]
        for file in folder.glob(f"{case}*"):
            file.unlink()
        np.savez_compressed(folder / f"{case}.npz", data=arrays[0], seg=arrays[1])
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties))
    trainer = world.trainer("ExtensionTrainer", {"num_epochs": 1})
    trainer.run_training()
    assert torch.isfinite(torch.tensor(trainer.history.rows[0]["segmentation"]))
