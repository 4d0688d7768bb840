"""``augmentation``: a setting of every trainer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)

from tests import tiny

Make = Callable[..., tiny.World]
OURS = ("ExtensionTrainer", "CateNormTrainer", "TopKSigmaTrainer", "ConDSegTrainer")


def augmented(trainer: Any, data: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    result: torch.Tensor = trainer.augmented(data)
    return result


def kinds(transforms: Any) -> set[type]:
    found: set[type] = set()
    for each in transforms.transforms:
        inner = getattr(each, "list_of_transforms", [getattr(each, "transform", each)])
        found |= {type(getattr(one, "transform", one)) for one in inner}
    return found


@pytest.mark.parametrize("name", OURS)
def test_every_trainer_augments_on_the_device_if_the_plans_say_so(
    name: str, make_world: Make
) -> None:
    world = make_world(dim=2)
    data = world.task.images()
    assert augmented(world.trainer(name), data) is data
    changed = augmented(world.trainer(name, {"augmentation": "gin"}), data)
    assert not torch.allclose(changed, data)
    both = world.trainer(name, {"augmentation": "strong+gin"})
    assert torch.equal(augmented(both, data), changed)


def test_losses_are_of_what_gin_has_changed(make_world: Make) -> None:
    world = make_world(dim=2)
    seen: list[torch.Tensor] = []

    def train(settings: dict[str, Any]) -> torch.Tensor:
        trainer = tiny.ready(world.trainer(settings=settings))
        trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        trainer.train_step(tiny.batch_for(trainer, world.task))
        return seen.pop()

    assert torch.equal(train({}), world.task.images())
    assert not torch.allclose(train({"augmentation": "gin"}), world.task.images())
    never = {"augmentation": "gin", "gin_probability": 0.0}
    assert torch.equal(train(never), world.task.images())


@pytest.mark.parametrize("name", OURS)
def test_strong_is_what_nnunet_s_da5_does(name: str, make_world: Make) -> None:
    world = make_world(dim=2)
    plain, strong, theirs = (
        world.trainer(trainer, settings)
        for trainer, settings in (
            (name, {}),
            (name, {"augmentation": "strong"}),
            (nnUNetTrainerDA5, {}),
        )
    )
    configured = [
        each.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        for each in (strong, theirs)
    ]
    assert configured[0][0] == configured[1][0]
    arguments = ([16, 16], (-1.0, 1.0), None, (0, 1), False)
    assert kinds(strong.get_training_transforms(*arguments)) == kinds(
        nnUNetTrainerDA5.get_training_transforms(*arguments)
    )
    assert BlankRectangleTransform in kinds(strong.get_training_transforms(*arguments))
    assert BlankRectangleTransform not in kinds(plain.get_training_transforms(*arguments))


def test_segmentations_of_a_cascade_stay_as_they_are(make_world: Make) -> None:
    world = make_world(cascade=True)
    trainer = world.trainer(settings={"augmentation": "gin"})
    data = world.task.images()
    assert data.shape[1] > trainer.image_channels
    changed = augmented(trainer, data)
    assert torch.equal(changed[:, trainer.image_channels :], data[:, trainer.image_channels :])
    assert not torch.equal(changed[:, : trainer.image_channels], data[:, : trainer.image_channels])


def test_zeros_outside_the_mask_of_masked_normalisation_stay(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(dim=2, channels=2)
    trainer = world.trainer(settings={"augmentation": "gin"})
    monkeypatch.setitem(
        trainer.configuration_manager.configuration, "use_mask_for_norm", [False, True]
    )
    data = world.task.images()
    data[:, :, :8] = 0
    changed = augmented(trainer, data)
    assert not changed[:, 1, :8].any()
    assert changed[:, 0, :8].any()


def test_thick_slices_are_changed_one_by_one(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_world().trainer(settings={"augmentation": "gin", "gin_depth": 1})
    configuration = trainer.configuration_manager.configuration
    monkeypatch.setitem(configuration, "patch_size", [4, 16, 16])
    data = torch.zeros(2, 1, 4, 16, 16)
    data[:, :, 1:] = torch.randn(data[:, :, 1:].shape)
    slices = augmented(trainer, data)[:, 0, 0, 1:-1, 1:-1]
    # a slice of zeros that knows nothing of its neighbours is the constant that was added
    torch.testing.assert_close(slices, slices[:, :1, :1].expand_as(slices))


def test_equal_seeds_train_on_equal_contrasts(make_world: Make) -> None:
    world = make_world(dim=2)

    def first_loss() -> float:
        trainer = tiny.ready(world.trainer(settings={"augmentation": "gin", "seed": 4}))
        return float(trainer.train_step(tiny.batch_for(trainer, world.task))["loss"])

    assert first_loss() == first_loss()
