import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from nnunet_ext import registry
from nnunet_ext.registry import PLANNERS, TRAINERS
from nnunet_ext.settings import TrainingSettings


def test_list_shows_every_trainer_planner_and_setting_uncut(cli: Callable[..., Any]) -> None:
    outcome = cli("list")
    assert outcome.code == 0
    settings = [field.name for field in dataclasses.fields(TrainingSettings)]
    for method, settings_class in registry.settings_classes().items():
        names = [field.name for field in dataclasses.fields(settings_class)]
        settings += [f"{method}.{name}" for name in names]
    words = outcome.out.split()
    assert {*TRAINERS, *PLANNERS, *settings} <= set(words)
    assert "…" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_one_trainer_is_shown_with_its_paper_and_commands(cli: Callable[..., Any]) -> None:
    outcome = cli("list", "CateNormTrainer")
    assert outcome.code == 0
    entry = TRAINERS["CateNormTrainer"]
    assert f"{entry.paper} {entry.link}" in " ".join(outcome.out.split())
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


@pytest.mark.parametrize("planner", list(PLANNERS))
def test_planner_is_shown_with_its_plans_name(cli: Callable[..., Any], planner: str) -> None:
    outcome = cli("list", planner)
    assert outcome.code == 0
    assert f"-pl {planner}" in outcome.out
    assert f"-p {PLANNERS[planner].plans}" in outcome.out


@pytest.mark.parametrize("name", ["CatenormTrainr", "TRAINERS", "ExtensionTrainerDA55", "_x", ""])
def test_name_of_nothing_is_refused_with_what_there_is(cli: Callable[..., Any], name: str) -> None:
    outcome = cli("list", name)
    assert outcome.code == 1
    assert outcome.out == ""
    assert f'no trainer or planner "{name}"' in outcome.err
    assert "CateNormTrainer" in outcome.err


def test_other_programs_get_the_same_as_json(cli: Callable[..., Any]) -> None:
    found = json.loads(cli("list", "--json").out)
    assert [each["name"] for each in found["trainers"]] == list(TRAINERS)
    assert {each["name"]: each["plans"] for each in found["planners"]} == {
        name: planner.plans for name, planner in PLANNERS.items()
    }
    names = [field.name for field in dataclasses.fields(TrainingSettings)]
    assert [each["name"] for each in found["training_settings"]] == names
    one = json.loads(cli("list", "CateNormTrainer_5epochs", "--json").out)
    assert one["name"] == "CateNormTrainer_5epochs"
    assert one["link"] == TRAINERS["CateNormTrainer"].link
    assert "reduction" in [each["name"] for each in one["settings"]["catenorm"]]
    assert " -tr CateNormTrainer_5epochs -p CateNormPlans" in one["commands"]["Train"]


# ---------------------------------------------------------------------------------- other packages

THEIRS = """
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    strength: Annotated[float, Field(ge=0, description="how much of it")] = 0.5


class TheirTrainer:
    '''Trains as they like it.

    At length.
    '''

    paper = "They et al., 2026"
    cost = "nothing"

    @classmethod
    def collected_method_settings(cls):
        return {"mine": Settings}


class TheirPlanner:
    purpose = "plans for them"

    def __init__(self, dataset, plans_name="TheirPlans"):
        pass
"""


@pytest.fixture
def theirs(install: Callable[..., None]) -> None:
    trainers = dict.fromkeys(("TheirTrainer", "CateNormTrainer"), "TheirTrainer")
    install("theirs", THEIRS, trainers=trainers, planners={"TheirPlanner": "TheirPlanner"})
    trainers = dict.fromkeys(("BrokenTrainer", "nnUNetTrainerDA5"), "X")
    install("broken", "import no_such_module", trainers=trainers)


@pytest.mark.usefixtures("theirs")
def test_classes_of_other_packages_are_listed_with_what_they_say_of_themselves(
    cli: Callable[..., Any],
) -> None:
    outcome = cli("list")
    assert outcome.code == 0
    said = " ".join(outcome.out.split())
    for name in ("TheirTrainer", "TheirPlanner", "mine.strength", *TRAINERS, *PLANNERS):
        assert name in outcome.out.split()
    for text in ("Trains as they like it.", "They et al., 2026", "plans for them"):
        assert text in said
    assert "At length" not in said


@pytest.mark.usefixtures("theirs")
def test_broken_one_is_listed_with_the_reason_and_one_of_a_taken_name_as_unused(
    cli: Callable[..., Any],
) -> None:
    listed = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in cli("list").out.splitlines()
        if line[:1].strip()
    }
    assert listed["BrokenTrainer"].startswith("broken:")
    assert listed["nnUNetTrainerDA5"].startswith("not used: nnU-Net has")
    assert listed["CateNormTrainer"].startswith("not used: nnunet_ext has")  # the latter of two
    assert cli("list", "BrokenTrainer").code == 0
    assert "No module named 'no_such_module'" in cli("list", "BrokenTrainer").out


@pytest.mark.usefixtures("theirs")
def test_one_of_another_package_is_shown_with_its_commands(cli: Callable[..., Any]) -> None:
    out = cli("list", "TheirTrainer_20epochs").out
    assert " -tr TheirTrainer_20epochs" in out
    assert "--set mine.strength=0.5" in out
    assert " -p TheirPlans" in cli("list", "TheirPlanner").out


def test_reader_may_leave_after_the_first_line() -> None:
    command = [sys.executable, "-m", "nnunet_ext", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()  # at once, so that every line finds nobody
        assert listing.stderr.read() == b""
        assert listing.wait() == 0
