"""Planning, folds and configurations before the first training; what does not serve is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import prepare as preparing
from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.layout import Cell, Layout
from nnunet_ext.benchmark.prepare import Prepared, planner_of, read_prepared
from nnunet_ext.domains.splits import nnunets_folds
from nnunet_ext.nnunet import commands, discovery
from tests.tiny import BASE, CASES, CONFIGURATION, DATASET, PLANS, QUICK, TWO_SITES, World

MakeWorld = Callable[..., World]
ARMS: dict[str, Any] = {
    "stock": {"trainer": "nnUNetTrainer"},
    "wide": {"trainer": "CateNormTrainer", "settings": {"catenorm": {"reduction": 1}}},
}


def layout_of(world: World, **changes: Any) -> Layout:
    content = {
        "dataset": DATASET,
        "plans": PLANS,
        "configurations": [BASE],
        "folds": [0],
        "arms": ARMS,
        **changes,
    }
    folder = world.root / "benchmark"
    spec.claim(folder, spec.from_content(content, "test"))
    return Layout(folder)


def prepare(world: World, **changes: Any) -> tuple[Layout, Prepared]:
    discovery.activate(force=True)
    layout = layout_of(world, **changes)
    return layout, preparing.prepare(layout, print)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    world = make_world()
    world.write_raw()
    return world


def test_every_arm_and_seed_gets_a_configuration_and_the_users_plans_stay(world: World) -> None:
    users = (world.root / "preprocessed" / DATASET / f"{PLANS}.json").read_text()
    layout, _ = prepare(world, seeds=2, settings={"num_epochs": 7})
    configurations = json.loads((layout.dataset / f"{PLANS}.json").read_text())["configurations"]
    made = configurations[Cell("wide", BASE, 1, 0).trained_configuration]
    assert made["inherits_from"] == BASE
    assert made["nnunet_ext"] == {"num_epochs": 7, "catenorm": {"reduction": 1}, "seed": 1}
    assert (world.root / "preprocessed" / DATASET / f"{PLANS}.json").read_text() == users


def test_settings_that_the_plans_hold_already_stay_in_force(world: World) -> None:
    layout, _ = prepare(world, configurations=[CONFIGURATION], settings={"num_epochs": 7})
    configurations = json.loads((layout.dataset / f"{PLANS}.json").read_text())["configurations"]
    made = configurations[Cell("stock", CONFIGURATION, 0, 0).trained_configuration]
    assert made["nnunet_ext"] == QUICK | {"num_epochs": 7, "seed": 0}


def test_a_trainer_that_takes_no_seed_gets_none(world: World) -> None:
    layout, prepared = prepare(world)
    configurations = json.loads((layout.dataset / f"{PLANS}.json").read_text())["configurations"]
    made = configurations[Cell("stock", BASE, 0, 0).trained_configuration]
    assert made["nnunet_ext"] == {}
    assert not prepared.trainings["stock"].seeded


def test_a_trainer_that_needs_domains_is_refused_before_it_trains_in_vain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_ext.trainers.CateNormTrainer.requires_domains", True)
    _, prepared = prepare(world)
    assert "CateNormTrainer needs the domain" in prepared.trainings["wide"].problem
    assert f"nnunet-ext domains {DATASET}" in prepared.trainings["wide"].problem
    assert not prepared.trainings["stock"].problem


def test_a_trainer_that_needs_domains_is_prepared_where_each_fold_has_two(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_ext.trainers.CateNormTrainer.requires_domains", True)
    world = make_world(domains=TWO_SITES)
    world.write_raw()
    _, prepared = prepare(world)
    assert not prepared.trainings["wide"].problem
    assert prepared.domains == {0: sorted(set(TWO_SITES))}


def test_images_are_links_and_labels_and_folds_the_benchmarks_own(world: World) -> None:
    layout, prepared = prepare(world)
    assert (layout.dataset / f"{PLANS}_data").resolve() == (
        world.root / "preprocessed" / DATASET / f"{PLANS}_data"
    )
    assert len(list(layout.truth.glob("*.nii.gz"))) == len(CASES)
    assert prepared.folds == {0: ["case_3"]}  # the user's splits_final.json
    assert read_prepared(layout) == prepared


def test_folds_can_be_given_by_patterns(world: World) -> None:
    splits = [{"validation": "case_[01]"}, {"validation": "case_0", "training": "case_[23]"}]
    layout, prepared = prepare(world, splits=splits, folds=[0, 1])
    assert prepared.folds == {0: ["case_0", "case_1"], 1: ["case_0"]}
    written = json.loads((layout.dataset / "splits_final.json").read_text())
    assert written[1] == {"train": ["case_2", "case_3"], "val": ["case_0"]}


def test_folds_do_not_change_once_there_are_trainings(world: World) -> None:
    prepare(world)
    users = world.root / "preprocessed" / DATASET / "splits_final.json"
    users.write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
    assert prepare(world)[1].folds == {0: ["case_3"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": [3]}, "There is no fold 3"),
        ({"folds": [0, 1, 2, 3, 4]}, "splits_final.json has the folds 0. Say which to train"),
        ({"splits": [{"validation": "patient.*"}]}, "no case matches 'patient.*'"),
        ({"splits": [{"validation": ".*"}]}, "no case is left to train by '.*'"),
        ({"configurations": ["2d"]}, 'no configuration "2d"'),
        ({"plans": "SomePlans"}, "no planner is known"),
        ({"plan_changes": {"patch_size": [16, 16]}}, "multiple of"),
        ({"plan_changes": {"patch_size": [16, 16, 12]}}, "multiple of"),
    ],
)
def test_what_the_data_set_cannot_serve_is_named(
    world: World, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        prepare(world, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": [3]}, "There is no fold 3"),
        ({"arms": {"stock": {"trainer": "CateNormTrainr"}}}, "None of the arms can be trained"),
    ],
)
def test_mistakes_are_found_before_hours_of_preprocessing(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    shutil.rmtree(world.root / "preprocessed" / DATASET / f"{PLANS}_data")
    monkeypatch.setattr(commands, "run_command", lambda *_: pytest.fail("preprocessed in vain"))
    with pytest.raises(UserError) as error:
        prepare(world, **changes)
    assert message in str(error.value)
    if "arms" in changes:
        assert "Did you mean CateNormTrainer?" in capsys.readouterr().out


def test_configurations_that_inherit_in_a_circle_are_refused(world: World) -> None:
    path = world.root / "preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["configurations"][BASE]["inherits_from"] = CONFIGURATION
    path.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=f"circle, {BASE} -> {CONFIGURATION} -> {BASE}"):
        prepare(world)


SCANS = [f"{modality}_{patient:02d}" for patient in range(10) for modality in ("CT", "MR")]


@pytest.mark.parametrize("written", [False, True], ids=["none yet", "nnU-Net's own"])
@pytest.mark.parametrize("domains", [False, True])
def test_default_folds_keep_the_scans_of_a_subject_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool, domains: bool
) -> None:
    (tmp_path / DATASET).mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    if written:
        (tmp_path / DATASET / "splits_final.json").write_text(json.dumps(nnunets_folds(SCANS)))
    content = {"dataset": DATASET, "arms": ARMS, "subject": r"_(\d+)$"}
    spec.claim(tmp_path / "benchmark", spec.from_content(content, "test"))
    said: list[str] = []
    known = {case: case[:2] for case in SCANS} if domains else {}
    splits = preparing._splits(Layout(tmp_path / "benchmark"), SCANS, known, said.append)
    for split in splits:
        held_out = {case[3:] for case in split["val"]}
        assert len(split["val"]) == 2 * len(held_out) == 4
        assert not held_out & {case[3:] for case in split["train"]}
    assert sorted(case for split in splits for case in split["val"]) == sorted(SCANS)
    assert said == []


def test_hand_made_folds_stay_and_subjects_on_both_sides_are_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    users = world.root / "preprocessed" / DATASET / "splits_final.json"
    users.write_text(json.dumps([{"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]}]))
    _, prepared = prepare(world, subject="(case)")
    assert prepared.folds == {0: ["case_2", "case_3"]}
    assert "fold 0 trains on other cases of 1 held-out subjects, so" in capsys.readouterr().out


def test_the_second_stage_of_a_cascade_is_refused(make_world: MakeWorld) -> None:
    world = make_world(cascade=True)
    world.write_raw()
    with pytest.raises(UserError, match="second stage of a cascade"):
        prepare(world, configurations=[CONFIGURATION])


def test_plans_may_be_changed_to_fit_the_means(world: World) -> None:
    layout, _ = prepare(world, plan_changes={"patch_size": [8, 16, 16], "batch_size": 4})
    configurations = json.loads((layout.dataset / f"{PLANS}.json").read_text())["configurations"]
    made = configurations[Cell("stock", BASE, 0, 0).trained_configuration]
    assert (made["patch_size"], made["batch_size"]) == ([8, 16, 16], 4)


def test_what_is_not_preprocessed_is_preprocessed_with_nnunets_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = world.root / "preprocessed" / DATASET / f"{PLANS}_data"
    away = data.rename(data.with_name("away"))
    called: list[list[str]] = []

    def preprocess(
        command: Sequence[str], _log: Path, variables: Mapping[str, str], *_: Any
    ) -> None:
        called.append(list(command))
        # 0, which is right for trainings, stops nnU-Net's planners
        assert int(variables["nnUNet_n_proc_DA"]) > 0
        away.rename(data)

    monkeypatch.setattr(commands, "run_command", preprocess)
    prepare(world)
    prepare(world)
    (command,) = called
    assert command[:5] == ["nnUNetv2_preprocess", "-d", "777", "-plans_name", PLANS]
    assert command[5:7] == ["-c", BASE]


def test_preprocessing_that_leaves_nothing_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = world.root / "preprocessed" / DATASET / f"{PLANS}_data"
    data.rename(data.with_name("away"))
    monkeypatch.setattr(commands, "run_command", lambda *_: None)
    with pytest.raises(UserError, match="does not hold all 4 cases"):
        prepare(world)


@pytest.mark.parametrize(
    ("plans", "planner"),
    [
        ("nnUNetPlans", "ExperimentPlanner"),
        ("nnUNetResEncUNetLPlans", "nnUNetPlannerResEncL"),
        ("CompactPlans", "CompactPlanner"),
        ("CateNormPlans", "CateNormPlanner"),
    ],
)
def test_plans_are_made_by_the_planner_that_names_them_so(plans: str, planner: str) -> None:
    assert planner_of(plans) == planner


def test_stock_planners_name_their_plans_as_we_think() -> None:
    from inspect import signature

    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = str(Path(nnunetv2.__path__[0], "experiment_planning"))
    for plans, planner in preparing.STOCK_PLANNERS.items():
        found = recursive_find_python_class(folder, planner, "nnunetv2.experiment_planning")
        assert signature(found).parameters["plans_name"].default == plans


def test_noisy_labels_are_for_training_and_clean_ones_for_the_scores(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preprocess(command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        assert "--verify_dataset_integrity" in command  # labels that dataset.json does not name
        users = world.root / "preprocessed" / DATASET
        own = Path(environment["nnUNet_preprocessed"], DATASET)
        assert environment["nnUNet_raw"] != str(world.root / "raw")
        own.mkdir()
        for path in users.iterdir():
            (own / path.name).symlink_to(path)

    monkeypatch.setattr(commands, "run_command", preprocess)
    monkeypatch.setattr(preparing, "planner_of", lambda _: "CompactPlanner")
    noise = {"drop_label": 2, "share": 0.5}
    layout, prepared = prepare(world, label_noise=noise)
    assert len(prepared.noisy) == 2
    assert prepared.folds == {0: ["case_3"]}  # the user's splits_final.json
    raw = layout.noisy_raw / DATASET
    described = json.loads((raw / "dataset.json").read_text())
    for case in CASES:
        noisy = sitk.GetArrayFromImage(sitk.ReadImage(described["dataset"][case]["label"]))
        clean = sitk.GetArrayFromImage(sitk.ReadImage(layout.truth / f"{case}.nii.gz"))
        assert (noisy == 2).any() == (case not in prepared.noisy)
        assert (clean == 2).any()


def test_held_out_images_are_degraded_once(world: World) -> None:
    layout, _ = prepare(world, degradations={"noise": {"noise": 1.0}})
    (image,) = (layout.degraded / "noise" / "fold_0").iterdir()
    assert image.name == "case_3_0000.nii.gz"
    before = image.stat().st_mtime_ns
    prepare(world, degradations={"noise": {"noise": 1.0}})
    assert image.stat().st_mtime_ns == before
