import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from nnunet_ext import planners, trainers
from nnunet_ext.settings import TrainingSettings


@pytest.fixture(scope="module")
def methods() -> dict[str, type]:
    from nnunet_ext.cli.catalogue import method_settings

    return method_settings()


def test_list_shows_every_trainer_planner_and_setting_uncut(
    cli: Callable[..., Any], methods: dict[str, type]
) -> None:
    outcome = cli("list")
    assert outcome.code == 0
    settings = [field.name for field in dataclasses.fields(TrainingSettings)]
    for method, settings_class in methods.items():
        names = [field.name for field in dataclasses.fields(settings_class)]
        settings += [f"{method}.{name}" for name in names]
    words = outcome.out.split()
    assert {*trainers.MODULES, *planners.MODULES, *settings} <= set(words)
    assert "…" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_one_trainer_is_shown_with_its_paper_and_commands(cli: Callable[..., Any]) -> None:
    outcome = cli("list", "CateNormTrainer")
    assert outcome.code == 0
    assert trainers.CateNormTrainer.paper in " ".join(outcome.out.split())
    for command in (
        "nnUNetv2_plan_and_preprocess -d DATASET -pl CateNormPlanner",
        "nnUNetv2_train DATASET 3d_fullres FOLD -tr CateNormTrainer -p CateNormPlans",
        "nnUNetv2_predict -d DATASET -c 3d_fullres -f FOLD -tr CateNormTrainer -p CateNormPlans",
        "nnunet-ext configure DATASET -p CateNormPlans -c 3d_fullres --name ",
    ):
        assert f"\n{command}" in outcome.out


def test_name_with_a_length_of_training_is_a_trainer(cli: Callable[..., Any]) -> None:
    for _ in range(2):  # the second time the class exists already
        outcome = cli("list", "CateNormTrainer_250epochs")
        assert outcome.code == 0
        assert " -tr CateNormTrainer_250epochs -p CateNormPlans" in outcome.out


def test_twin_of_a_stock_trainer_is_a_trainer(cli: Callable[..., Any]) -> None:
    outcome = cli("list", "ExtensionTrainerDA5")
    assert outcome.code == 0
    assert "nnUNetTrainerDA5 with settings from the plans" in outcome.out


@pytest.mark.parametrize("planner", list(planners.MODULES))
def test_planner_is_shown_with_its_plans_name(cli: Callable[..., Any], planner: str) -> None:
    outcome = cli("list", planner)
    assert outcome.code == 0
    assert f"-pl {planner}" in outcome.out
    assert f"-p {getattr(planners, planner).default_plans_name}" in outcome.out


@pytest.mark.parametrize("name", ["CatenormTrainr", "MODULES", "import_module", "_x", ""])
def test_name_of_nothing_is_refused_with_what_there_is(cli: Callable[..., Any], name: str) -> None:
    outcome = cli("list", name)
    assert outcome.code == 1
    assert outcome.out == ""
    assert f'no trainer or planner "{name}"' in outcome.err
    assert "CateNormTrainer" in outcome.err
