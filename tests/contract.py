"""What every trainer and every network of this package promises.

A trainer joins with one line in the list of ``tests/trainers/test_contract.py``, a network
with one class in ``tests/networks/test_contract.py``.
"""

import copy
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from torch import Tensor, nn

import nnunet_ext.trainers
from nnunet_ext.nnunet import discovery
from tests import tiny
from tests.tiny import Task, World

TASKS = (
    Task(dim=3),
    Task(
        dim=3,
        residual=True,
        norm="batch",
        ignore=True,
        anisotropic=True,
        channels=2,
        domains=tiny.TWO_SITES,
    ),
    Task(dim=3, regions=True, ignore=True, cascade=True, deep_supervision=False),
    Task(dim=2, norm="batch", regions=True, channels=2, domains=tiny.TWO_SITES),
    Task(dim=2, residual=True, ignore=True, deep_supervision=False),
    Task(dim=2, residual=True, regions=True, ignore=True, channels=2, norm="batch"),
)
"""Every two properties of a data set and its network meet in some task, as far as six go."""

CHECKPOINT_KEYS = {
    "network_weights",
    "optimizer_state",
    "grad_scaler_state",
    "logging",
    "_best_ema",
    "current_epoch",
    "init_args",
    "trainer_name",
    "inference_allowed_mirroring_axes",
}
TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")


@dataclass(frozen=True)
class Recipe:
    """A trainer under test, with settings that the defaults do not reach."""

    trainer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = True  # whether its interruption is among the quick tests, too

    def suited(self, task: Task) -> Task:
        """Give the task domains if the trainer needs them."""
        needs = getattr(nnunet_ext.trainers, self.trainer).requires_domains
        return replace(task, domains=tiny.TWO_SITES) if needs else task

    def __str__(self) -> str:
        return self.trainer + (f"-{json.dumps(self.settings)}" if self.settings else "")


@dataclass(frozen=True)
class Training:
    """A training that has ended."""

    recipe: Recipe
    world: World
    trainer: Any
    initial_weights: dict[str, Tensor]
    fold: Path

    def checkpoint(self, name: str = "checkpoint_final.pth") -> dict[str, Any]:
        return load(self.fold / name)


class InterruptionError(Exception):
    """Stands for whatever kills a training."""


@contextmanager
def train(recipe: Recipe, task: Task, folder: Path) -> Iterator[Training]:
    """Train for two epochs; nnU-Net's environment points to ``folder`` meanwhile."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_progress_plot(monkeypatch)
        world = tiny.make_world(folder, task, monkeypatch)
        trainer = world.trainer(recipe.trainer, recipe.settings)
        trainer.initialize()
        initial_weights = copy.deepcopy(trainer.network.state_dict())
        trainer.run_training()
        yield Training(recipe, world, trainer, initial_weights, Path(trainer.output_folder))


class TrainerContract:
    """Subclass with the recipes to test; see the module's docstring."""

    recipes: ClassVar[tuple[Recipe, ...]]
    tasks: ClassVar[tuple[Task, ...]] = TASKS

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "training" in metafunc.fixturenames:
            pairs = [
                pytest.param((recipe, recipe.suited(task)), marks=_slow_unless(quick))
                for turn, recipe in enumerate(self.recipes)
                for task, quick in _quick_tasks(self.tasks, turn)
            ]
            metafunc.parametrize("training", pairs, indirect=True, scope="class", ids=_pair_name)
        elif "recipe" in metafunc.fixturenames:
            trains = "killed" in metafunc.function.__name__
            recipes = [
                pytest.param(recipe, marks=_slow_unless(recipe.quick or not trains))
                for recipe in self.recipes
            ]
            metafunc.parametrize("recipe", recipes, ids=str)

    # ------------------------------------------------------------------------------- training

    def test_every_part_of_the_loss_is_finite_in_every_epoch(self, training: Training) -> None:
        rows = training.trainer.history.rows
        assert [row["epoch"] for row in rows] == [0, 1]
        assert all(np.isfinite(list(row.values())).all() for row in rows)

    def test_training_changes_the_weights(self, training: Training) -> None:
        now = training.trainer.network.state_dict()
        first = next(name for name in now if name.startswith("encoder") and "conv.weight" in name)
        assert now.keys() == training.initial_weights.keys()
        assert not torch.equal(now[first], training.initial_weights[first])
        assert all(torch.isfinite(weights).all() for weights in now.values())

    # ------------------------------------------------------------------------------ prediction

    def test_the_network_answers_with_one_tensor_in_evaluation(self, training: Training) -> None:
        task = training.world.task
        logits = evaluate(training.trainer, task.images(batch_size=2))
        assert isinstance(logits, Tensor)
        assert logits.shape == (2, task.heads, *task.patch_size)

    def test_the_stock_predictor_rebuilds_the_same_network(self, training: Training) -> None:
        images = training.world.task.images()
        predictor = load_predictor(training)
        predictor.network.load_state_dict(predictor.list_of_parameters[0], strict=True)
        with torch.no_grad():
            logits = predictor.network.eval()(images)
        assert torch.equal(logits, evaluate(training.trainer, images))

    def test_sliding_windows_with_mirroring_give_finite_logits(self, training: Training) -> None:
        task = training.world.task
        predictor = load_predictor(training)
        # two slices, or two windows
        depth = 2 if task.dim == 2 else tiny.EDGE
        volume = torch.randn(task.input_channels, depth, tiny.EDGE, tiny.EDGE + 4)
        logits = predictor.predict_logits_from_preprocessed_data(volume)
        assert logits.shape == (task.heads, *volume.shape[1:])
        assert torch.isfinite(logits).all()

    # ----------------------------------------------------------------------------- checkpoints

    def test_checkpoints_hold_what_nnunet_expects_and_one_key_of_ours(
        self, training: Training
    ) -> None:
        checkpoint = training.checkpoint()
        assert checkpoint.keys() == CHECKPOINT_KEYS | {"nnunet_ext"}
        assert checkpoint["network_weights"].keys() == training.trainer.network.state_dict().keys()
        assert checkpoint["trainer_name"] == training.recipe.trainer
        assert checkpoint["current_epoch"] == 2

    def test_checkpoints_load_without_this_package(self, training: Training) -> None:
        # plain values and tensors survive renamed classes; nnU-Net's own arguments hold a device
        ours = training.checkpoint()["nnunet_ext"]
        assert _is_plain(ours), ours

    def test_no_temporary_file_stays_behind(self, training: Training) -> None:
        assert not list(training.world.results.rglob("*.partial"))

    def test_a_training_killed_twice_equals_an_uninterrupted_one(
        self, recipe: Recipe, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_progress_plot(monkeypatch)
        world = make_world(dim=2, norm="batch", domains=tiny.TWO_SITES)
        settings = {**recipe.settings, "num_epochs": 3, "save_every": 1}

        whole = world.trainer(recipe.trainer, settings)
        whole.run_training()
        expected = load(Path(whole.output_folder, "checkpoint_final.pth"))

        trainer = world.trainer(recipe.trainer, settings)
        for completed in (1, 2):
            interrupt_after(trainer, completed, monkeypatch)
            with pytest.raises(InterruptionError):
                trainer.run_training()
            np.random.seed(99)
            torch.manual_seed(99)
            trainer = world.trainer(recipe.trainer, settings, continue_training=True)
            trainer.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
            assert trainer.current_epoch == completed
        trainer.run_training()
        actual = load(Path(trainer.output_folder, "checkpoint_final.pth"))

        for checkpoint in (expected, actual):
            for name in TIMES:
                del checkpoint["logging"][name]
        for key in (*CHECKPOINT_KEYS - {"init_args"}, "nnunet_ext"):
            assert tiny.same(actual[key], expected[key]), key

    # --------------------------------------------------------------------------------- workers

    def test_everything_that_goes_to_workers_survives_spawning(
        self, make_world: Callable[..., World]
    ) -> None:
        world = make_world(dim=3, anisotropic=True, domains=tiny.TWO_SITES)
        for_workers = []
        for recipe in self.recipes:
            trainer = world.trainer(recipe.trainer, recipe.settings)
            trainer.initialize()
            trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
            for loader in (trainer.dataloader_train, trainer.dataloader_val):
                for_workers.append(loader.data_loader)
            pickled = pickle.dumps(trainer.dataset_class)
            assert pickle.loads(pickled) is trainer.dataset_class
        with get_context("spawn").Pool(1) as pool:
            drawn = pool.map(_draw_keys, for_workers)
        assert all(set(keys) <= set(tiny.CASES) for keys in drawn)

    @pytest.mark.parametrize("suffix", ["", "_2epochs"])
    def test_the_class_pickles_by_reference(self, recipe: Recipe, suffix: str) -> None:
        trainer = getattr(nnunet_ext.trainers, recipe.trainer + suffix)
        assert pickle.loads(pickle.dumps(trainer)) is trainer
        assert trainer.__name__ == recipe.trainer + suffix

    # ---------------------------------------------------------------------------- descriptions

    def test_the_class_says_what_it_does(self, recipe: Recipe) -> None:
        assert getattr(nnunet_ext.trainers, recipe.trainer).__doc__


class NetworkContract:
    """Subclass with ``build``; every network must live up to what nnU-Net asks of one."""

    tasks: ClassVar[tuple[Task, ...]] = TASKS

    def build(self, task: Task) -> nn.Module:
        """Make the network for this task."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "task" in metafunc.fixturenames:
            compiles = "compile" in metafunc.function.__name__
            tasks = [
                pytest.param(task, marks=_slow_unless((quick and task.dim == 2) or not compiles))
                for task, quick in _quick_tasks(self.tasks)
            ]
            metafunc.parametrize("task", tasks, ids=str)

    @pytest.fixture
    def network(self, task: Task) -> nn.Module:
        torch.manual_seed(0)
        return self.build(task)

    def test_training_gives_one_tensor_or_one_for_each_scale(
        self, network: nn.Module, task: Task
    ) -> None:
        logits = network.train()(task.images())
        if not task.deep_supervision:
            assert logits.shape == (2, task.heads, *task.patch_size)
            return
        assert len(logits) == len(tiny.FEATURES) - 1
        shape = np.array(task.patch_size)
        for scale, stride in zip(logits, task.architecture["arch_kwargs"]["strides"], strict=False):
            shape = shape // stride
            assert scale.shape == (2, task.heads, *shape)

    def test_deep_supervision_switches_off_the_way_nnunet_does_it(
        self, network: nn.Module, task: Task
    ) -> None:
        without_deep_supervision(network)
        logits = network.eval()(task.images())
        assert isinstance(logits, Tensor)
        assert logits.shape == (2, task.heads, *task.patch_size)

    def test_weights_do_not_depend_on_deep_supervision(
        self, network: nn.Module, task: Task
    ) -> None:
        other = replace(task, deep_supervision=not task.deep_supervision)
        self.build(other).load_state_dict(network.state_dict(), strict=True)

    def test_gradients_are_finite(self, network: nn.Module, task: Task) -> None:
        logits = network.train()(task.images())
        scales = logits if task.deep_supervision else [logits]
        torch.stack([scale.square().mean() for scale in scales]).sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)

    def test_evaluation_does_not_depend_on_the_rest_of_the_batch(
        self, network: nn.Module, task: Task
    ) -> None:
        without_deep_supervision(network.eval())
        images = task.images(batch_size=2)
        with torch.no_grad():
            together, alone = network(images)[:1], network(images[:1])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_it_compiles_without_graph_breaks(self, network: nn.Module, task: Task) -> None:
        without_deep_supervision(network.eval())
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        images = task.images()
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), network(images))

    def test_its_training_compiles_without_graph_breaks(
        self, network: nn.Module, task: Task
    ) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(network.train(), backend="eager", fullgraph=True)
        logits = compiled(task.images())
        scales = logits if task.deep_supervision else [logits]
        torch.stack([scale.square().mean() for scale in scales]).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)

    def test_a_deep_copy_is_independent(self, network: nn.Module, task: Task) -> None:
        without_deep_supervision(network.eval())
        images = task.images()
        with torch.no_grad():
            before = network(images)
            twin = copy.deepcopy(network)
            assert torch.equal(twin(images), before)
            for parameter in twin.parameters():
                parameter.zero_()
            assert torch.equal(network(images), before)
            assert not torch.equal(twin(images), before)


# ---------------------------------------------------------------------------------------- tools


def _quick_tasks(tasks: Sequence[Task], turn: int = 0) -> list[tuple[Task, bool]]:
    """Each task, and whether it is one of the two, 3D and 2D, whose turn it is in quick tests."""
    kinds = [[task for task in tasks if task.dim == dim] for dim in (3, 2)]
    quick = [kind[turn % len(kind)] for kind in kinds if kind]
    return [(task, task in quick) for task in tasks]


def _slow_unless(quick: bool) -> tuple[pytest.MarkDecorator, ...]:
    return () if quick else (pytest.mark.slow,)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return checkpoint


def without_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the second that nnU-Net's huge plot takes per epoch."""
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)


def interrupt_after(trainer: Any, completed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this training die in the middle of the epoch after so many completed ones."""

    def die(_outputs: Any) -> None:
        if trainer.current_epoch == completed:
            raise InterruptionError
        type(trainer).on_train_epoch_end(trainer, _outputs)

    monkeypatch.setattr(trainer, "on_train_epoch_end", die)


def evaluate(trainer: Any, images: Tensor) -> Any:
    """Logits of the trainer's network in the state in which nnU-Net validates."""
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        logits = trainer.network(images)
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return logits


def load_predictor(training: Training) -> Any:
    """The stock predictor, as nnUNetv2_predict sets it up from a model folder."""
    discovery.activate(force=True)
    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=tiny.CPU, allow_tqdm=False, use_mirroring=True
    )
    predictor.initialize_from_trained_model_folder(
        str(training.fold.parent), use_folds=(0,), checkpoint_name="checkpoint_final.pth"
    )
    assert predictor.allowed_mirroring_axes == tuple(range(training.world.task.dim))
    return predictor


def without_deep_supervision(network: Any) -> None:
    """Switch deep supervision off as ``nnUNetTrainer.set_deep_supervision_enabled`` does."""
    network.decoder.deep_supervision = False


def _pair_name(pair: object) -> str:
    assert isinstance(pair, tuple)
    return " ".join(map(str, pair))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def _draw_keys(loader: Any) -> list[str]:
    """Runs in a worker: draw one batch."""
    return [str(key) for key in next(loader)["keys"]]
