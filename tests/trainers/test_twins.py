"""Twins of nnU-Net's trainers: what they train, and that the plans decide how long."""

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from batchgeneratorsv2.transforms.local.local_gamma import LocalGammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from nnunet_ext import trainers
from nnunet_ext._common.errors import UnknownNameError
from nnunet_ext.nnunet import discovery, lookup
from nnunet_ext.trainers import ExtensionTrainer
from tests import contract, tiny
from tests.contract import Recipe, TrainerContract
from tests.tiny import Task, World

MakeWorld = Callable[..., World]

STOCK = "nnUNetTrainer"
# as no trainer has this name, nnU-Net's whole tree is imported
assert lookup.find_trainer_of_nnunet("nnUNetTrainerWithoutName") is None
FOUND = {name for name in lookup._nnunets_names(lookup.TRAINERS) if name.startswith(STOCK)}
VARIANTS = sorted(FOUND - {STOCK})


class TestContract(TrainerContract):
    recipes = (Recipe("ExtensionTrainerDA5"),)
    tasks = (Task(dim=2, norm="batch"),)


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


def stock_of(twin: Any) -> type[nnUNetTrainer]:
    """The trainer of nnU-Net's behind a twin."""
    stock: type[nnUNetTrainer] = type(twin).__bases__[1]
    return stock


def seeded_like(twin: Any, world: World) -> Any:
    """nnU-Net's own trainer, with the numbers of its twin and seeded where its twin is."""
    stock = world.trainer(stock_of(twin))
    for name in ("training_settings", "num_epochs"):
        setattr(stock, name, getattr(twin, name))
    stock.num_iterations_per_epoch = twin.num_iterations_per_epoch
    stock.num_val_iterations_per_epoch = twin.num_val_iterations_per_epoch
    initialize, start_epoch = stock.initialize, stock.on_train_epoch_start

    def seeded_initialize() -> None:
        ExtensionTrainer._seed(stock, 0)
        initialize()

    def seeded_start_epoch() -> None:
        start_epoch()
        ExtensionTrainer._seed(stock, stock.current_epoch + 1)

    stock.initialize, stock.on_train_epoch_start = seeded_initialize, seeded_start_epoch
    return stock


@pytest.mark.parametrize(
    "suffix",
    [
        "DA5",
        "NoDA",
        "Topk10Loss",
        "BN",
        "CosAnneal",
        "Adam3en4",
        "_noDummy2DDA",
        "_probabilisticOversampling_010",
        "_onlyMirror01_1500ep",
        "_warmup",
    ],
)
def test_a_twin_trains_bit_by_bit_as_its_stock_variant(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    # nnU-Net measures two ways to blur, and the clock decides which wins
    monkeypatch.setattr(
        GaussianBlurTransform, "_benchmark_wrapper", lambda _, *args: blur_dimension(*args)
    )
    world = make_world(dim=3, anisotropic=True)
    twin = world.trainer(f"ExtensionTrainer{suffix}")
    stock = seeded_like(twin, world)
    assert not isinstance(stock, ExtensionTrainer)
    for trainer in (twin, stock):
        trainer.run_training()
    assert twin.current_epoch == tiny.QUICK["num_epochs"]
    assert tiny.same(twin.network.state_dict(), stock.network.state_dict())
    assert tiny.same(twin.optimizer.state_dict(), stock.optimizer.state_dict())
    for figure in ("train_losses", "val_losses", "ema_fg_dice", "lrs"):
        assert twin.logger.get_value(figure, step=None) == stock.logger.get_value(figure, step=None)


def test_da5_brings_its_augmentation(make_world: MakeWorld) -> None:
    trainer = make_world().trainer("ExtensionTrainerDA5")
    trainer.initialize()
    composed = trainer.get_dataloaders()[0].data_loader.transforms.transforms
    assert any(isinstance(getattr(t, "transform", t), LocalGammaTransform) for t in composed)


def test_a_network_without_deep_supervision_stays_so(make_world: MakeWorld) -> None:
    twin = make_world(deep_supervision=False).trainer("ExtensionTrainerNoDeepSupervision")
    assert not twin.enable_deep_supervision
    twin.run_training()


def test_bn_normalises_over_the_batch(make_world: MakeWorld) -> None:
    twin = make_world(dim=2).trainer("ExtensionTrainerBN")
    twin.initialize()
    layers = [type(module) for module in twin.network.modules()]
    assert nn.BatchNorm2d in layers
    assert nn.InstanceNorm2d not in layers


# -------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("suffix", ["_onlyMirror01_1500ep", "_250epochs_NoMirroring", "_warmup"])
def test_epochs_of_the_plans_win_over_those_of_the_variant(
    make_world: MakeWorld, suffix: str
) -> None:
    twin = make_world(dim=2).trainer(f"ExtensionTrainer{suffix}", {"num_epochs": 7})
    assert twin.num_epochs == 7


def test_the_variants_own_epochs_hold_where_the_plans_say_nothing(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    settings = {"num_epochs": None, "num_iterations_per_epoch": None}
    twin = world.trainer("ExtensionTrainer_onlyMirror01_1500ep", settings)
    assert (twin.num_epochs, twin.num_iterations_per_epoch) == (1500, 250)


@pytest.mark.parametrize("name", ["ExtensionTrainerDA5_20epochs", "ExtensionTrainerDA5_10epochs"])
def test_epochs_in_the_name_win(make_world: MakeWorld, name: str) -> None:
    trainer = make_world(dim=2).trainer(name, {"num_epochs": 7})
    assert trainer.num_epochs == int(name[-8:-6])


@pytest.mark.parametrize(
    ("suffix", "settings", "expected", "rate"),
    [
        ("Adam1en3", {}, AdamW, 1e-3),
        ("Adam1en3", {"initial_lr": 5e-4}, AdamW, 5e-4),
        ("VanillaAdam3en4", {"optimizer": "sgd"}, Adam, 3e-4),
        ("CosAnneal", {}, SGD, 1e-2),
        ("CosAnneal", {"optimizer": "adam"}, Adam, 1e-3),
    ],
)
def test_the_variants_optimiser_gives_way_only_to_a_wish(
    make_world: MakeWorld,
    suffix: str,
    settings: dict[str, Any],
    expected: type[Optimizer],
    rate: float,
) -> None:
    twin = make_world(dim=2).trainer(f"ExtensionTrainer{suffix}", settings)
    twin.initialize()
    assert type(twin.optimizer) is expected
    assert twin.optimizer.param_groups[0]["lr"] == rate


# ----------------------------------------------------------------------------------- every variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_a_twin_that_hides_nothing_of_it(variant: str) -> None:
    stock = lookup.find_trainer_of_nnunet(variant)
    twin = getattr(trainers, variant.replace("nnUNet", "Extension", 1))
    assert issubclass(twin, ExtensionTrainer)
    assert inspect.signature(twin.__init__) == inspect.signature(ExtensionTrainer.__init__)
    assert pickle.loads(pickle.dumps(twin)) is twin
    if twin.epochs_from_name is None:
        assert issubclass(twin, stock)
        assert variant in twin.__doc__
    changes = {name for base in stock.__mro__[:-2] for name, v in vars(base).items() if callable(v)}
    for name in changes & vars(ExtensionTrainer).keys():
        assert f"super().{name}(" in inspect.getsource(getattr(ExtensionTrainer, name)), name


def test_there_are_as_many_variants_as_nnunet_tells() -> None:
    assert len(VARIANTS) > 40
    assert {"nnUNetTrainerDA5", "nnUNetTrainerBenchmark_5epochs"} <= set(VARIANTS)


# ------------------------------------------------------------------------------------- discovery


def test_nnunets_look_up_finds_twins_of_any_length() -> None:
    discovery.activate(force=True)
    for name in ("ExtensionTrainerDA5_20epochs", "ExtensionTrainer_noDummy2DDA"):
        found = recursive_find_trainer_class_by_name(name)
        assert found.__name__ == name
        assert found is getattr(trainers, name)


def test_a_worker_that_knows_nothing_of_twins_unpickles_one() -> None:
    pickled = pickle.dumps(trainers.ExtensionTrainerDA5_20epochs)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
    worker = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True)
    assert worker.stdout.decode().strip() == "ExtensionTrainerDA5_20epochs", worker.stderr


def test_a_twin_of_nothing_is_refused_with_near_matches() -> None:
    discovery.activate(force=True)
    with pytest.raises(UnknownNameError, match=r"called ExtensionTrainerDA6 .*ExtensionTrainerDA5"):
        recursive_find_trainer_class_by_name("ExtensionTrainerDA6")
    assert not hasattr(trainers, "ExtensionTrainerDA6")
