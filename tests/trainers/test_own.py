"""Trainers of users and of other packages, with settings of their own in the plans."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ext import trainers
from nnunet_ext._common.errors import SettingsError
from nnunet_ext.nnunet import discovery
from tests.tiny import World

OWN = """
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import STRICT
from nnunet_ext.trainers import ExtensionTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


@dataclass(frozen=True, config=STRICT)
class MineSettings:
    strength: Annotated[float, Field(ge=0, description="how much")] = 0.5


class MineTrainer(ExtensionTrainer):
    settings_key: ClassVar[str] = "mine"
    settings_class: ClassVar[type] = MineSettings


class PlainTrainer(nnUNetTrainer):
    pass
"""

MakeWorld = Callable[..., World]


@pytest.fixture(params=["installed", "folder"])
def mine(
    request: pytest.FixtureRequest,
    install: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """A trainer as nnU-Net finds it, in an installed package or in a user's folder."""
    if request.param == "installed":
        install("mine", OWN, trainers={"MineTrainer": "MineTrainer"})
    else:
        (tmp_path / "users").mkdir()
        (tmp_path / "users" / "of_mine.py").write_text(OWN)
        monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "users"))
    discovery.activate(force=True)
    return recursive_find_trainer_class_by_name("MineTrainer")


def test_settings_of_its_own_are_read_from_the_plans(make_world: MakeWorld, mine: Any) -> None:
    settings = {"mine": {"strength": 2.0}, "catenorm": {"reduction": 4}}
    trainer = make_world().trainer(mine, settings)
    assert trainer.settings["mine"].strength == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mien": {}}, 'unknown setting "mien". Did you mean mine?'),
        ({"mine": {"strnegth": 1}}, 'mine: unknown setting "strnegth". Did you mean strength?'),
        ({"mine": {"strength": -1.0}}, "greater than or equal to 0"),
    ],
)
def test_what_it_does_not_know_is_refused(
    make_world: MakeWorld, mine: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        make_world().trainer(mine, settings)
    assert message in str(refusal.value)


def test_settings_of_an_installed_package_disturb_no_other_trainer(
    make_world: MakeWorld, install: Callable[..., None]
) -> None:
    world = make_world()
    with pytest.raises(SettingsError, match='unknown setting "mine"'):
        world.trainer("ExtensionTrainer", {"mine": {"strength": 2.0}})
    install("mine", OWN, trainers={"MineTrainer": "MineTrainer"})
    world.trainer("ExtensionTrainer", {"mine": {"strength": 2.0}})


def test_trainer_of_an_installed_package_that_is_none_of_ours_trains_for_a_length_as_well(
    make_world: MakeWorld, install: Callable[..., None]
) -> None:
    install("mine", OWN, trainers={"PlainTrainer": "PlainTrainer"})
    discovery.activate(force=True)
    found = recursive_find_trainer_class_by_name("PlainTrainer_3epochs")
    trainer = make_world().trainer(found)
    assert trainer.num_epochs == 3
    assert "PlainTrainer_3epochs__" in trainer.output_folder
    assert list(trainer.my_init_kwargs) == [
        *("plans", "configuration", "fold", "dataset_json", "device")
    ]
    assert pickle.loads(pickle.dumps(found)) is found
    assert found is sys.modules["nnunet_ext.trainers"].PlainTrainer_3epochs
    del trainers.PlainTrainer_3epochs
