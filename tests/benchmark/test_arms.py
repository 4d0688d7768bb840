"""Which class trains an arm, and why an arm cannot be trained."""

from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.arms import Training, find_training
from nnunet_ext.nnunet import discovery

USERS = """
from dataclasses import dataclass

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunet_ext.trainers import ExtensionTrainer


class MyTrainer(nnUNetTrainer):
    pass


class MyExtension(ExtensionTrainer):
    pass


@dataclass
class MySettings:
    weight: float = 1.0


class MySettable(ExtensionTrainer):
    settings_key = "mine"
    settings_class = MySettings
"""


def training(trainer: str, **settings: Any) -> Training:
    discovery.activate(force=True)
    arms = {"arm": {"trainer": trainer, "settings": settings}}
    content = {"dataset": "Dataset777_Tiny", "arms": arms}
    return find_training(spec.from_content(content, "test"), "arm")


@pytest.mark.parametrize(
    ("trainer", "settings", "expected"),
    [
        ("nnUNetTrainer", {}, Training("nnUNetTrainer", False, 1000)),
        ("nnUNetTrainerDA5", {}, Training("nnUNetTrainerDA5", False, None)),
        ("nnUNetTrainer_5epochs", {}, Training("nnUNetTrainer_5epochs", False, 5)),
        ("nnUNetTrainer", {"num_epochs": 5}, Training("nnUNetTrainer_5epochs", False, 5)),
        ("nnUNetTrainer", {"num_epochs": 1}, Training("nnUNetTrainer_1epoch", False, 1)),
        ("nnUNetTrainer", {"num_epochs": 7}, Training("ExtensionTrainer", True, 7)),
        (
            "nnUNetTrainer",
            {"num_epochs": 5, "num_iterations_per_epoch": 2},
            Training("ExtensionTrainer", True, 5),
        ),
        ("nnUNetTrainerDA5", {"num_epochs": 3}, Training("ExtensionTrainerDA5", True, 3)),
        ("CateNormTrainer", {"num_epochs": 3}, Training("CateNormTrainer", True, 3)),
        (
            "CateNormTrainer_9epochs",
            {"num_epochs": 3},
            Training("CateNormTrainer_9epochs", True, 9),
        ),
        ("CateNormTrainer", {}, Training("CateNormTrainer", True, 1000)),
    ],
)
def test_the_class_that_takes_the_settings_trains(
    trainer: str, settings: dict[str, Any], expected: Training
) -> None:
    assert training(trainer, **settings) == expected


def test_a_trainer_that_does_not_exist_is_a_problem_of_its_arm() -> None:
    found = training("CateNromTrainer")
    assert "There is no trainer called CateNromTrainer" in found.problem
    assert "CateNormTrainer" in found.problem


@pytest.mark.parametrize(
    ("trainer", "settings", "message"),
    [
        ("CateNormTrainer", {"catenorm": {"reductoin": 4}}, 'unknown setting "reductoin"'),
        ("CateNormTrainer", {"catenorm": {"reduction": 0}}, "greater than or equal to 1"),
        ("CateNormTrainer", {"epochs": 3}, 'unknown setting "epochs"'),
        ("nnUNetTrainer", {"catenorm": {"reduction": 4}}, "does not read the settings of catenorm"),
    ],
)
def test_settings_that_are_wrong_or_in_vain_are_a_problem_of_their_arm(
    trainer: str, settings: dict[str, Any], message: str
) -> None:
    assert message in training(trainer, **settings).problem


def test_users_trainers_are_found_and_must_read_the_settings_they_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(USERS)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert training("MyTrainer").problem == ""
    assert "reads no settings" in training("MyTrainer", num_epochs=3).problem
    assert training("MyExtension", num_epochs=3) == Training("MyExtension", True, 3)
    assert training("MySettable", mine={"weight": 2.0}).problem == ""
    assert 'unknown setting "wieght"' in training("MySettable", mine={"wieght": 2.0}).problem
    assert 'unknown setting "mien"' in training("MySettable", mien={"weight": 2.0}).problem


def test_a_users_trainer_that_cannot_be_imported_is_a_problem_of_its_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("class BrokenTrainer(Missing): pass")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert "BrokenTrainer" in training("BrokenTrainer").problem
