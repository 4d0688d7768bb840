"""Planners on the fingerprint of large images, without the images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)

from nnunet_ext import planners
from nnunet_ext._common.errors import UserError
from nnunet_ext.memory.peaks import simulate
from nnunet_ext.memory.steps import Training
from nnunet_ext.nnunet import lookup
from nnunet_ext.planners import method

DATASET = "Dataset779_Large"
SHAPE = [120, 300, 300]
CASES = 10


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preprocessed folder of a data set of large CT images, of which only one exists."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / DATASET).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # 0 stops stock planners
    raw, preprocessed = tmp_path / "raw" / DATASET, tmp_path / "preprocessed" / DATASET
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    for folder, name in (("imagesTr", "case_0000.nii.gz"), ("labelsTr", "case.nii.gz")):
        (raw / folder).mkdir()
        image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8))
        sitk.WriteImage(image, raw / folder / name)
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * CASES,
        "shapes_after_crop": [SHAPE] * CASES,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return preprocessed


def plan(planner: type[ExperimentPlanner], **options: Any) -> dict[str, Any]:
    configurations: dict[str, Any] = planner(DATASET, **options).plan_experiment()["configurations"]
    return configurations


def networks(configuration: dict[str, Any]) -> str:
    name: str = configuration["architecture"]["network_class_name"]
    return name


def voxels(configuration: dict[str, Any]) -> int:
    return int(np.prod(configuration["patch_size"])) * configuration["batch_size"]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (planners.CateNormPlanner, ExperimentPlanner),
        # the other methods' differ in the trainer alone, whose steps are simulated elsewhere
        pytest.param(planners.ConDSegPlanner, ExperimentPlanner, marks=pytest.mark.slow),
        pytest.param(planners.RAMDSIRPlanner, ExperimentPlanner, marks=pytest.mark.slow),
        pytest.param(
            planners.MindTheGapResEncPlanner, nnUNetPlannerResEncM, marks=pytest.mark.slow
        ),
    ],
)
def test_plans_of_methods_fill_the_memory_that_stock_networks_fill_and_no_more(
    ours: type[ExperimentPlanner], stock: type[ExperimentPlanner]
) -> None:
    planner = ours(DATASET)
    smaller, plain = planner.plan_experiment(), plan(stock)
    trainer = lookup.load("trainers", planner.trainer_name)
    for name in ("2d", "3d_fullres"):
        planned = smaller["configurations"][name]
        assert 0.3 * voxels(plain[name]) < voxels(planned) < voxels(plain[name])
        assert networks(planned) == networks(plain[name])
        training = Training(trainer, smaller, name, planner.dataset_json)
        held = max(peak.total for peak in simulate(training, steps_only=True).values())
        target = planner._targets[len(planned["patch_size"])].total
        # a larger patch is tried below 0.85, but a step may be a quarter of the patch
        assert 0.8 * target < held <= target


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("share", "patch", "image", "filled"),
    [
        (0.84, (96, 128, 128), (155, 240, 240), (112, 128, 128)),  # by a sixth, to 0.98
        (0.84, (96, 128, 128), (100, 240, 240), (96, 128, 128)),  # the image is not so large,
        (0.84, (64, 128, 128), (155, 240, 240), (64, 128, 128)),  # a step would exceed it,
        (0.86, (96, 128, 128), (155, 240, 240), (96, 128, 128)),  # enough
    ],
)
def test_memory_that_nnunets_steps_of_the_patch_leave_unused_is_filled(
    share: float, patch: tuple[int, ...], image: tuple[int, ...], filled: tuple[int, ...]
) -> None:
    planner = planners.RAMDSIRPlanner(DATASET)
    voxels = float(np.prod(patch))

    def held(plan: dict[str, Any]) -> method.Held:
        return method.Held(0, share / 2 * np.prod(plan["patch_size"]) / voxels)

    planner._held = held
    strides = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 2]]  # so that steps are 16, 32 and 32
    plan = {
        "patch_size": patch,
        "batch_size": planner.UNet_min_batch_size,
        "architecture": {"arch_kwargs": {"strides": strides}},
    }
    assert planner._filled(plan, image, 1.0)["patch_size"] == filled
    larger = plan | {"batch_size": 3}
    assert planner._filled(larger, image, 1.0) == larger


@pytest.mark.usefixtures("large")
def test_where_images_and_not_memory_limit_a_plan_nothing_is_simulated(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = json.loads((large / "dataset_fingerprint.json").read_text())
    fingerprint["shapes_after_crop"] = [[36, 50, 35]] * CASES
    (large / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    monkeypatch.setattr(method, "simulate", None)
    small, stock = plan(planners.CateNormPlanner), plan(ExperimentPlanner)
    for name in ("2d", "3d_fullres"):
        assert voxels(small[name]) == voxels(stock[name])


def test_compact_plans_stay_small_for_large_images(large: Path) -> None:
    compact = plan(planners.CompactPlanner)
    assert voxels(compact["3d_fullres"]) <= 2 * 50**3
    assert voxels(compact["2d"]) <= 16 * 256**2
    for name in ("2d", "3d_fullres"):
        # every decoder here finds the four stages that it needs
        assert compact[name]["architecture"]["arch_kwargs"]["n_stages"] >= 4
    assert json.loads((large / "CompactPlans.json").read_text())["plans_name"] == "CompactPlans"


@pytest.mark.usefixtures("large")
def test_preprocessed_data_are_shared_with_stock_plans_where_they_are_the_same() -> None:
    def identifiers(**options: Any) -> dict[str, str]:
        plans = plan(planners.CompactPlanner, **options)
        return {name: each["data_identifier"] for name, each in plans.items() if len(each) > 3}

    shared = identifiers()
    assert shared["3d_fullres"] == "nnUNetPlans_3d_fullres"
    assert shared["2d"] == "nnUNetPlans_2d"
    assert shared.get("3d_lowres", "CompactPlans_3d_lowres") == "CompactPlans_3d_lowres"
    other = identifiers(overwrite_target_spacing=[2.0, 2.0, 2.0], plans_name="Coarse")
    assert other["3d_fullres"] == "Coarse_3d_fullres"


@pytest.mark.usefixtures("large")
def test_planning_works_without_augmentation_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert "3d_fullres" in plan(planners.CompactPlanner)


@pytest.mark.usefixtures("large")
def test_a_larger_memory_target_gives_larger_patches_or_batches() -> None:
    small = plan(planners.CompactPlanner)
    large = plan(planners.CompactPlanner, gpu_memory_target_in_gb=0.4)
    assert voxels(large["3d_fullres"]) > voxels(small["3d_fullres"])


@pytest.mark.usefixtures("large")
def test_condseg_plans_have_names_of_their_own() -> None:
    names = ("ConDSegPlanner", "ConDSegResEncPlanner")
    found = [getattr(planners, name)(DATASET).plans_identifier for name in names]
    assert found == ["ConDSegPlans", "ConDSegResEncPlans"]


def test_images_too_small_for_condseg_are_refused_by_name(large: Path) -> None:
    fingerprint = json.loads((large / "dataset_fingerprint.json").read_text())
    fingerprint["shapes_after_crop"] = [[12, 12, 12]] * CASES
    (large / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    with pytest.raises(UserError, match="at least 4 stages, but the planned network has 2"):
        plan(planners.ConDSegPlanner)


@pytest.mark.parametrize("shape", [[12, 12, 12], [8, 8, 8], [3, 9, 10], [4, 5, 5], [1, 8, 8]])
def test_compact_networks_for_tiny_images_are_deep_enough_for_deep_supervision(
    large: Path, shape: list[int]
) -> None:
    fingerprint = json.loads((large / "dataset_fingerprint.json").read_text())
    fingerprint["shapes_after_crop"] = [shape] * CASES
    (large / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    planned = plan(planners.CompactPlanner)
    assert {"2d", "3d_fullres"} & planned.keys()
    for configuration in planned.values():
        if "patch_size" in configuration:
            assert configuration["architecture"]["arch_kwargs"]["n_stages"] >= 3
            image = configuration["median_image_size_in_voxels"]
            assert list(image) == shape[-len(configuration["patch_size"]) :]
