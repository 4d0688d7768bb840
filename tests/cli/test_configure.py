import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIGURATIONS: dict[str, Any] = {
    "2d": {"batch_size": 12},
    "3d_lowres": {"architecture": {}, "next_stage": "3d_cascade_fullres"},
    "3d_fullres": {"architecture": {}, "nnunet_ext": {"catenorm": {"norm": "batch"}, "seed": 7}},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    "by_hand": {"inherits_from": "2d", "batch_size": 3},
    "mine": {"inherits_from": "2d", "batch_size": 4, "nnunet_ext": {"num_epochs": 9}},
}

Configure = Callable[..., Any]


@pytest.fixture
def plans_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed data set 4 with CateNormPlans."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    path = tmp_path / "Dataset004_Toy" / "CateNormPlans.json"
    path.parent.mkdir()
    plans = {
        "plans_name": "CateNormPlans",
        "experiment_planner_used": "CateNormPlanner",
        "configurations": CONFIGURATIONS,
        "a_last_key": "é",
    }
    path.write_text(json.dumps(plans, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def configure(cli: Callable[..., Any], plans_path: Path) -> Configure:
    """Call ``configure`` on these plans."""
    return lambda *arguments: cli("configure", "4", "-p", "CateNormPlans", *arguments)


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["configurations"]


# -------------------------------------------------------------------------------------- writing


def test_new_configuration_inherits_and_copies_the_settings_of_its_base(
    configure: Configure, plans_path: Path
) -> None:
    outcome = configure("--name", "r4", "--set", "catenorm.reduction=4", "--set", "seed=1")
    assert outcome.code == 0, outcome.err
    assert written(plans_path)["r4"] == {
        "inherits_from": "3d_fullres",
        "nnunet_ext": {"catenorm": {"norm": "batch", "reduction": 4}, "seed": 1},
    }


def test_settings_of_the_base_are_found_through_inheritance(
    configure: Configure, plans_path: Path
) -> None:
    outcome = configure("-c", "3d_cascade_fullres", "--name", "short", "--set", "num_epochs=2")
    assert outcome.code == 0, outcome.err
    settings = written(plans_path)["short"]["nnunet_ext"]
    assert settings == {"catenorm": {"norm": "batch"}, "seed": 7, "num_epochs": 2}


def test_everything_else_in_the_plans_stays_in_its_order(
    configure: Configure, plans_path: Path
) -> None:
    before = json.loads(plans_path.read_text(encoding="utf-8"))
    mode = plans_path.stat().st_mode
    assert configure("-c", "2d", "--name", "new", "--set", "num_epochs=2").code == 0
    after = json.loads(plans_path.read_text(encoding="utf-8"))
    assert list(after) == list(before)
    assert list(after["configurations"]) == [*CONFIGURATIONS, "new"]
    del after["configurations"]["new"]
    assert after == before
    assert plans_path.stat().st_mode == mode
    assert [path.name for path in plans_path.parent.iterdir()] == ["CateNormPlans.json"]


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("num_epochs=3", {"num_epochs": 3}),
        ("optimizer=adam", {"optimizer": "adam"}),
        ('optimizer="adam"', {"optimizer": "adam"}),
        ("initial_lr=1e-3", {"initial_lr": 0.001}),
        ("progress_bar=False", {"progress_bar": False}),
        ("num_epochs = null", {"num_epochs": None}),
        ("catenorm.decoder_stages=[0, 1]", {"catenorm": {"decoder_stages": [0, 1]}}),
    ],
)
def test_values_are_json_or_else_text(
    configure: Configure, plans_path: Path, assignment: str, value: dict[str, Any]
) -> None:
    assert configure("-c", "2d", "--name", "new", "--set", assignment).code == 0
    assert written(plans_path)["new"]["nnunet_ext"] == value


def test_command_to_train_is_printed_for_the_trainer_of_these_plans(configure: Configure) -> None:
    outcome = configure("-c", "2d", "--name", "new", "--set", "num_epochs=2")
    assert "\nnnUNetv2_train 4 new FOLD -tr CateNormTrainer -p CateNormPlans\n" in outcome.out


@pytest.mark.parametrize("folds", [None, 3])
def test_folds_to_train_are_those_of_the_data_set(
    configure: Configure, plans_path: Path, folds: int | None
) -> None:
    if folds is not None:
        splits = [{"train": ["a"], "val": ["b"]}] * folds
        plans_path.with_name("splits_final.json").write_text(json.dumps(splits))
    outcome = configure("-c", "2d", "--name", "new", "--set", "num_epochs=2")
    assert f"for FOLD 0 to {(folds or 5) - 1}:" in outcome.out


def test_data_set_is_known_by_name_as_well(cli: Callable[..., Any], plans_path: Path) -> None:
    outcome = cli(
        *("configure", "Dataset004_Toy", "-p", "CateNormPlans", "-c", "2d"),
        *("--name", "new", "--set", "num_epochs=2"),
    )
    assert outcome.code == 0
    assert "new" in written(plans_path)


def test_overwriting_keeps_what_others_wrote_into_the_configuration(
    configure: Configure, plans_path: Path
) -> None:
    outcome = configure("-c", "2d", "--name", "mine", "--set", "seed=1", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert written(plans_path)["mine"] == {
        "inherits_from": "2d",
        "nnunet_ext": {"seed": 1},
        "batch_size": 4,
    }


def test_linked_plans_file_stays_a_link(
    configure: Configure, plans_path: Path, tmp_path: Path
) -> None:
    target = plans_path.rename(tmp_path / "elsewhere.json")
    plans_path.symlink_to(target)
    assert configure("-c", "2d", "--name", "new", "--set", "seed=1").code == 0
    assert plans_path.is_symlink()
    assert "new" in written(target)


# ------------------------------------------------------------------------------------- cascades


def test_first_stage_learns_to_predict_for_a_new_second_stage(
    configure: Configure, plans_path: Path
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = ("-c", "3d_cascade_fullres", "--name", "cascade", "--set", "num_epochs=2")
    outcome = configure(*arguments)
    assert outcome.code == 0, outcome.err
    assert "nnUNetv2_train 4 3d_lowres FOLD -tr CateNormTrainer -p CateNormPlans --val" in (
        outcome.out
    )
    assert configure(*arguments, "--overwrite").code == 0  # lists it only once
    plans = PlansManager(str(plans_path))
    assert plans.get_configuration("cascade").previous_stage_name == "3d_lowres"
    stages = plans.get_configuration("3d_lowres").next_stage_names
    assert stages == ["3d_cascade_fullres", "cascade"]


# ----------------------------------------------------------------------------- methods of others

MINE = """
from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class MineSettings:
    strength: float = 0.5


class MineTrainer:
    @classmethod
    def collected_method_settings(cls):
        return {"mine": MineSettings}
"""


@pytest.fixture(params=["installed", "folder"])
def mine(
    request: pytest.FixtureRequest,
    install: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trainer with settings of its own, in an installed package or in a user's folder."""
    if request.param == "installed":
        install("mine", MINE, trainers={"MineTrainer": "MineTrainer"})
    else:
        (tmp_path / "users").mkdir()
        (tmp_path / "users" / "of_mine.py").write_text(MINE)
        monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "users"))


@pytest.mark.usefixtures("mine")
def test_settings_of_a_method_of_others_are_written_and_shown(
    configure: Configure, plans_path: Path
) -> None:
    outcome = configure("-c", "2d", "--name", "new", "--set", "mine.strength=2")
    assert outcome.code == 0, outcome.err
    assert written(plans_path)["new"]["nnunet_ext"] == {"mine": {"strength": 2}}
    assert "\nnnUNetv2_train 4 new FOLD -tr MineTrainer -p CateNormPlans\n" in outcome.out
    shown = configure("-c", "new", "--show").out
    assert ["mine.strength", "2.0", "set"] in [line.split() for line in shown.splitlines()]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("mine.strength=much", '"strength" is "much"'),
        ("mine.strnegth=2", "Did you mean strength?"),
        ("mien.strength=2", "Did you mean mine?"),
        ("strength=2", "begin with its name: mine.strength."),
    ],
)
def test_settings_of_a_method_of_others_are_checked(
    configure: Configure, plans_path: Path, assignment: str, message: str
) -> None:
    before = plans_path.read_bytes()
    outcome = configure("-c", "2d", "--name", "new", "--set", assignment)
    assert outcome.code == 1
    assert message in outcome.err
    assert plans_path.read_bytes() == before


def test_users_folder_that_cannot_be_imported_is_told_only_where_it_matters(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "of_mine.py").write_text("import no_such_module\nclass MineTrainer: ...")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "users"))
    new = ("-c", "2d", "--name", "new", "--set")
    outcome = configure(*new, "mine.strength=2")
    assert outcome.code == 1
    assert "cannot be imported" in outcome.err
    assert "no_such_module" in outcome.err
    assert configure(*new, "seed=1").code == 0


# -------------------------------------------------------------------------------------- refusals

NEW = ("--name", "new", "--set", "num_epochs=2")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--name", "new"), ["--set"]),
        (("--set", "num_epochs=2"), ["--name"]),
        (("--name", "new", "--set", "num_epochs"), ["KEY=VALUE"]),
        (("--name", "new", "--set", "=2"), ["KEY=VALUE"]),
        (("--name", "new", "--set", "num_epoch=2"), ["num_epochs?", "Allowed: augmentation"]),
        (("--name", "new", "--set", "num_epochs=0"), ["num_epochs", "greater than or equal to 1"]),
        (("--name", "new", "--set", "num_epochs=ten"), ["num_epochs", "valid integer"]),
        (("--name", "new", "--set", "initial_lr=NaN"), ["initial_lr", "valid number"]),
        (("--name", "new", "--set", "optimizer=lion"), ["'sgd' or 'adam'"]),
        (("--name", "new", "--set", "catenorm=4"), ['"catenorm" must be an object']),
        (("--name", "new", "--set", "seed.x=4"), ["seed is 7"]),
        (("--name", "new", "--set", "catenorm.reducton=4"), ["reduction?", "Allowed: decoder"]),
        (("--name", "new", "--set", "catenorm.reduction=0"), ["reduction", "greater than"]),
        (("--name", "new", "--set", "reduction=4"), ["begin with its name: catenorm.reduction."]),
        (("--name", "new", "--set", "catenorm.encoder_stages=0,1"), ["an array such as [0, 1]"]),
        (("--name", "a__b", "--set", "num_epochs=2"), ['"a__b"', "double underscores"]),
        (("--name", "a/b", "--set", "num_epochs=2"), ['"a/b"']),
        (("--name", "_b", "--set", "num_epochs=2"), ['"_b"']),
        (("--name", "mine", "--set", "num_epochs=2"), ["--overwrite"]),
        (("--name", "by_hand", "--set", "seed=2", "--overwrite"), ["not made by this command"]),
        (("--name", "2d", "--set", "seed=2", "--overwrite", "-c", "3d_lowres"), ["not made by"]),
        (("-c", "2d", "--name", "2d", "--set", "seed=2"), ["not made by", "another --name"]),
        (("-c", "mine", "--name", "mine", "--set", "seed=2", "--overwrite"), ["cannot inherit"]),
        ((*NEW, "-c", "3d_fulres"), ['"3d_fulres"', "Did you mean 3d_fullres?", "There are: 2d"]),
        (("--show", *NEW), ["--show writes nothing"]),
        (("--show", "-c", "nothing"), ['"nothing"', "There are: 2d"]),
    ],
)
def test_mistake_is_explained_and_nothing_is_written(
    configure: Configure, plans_path: Path, arguments: tuple[str, ...], messages: list[str]
) -> None:
    before = plans_path.read_bytes()
    outcome = configure(*arguments)
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert all(message in outcome.err for message in messages), outcome.err
    assert plans_path.read_bytes() == before
    assert list(plans_path.parent.iterdir()) == [plans_path]


# --------------------------------------------------------------------------------------- showing


def test_show_tells_settings_that_are_set_from_defaults(configure: Configure) -> None:
    outcome = configure("-c", "3d_cascade_fullres", "--show")
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["seed", "7", "set"] in lines
    assert ["num_epochs", "null", "default"] in lines
    assert ["catenorm.norm", '"batch"', "set"] in lines
    assert ["catenorm.reduction", "2", "default"] in lines
    assert ["Inheritance:", "3d_cascade_fullres", "->", "3d_fullres"] in lines


def test_show_refuses_settings_that_training_would_refuse(
    configure: Configure, plans_path: Path
) -> None:
    plans_path.write_text(plans_path.read_text(encoding="utf-8").replace('"seed"', '"sed"'))
    outcome = configure("--show")
    assert outcome.code == 1
    assert 'unknown setting "sed". Did you mean seed?' in outcome.err
