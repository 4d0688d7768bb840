"""The benchmark scripts run and record what they promise."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from matplotlib.pyplot import imread
from skimage.io import imread as imread_8bit
from skimage.io import imsave

from nnunet_ext.benchmark import spec
from tests import contract, tiny
from tests.raw import write_raw

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "studies"


def run(script: str, *arguments: str | Path) -> str:
    """What a script prints; in this process, since a new one would import torch for seconds."""
    study = import_module(f"studies.{script}")
    environment, output = dict(os.environ), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            patch.chdir(ROOT)
            study.main()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(1)
    return output.getvalue()


def size_of_picture(script: str, model: Path, folder: Path, *more: str | Path) -> tuple[int, int]:
    """Have a script draw a model, which must stay as it is."""
    before = {file: file.stat().st_mtime_ns for file in model.rglob("*")}
    run(script, model, "--out", folder / "docs" / "picture.png", *more)
    assert {file: file.stat().st_mtime_ns for file in model.rglob("*")} == before
    height, width, _ = imread(folder / "docs" / "picture.png").shape
    return height, width


@pytest.mark.slow
def test_step_cost_compares_arms_with_settings_and_names_its_circumstances(
    make_world: Callable[..., tiny.World], tmp_path: Path
) -> None:
    make_world(regions=True, ignore=True, domains=tiny.TWO_SITES)
    record = tmp_path / "record.json"
    catenorm = 'CateNormTrainer={"catenorm": {"plain_fraction": 0.0}}'
    data = ["--dataset", "777", "--plans", tiny.PLANS, "--configuration", tiny.BASE]
    few = ["--warm-up", "1", "--steps", "2", "--part", "_mix", "--record", record]
    arms = [x for arm in ("ExtensionTrainer", catenorm, "RAMDSIRTrainer") for x in ("--arm", arm)]
    run("step_cost", *data, *arms, *few)
    result = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions", "arguments"} <= result.keys()
    first, second, third = result["arms"]
    assert (first["train_ratio"], first["predict_ratio"], first["peak_ratio"]) == (1, 1, 1)
    assert second["arm"] == catenorm
    assert second["train_s"] > 0
    assert third["train_s"] > 0
    assert first["part_share"] == second["part_share"] == 0
    assert 0 < third["part_share"] < 1


def test_loss_cost_compares_losses_and_names_its_circumstances(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    few = ["--patch-size", "8", "8", "8", "--runs", "2", "--record", record]
    assert "sigma 0.02" in run("loss_cost", *few)
    result = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions", "arguments"} <= result.keys()
    assert result["losses"]["DC_and_CE_loss"]["ratio"] == 1
    assert result["losses"]["sigma 0.02"]["milliseconds"] > 0


def test_amplitude_mixup_cost_compares_both_ways_and_names_its_circumstances(
    tmp_path: Path,
) -> None:
    record = tmp_path / "record.json"
    shapes = ["--shape", "1", "32", "32", "--shape", "1", "8", "8", "8"]
    run("amplitude_mixup_cost", *shapes, "--runs", "2", "--record", record)
    result = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions", "arguments"} <= result.keys()
    images = list(result["images"].values())
    assert [row["times as fast"] for row in images[::3]] == [1, 1]
    assert all(row["milliseconds"] > 0 for row in images)


@pytest.mark.parametrize(
    "kind",
    [
        {"dim": 2, "channels": 2},
        pytest.param({"dim": 3, "anisotropic": True}, marks=pytest.mark.slow),
    ],
)
def test_ram_dsir_pictures_are_drawn_from_a_model_that_stays_as_it_is(
    kind: dict[str, Any],
    make_world: Callable[..., tiny.World],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    contract.without_progress_plot(monkeypatch)
    settings = {"ram_dsir": {"restoration": True}}
    trainer = make_world(**kind, domains=tiny.TWO_SITES).trainer("RAMDSIRTrainer", settings)
    trainer.run_training()
    height, width = size_of_picture("ram_dsir_pictures", Path(trainer.output_folder_base), tmp_path)
    assert (height, width) == (3 * 288, 4 * 288)


@pytest.mark.parametrize(
    "kind", [pytest.param({"dim": 2, "channels": 3}, marks=pytest.mark.slow), {"dim": 3}]
)
def test_condseg_regions_are_drawn_and_measured_from_a_model_that_stays_as_it_is(
    kind: dict[str, Any],
    make_world: Callable[..., tiny.World],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    contract.without_progress_plot(monkeypatch)
    trainer = make_world(**kind).trainer("ConDSegTrainer", {"condseg": {"consistency": "off"}})
    trainer.run_training()
    record = tmp_path / "record.json"
    height, width = size_of_picture(
        "condseg_regions", Path(trainer.output_folder_base), tmp_path, "--record", record
    )
    assert (height, width) == (2 * 288, 4 * 288)  # one held-out case, and the curve
    (figures,) = json.loads(record.read_text())["models"].values()
    near, elsewhere = figures["uncertain near the border"], figures["elsewhere"]
    assert 0 < near < 1
    assert figures["ratio"] == pytest.approx(near / elsewhere, rel=0.01)
    assert 0 <= figures["Dice, guides exchanged"] <= 1


@pytest.mark.parametrize("dim", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_local_mask_says_whether_it_lies_on_what_looks_foreign(
    dim: int,
    make_world: Callable[..., tiny.World],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    contract.without_progress_plot(monkeypatch)
    world = make_world(dim=dim)
    trainer = world.trainer("MindTheGapTrainer", {"mind_the_gap": {"translator": "none"}})
    trainer.run_training()
    raw, record = world.write_raw(), tmp_path / "record.json"
    data = ["--images", raw / "imagesTr", "--labels", raw / "labelsTr", "--label", "2"]
    run("local_mask", trainer.output_folder_base, *data, "--record", record)
    (figures,) = json.loads(record.read_text())["models"].values()
    assert all(0 <= figures[name] <= 1 for name in ("a within", "a outside"))
    assert 0 <= figures["area under the curve"] <= 1


def test_critic_features_measures_every_combination(
    make_world: Callable[..., tiny.World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contract.without_progress_plot(monkeypatch)
    world = make_world(dim=2)
    trainer = world.trainer()
    trainer.run_training()
    raw, record = world.write_raw(test=True), tmp_path / "record.json"
    shutil.copytree(raw / "imagesTr", raw / "imagesUn", dirs_exist_ok=True)
    options = ["--dataset", raw.name, "--label", "2", "--stages", "1", "--steps", "2"]
    run("critic_features", trainer.output_folder_base, *options, "--record", record)
    critics = json.loads(record.read_text())["critics"]
    assert len(critics) == len(set(critics)) == 4  # before and after normalisation, two rates
    assert all(0 <= figures["area under the curve"] <= 1 for figures in critics.values())


@pytest.mark.parametrize(
    "size", [("32", "32"), pytest.param(("24", "24", "24"), marks=pytest.mark.slow)]
)
def test_translator_cost_counts_images_of_both_domains(
    size: tuple[str, ...], tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    setting = '{"translator_batch": 2, "translator_filters": 2, "translator_blocks": 1}'
    options = ["--setting", setting, "--steps", "2", "--record", record]
    run("translator_cost", "--size", *size, *options)
    row = json.loads(record.read_text())["translators"][setting]
    assert row["images per step"] == 4
    assert row["images per second"] == pytest.approx(4 / row["seconds per step"], rel=0.02)


def test_prediction_pictures_show_the_truth_and_one_column_for_each_folder(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "Dataset001_A", ["a", "b", "c", "d"])
    for path in raw.glob("*Tr/*"):
        image = sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3)
        sitk.WriteImage(image, path)
    folders = [raw / "labelsTr"] * 2
    data = ["--images", raw / "imagesTr", "--labels", raw / "labelsTr"]
    run("prediction_pictures", *folders, *data, "--out", tmp_path / "docs" / "picture.png")
    assert imread(tmp_path / "docs" / "picture.png").shape[:2] == (3 * 288, 3 * 288)


def write_scores(folder: Path, arms: dict[str, float], evaluation: str) -> Path:
    """Scores of four subjects in two seeds, as they are recorded."""
    folder.mkdir()
    (folder / "benchmark.json").write_text(json.dumps({"arms": {arm: {} for arm in arms}}))
    rows = [
        f"{arm},0,{seed},{evaluation},{case},{case},1,{dice + 0.01 * i},{10 * (1 - dice)}"
        for arm, dice in arms.items()
        for seed in range(2)
        for i, case in enumerate(("a_1", "a_2", "b_1", "b_2"))
    ]
    header = "arm,fold,seed,evaluation,case,subject,label,dice,assd"
    (folder / "scores.csv").write_text("\n".join([header, *rows]))
    return folder


def test_gap_recovered_is_the_share_of_what_target_labels_would_give(tmp_path: Path) -> None:
    adapted = write_scores(tmp_path / "adapted", {"source": 0.4, "full": 0.7}, "test")
    oracle = write_scores(tmp_path / "oracle", {"labels": 0.8}, "clean")
    record = tmp_path / "record.json"
    run("gap_recovered", adapted, oracle, "--cases", "a_.*", "--record", record)
    rows = json.loads(record.read_text())["recovered"]
    assert list(rows) == ["source", "full", "oracle"]
    assert rows["full"]["subjects"] == 2
    assert rows["full"]["Dice"] == pytest.approx(0.705)
    assert rows["full"]["recovered of Dice"] == "75% [75%, 75%]"
    assert rows["full"]["recovered of ASSD"] == "75% [75%, 75%]"
    assert rows["source"]["recovered of Dice"] == ""


def names_in(folder: Path) -> set[str]:
    return {path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.iterdir()}


def test_hearts_are_unlabelled_in_one_modality_and_labelled_in_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    sources, targets = ({f"{kind}_{i:02d}" for i in range(1, 36)} for kind in ("bSSFP", "LGE"))
    raw = write_raw(tmp_path / "Dataset102_CardiacMR", sources | targets)
    for path in raw.glob("*Tr/*"):
        image = sitk.GetImageFromArray(np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
        sitk.WriteImage(image, path)
    run("cross_modality", "cardiac")
    folder = tmp_path / "Dataset111_CardiacToLGE"
    assert names_in(folder / "imagesTr") == names_in(folder / "labelsTr") == sources
    assert names_in(folder / "imagesTs") == names_in(folder / "labelsTs") == targets
    assert targets - names_in(folder / "imagesUn") == {f"LGE_0{i}" for i in range(1, 6)}
    assert not (folder / "labelsUn").exists()
    assert names_in(tmp_path / "Dataset114_CardiacLGE" / "imagesTr") == targets
    image, label = (
        sitk.ReadImage(next((folder / part).iterdir())) for part in ("imagesTs", "labelsTs")
    )
    assert (image.GetSize(), image.GetSpacing()) == ((2, 2, 2), (2, 2, 1))
    assert (label.GetSize(), label.GetOrigin()) == (image.GetSize(), image.GetOrigin())
    assert set(sitk.GetArrayFromImage(label).ravel()) < set(range(32))


def test_a_pseudo_modality_inverts_intensities_and_keeps_labels_and_subjects_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    raw = write_raw(tmp_path / "Dataset004_Hippocampus", [f"case_{i}" for i in range(110)])
    random = np.random.default_rng(0)
    for path in raw.glob("*Tr/*"):
        array = random.integers(0, 100, (8, 9, 10)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(array), path)
    run("cross_modality", "hippocampus")
    folder, oracle = (
        tmp_path / name
        for name in ("Dataset112_HippocampusToPseudo", "Dataset113_HippocampusPseudo")
    )
    parts = [names_in(folder / f"images{part}") for part in ("Tr", "Un", "Ts")]
    assert [len(part) for part in parts] == [9, 60, 41]
    assert len(set.union(*parts)) == 110
    assert names_in(oracle / "imagesTr") == parts[1]
    for other in (folder / "imagesUn", oracle / "imagesTr", folder / "imagesTs"):
        path = next(other.iterdir())
        before, after = (
            sitk.GetArrayFromImage(sitk.ReadImage(file))
            for file in (raw / "imagesTr" / path.name, path)
        )
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] < -0.7
    run("cross_modality", "local")
    path = next((tmp_path / "Dataset116_HippocampusLocal" / "imagesUn").iterdir())
    before, after, labels = (
        sitk.GetArrayFromImage(sitk.ReadImage(file))
        for file in (
            raw / "imagesTr" / path.name,
            path,
            raw / "labelsTr" / path.name.replace("_0000", ""),
        )
    )
    assert (before == after)[labels != 2].all()
    assert (before != after)[labels == 2].mean() > 0.5
    label = next((folder / "labelsTs").iterdir())
    assert label.read_bytes() == (raw / "labelsTr" / label.name).read_bytes()


def test_retinas_are_halved_and_keep_their_domains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    domains = {"a": "A"}
    raw = write_raw(tmp_path / "Dataset101_RetinaVessels", ["a"], ending=".png", domains=domains)
    image = np.zeros((5, 6, 3), np.uint8)
    image[2:4, 2:4] = [[[10], [20]], [[30], [40]]]
    imsave(raw / "imagesTr" / "a_0000.png", image, check_contrast=False)
    label = np.zeros((5, 6), np.uint8)
    label[2:4, 2] = label[0, 0] = 1
    imsave(raw / "labelsTr" / "a.png", label, check_contrast=False)
    described = json.loads((raw / "dataset.json").read_text()) | {"numTraining": 1}
    (raw / "dataset.json").write_text(json.dumps(described))
    run("half_resolution", "retina")
    half = tmp_path / "Dataset131_RetinaHalf"
    small = imread_8bit(half / "imagesTr" / "a_0000.png")
    assert small.shape == (2, 3, 3)
    assert small[1, 1].tolist() == [25, 25, 25]
    assert imread_8bit(half / "labelsTr" / "a.png").tolist() == [[0, 0, 0], [0, 1, 0]]
    assert json.loads((half / "dataset.json").read_text())["domains"] == domains


def test_startup_cost_prints_the_difference_to_a_bare_interpreter() -> None:
    output = run("startup_cost", "--runs", "3")
    assert "without nnunet_ext" in output
    assert "with nnunet_ext" in output
    assert "budget of 3 ms" in output


RECORDED = sorted(path.parent for path in (STUDIES / "records").glob("*/scores.csv"))


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_every_recorded_experiment_can_be_repeated_and_is_reported(folder: Path) -> None:
    assert spec.read(folder) == spec.read(STUDIES / "experiments" / f"{folder.name}.json")
    environment = json.loads((folder / "environment.json").read_text())
    assert {"date", "processor", "versions"} <= environment.keys()
    page = (STUDIES.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert f"## {folder.name}" in page
