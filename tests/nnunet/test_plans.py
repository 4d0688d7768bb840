import json
import os
from pathlib import Path

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet.plans import PlansFile, open_plans

PLANS = {"configurations": {"2d": {"batch_size": 2}, "child": {"inherits_from": "2d"}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed data set 4 with nnUNetPlans, the parent being nnUNet_preprocessed."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset004_Toy"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    return folder


def message(dataset: str, plans: str = "nnUNetPlans") -> str:
    with pytest.raises(UserError) as caught:
        open_plans(dataset, plans)
    return str(caught.value)


@pytest.mark.parametrize("dataset", ["4", "04", "004", "Toy", "Dataset004_Toy"])
@pytest.mark.parametrize("plans", ["nnUNetPlans", "nnUNetPlans.json"])
def test_plans_are_found_by_number_or_name(folder: Path, dataset: str, plans: str) -> None:
    opened = open_plans(dataset, plans)
    assert opened.path == (folder / "nnUNetPlans.json").resolve()
    assert opened.name == "nnUNetPlans"


@pytest.mark.parametrize("dataset", ["5", "40", "Dataset004", "toy", "../x", "²"])
def test_unknown_data_set_gets_what_there_is(folder: Path, dataset: str) -> None:
    assert f'no data set "{dataset}"' in message(dataset)
    assert "Dataset004_Toy" in message(dataset)


@pytest.mark.parametrize("plans", ["nnUnetPlans", "dataset_fingerprint", "../Dataset004_Toy/x"])
def test_unknown_plans_get_what_there_is(folder: Path, plans: str) -> None:
    assert f'no plans "{plans}"' in message("4", plans)
    assert "There are: nnUNetPlans." in message("4", plans)


def test_data_set_without_plans_is_told_how_to_get_some(folder: Path) -> None:
    (folder / "nnUNetPlans.json").unlink()
    assert "There are none." in message("4")
    assert "nnUNetv2_plan_and_preprocess" in message("4")


def test_file_that_is_not_a_plans_file_is_refused(folder: Path) -> None:
    assert "not valid JSON" in message("4", "broken")
    assert 'no "configurations"' in message("4", "dataset")


def test_inheritance_in_a_circle_is_refused(folder: Path) -> None:
    plans = open_plans("4", "nnUNetPlans")
    plans.configurations["2d"]["inherits_from"] = "child"
    with pytest.raises(UserError, match="child -> 2d -> child"):
        plans.resolve("child")


def test_missing_parent_is_refused_with_its_heir(folder: Path) -> None:
    plans = open_plans("4", "nnUNetPlans")
    del plans.configurations["2d"]
    with pytest.raises(UserError, match='no configuration "2d", from which "child" inherits'):
        plans.resolve("child")


def test_nearest_ancestor_wins(folder: Path) -> None:
    plans = open_plans("4", "nnUNetPlans")
    plans.configurations["child"]["batch_size"] = 5
    assert plans.resolve("child") == {"batch_size": 5, "inherits_from": "2d"}


def test_failed_writing_leaves_the_old_file_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    plans = PlansFile(folder / "nnUNetPlans.json")
    plans.configurations["new"] = {}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left on device"):
        plans.save()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
