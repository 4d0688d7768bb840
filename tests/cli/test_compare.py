"""``nnunet-ext compare``: the report of models that nobody trained for it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.evaluation.metrics import measure

Cli = Callable[..., Any]
DATASET = "Dataset020_Both"
SHAPE = (6, 12, 12)
LABELS = {"background": 0, "liver": 1, "spleen": 2}
ENDING = ".nii.gz"
CASES = [f"p{i // 2}_{i}" for i in range(8)]
"""Two of each patient."""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nnunetv2 import configuration

    monkeypatch.setattr(configuration, "default_num_processes", 1)
    monkeypatch.chdir(tmp_path)
    for case in CASES:
        write(tmp_path / "labelsTr" / f"{case}{ENDING}", truth(case))


def write(path: Path, labels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.asarray(labels, np.uint8)), str(path))


def truth(case: str) -> Any:
    labels = np.zeros(SHAPE)
    labels[1:4, 2:7, 2 : 5 + CASES.index(case) % 3] = 1
    if CASES.index(case) % 4:
        labels[4:, 8:, 8:] = 2
    return labels


def predict(folder: Path, cases: list[str], shift: int, seed: int = 0) -> None:
    """Write predictions that miss by up to so many voxels, as nnUNetv2_predict leaves them."""
    random = np.random.default_rng([shift, seed, len(cases)])
    for case in cases:
        moved = np.roll(truth(case), random.integers(0, shift + 1), axis=1)
        write(folder / f"{case}{ENDING}", moved)


def describe(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    described = {"labels": LABELS, "file_ending": ENDING, "channel_names": {"0": "MR"}}
    (folder / "dataset.json").write_text(json.dumps(described))
    plans = {"dataset_name": DATASET, "image_reader_writer": "SimpleITKIO"} | changes
    (folder / "plans.json").write_text(json.dumps(plans))


def summarise(folder: Path) -> None:
    """Write what nnU-Net writes of predictions in its validation."""
    cases = []
    for path in sorted(folder.glob(f"*{ENDING}")):
        reference = Path("labelsTr", path.name).resolve()
        voxels = [sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (reference, path)]
        found = measure(voxels[0], voxels[1], (1, 1, 1), [1, 2])
        metrics = {str(label): {"Dice": measures.dice} for label, measures in found.items()}
        files = {"reference_file": str(reference), "prediction_file": str(path)}
        cases.append({"metrics": metrics, **files})
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": cases}))


def model(trainer: str, shift: int, seed: int = 0, folds: int = 2, **changes: Any) -> Path:
    """A trained model's folder, without its networks."""
    folder = Path(f"seed{seed}", f"{trainer}__nnUNetPlans__3d_fullres")
    describe(folder, **changes)
    for fold in range(folds):
        place = folder / f"fold_{fold}" / "validation"
        predict(place, CASES[fold::folds], shift, seed)
        summarise(place)
    return folder


def everything() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def test_models_of_any_trainer_are_compared_over_their_folds(cli: Cli) -> None:
    stock, mine = model("nnUNetTrainer", 3), model("TrainerOfSomebody", 0)
    outcome = cli("compare", f"stock={stock}", f"mine={mine}", "--subject", r"p(\d)_")
    assert outcome.code == 0, outcome.err
    report = Path(f"comparison_{DATASET}")
    assert str(report / "index.html") in outcome.out.replace("\n", "")
    text = (report / "report.md").read_text()
    assert "8 cases of 4 subjects" in text
    assert "| mine | TrainerOfSomebody | nnUNetPlans |" in text
    assert "2 arms, 1 configuration, 2 folds, 1 seed" in text
    scores = pd.read_csv(report / "scores.csv", dtype={"label": str})
    assert len(scores) == 2 * 8 * 2
    for row in scores.to_dict("records"):
        voxels = [
            sitk.GetArrayFromImage(sitk.ReadImage(row[key])) for key in ("truth", "prediction")
        ]
        expected = measure(voxels[0], voxels[1], (1, 1, 1), [1, 2])[int(row["label"])]
        for name in ("dice", "nsd", "hd95", "assd"):
            assert row[name] == pytest.approx(getattr(expected, name), abs=1e-6, nan_ok=True)
    assert {path.name for path in report.iterdir()} >= {"comparison.csv", "record.json"}


def test_folders_of_one_name_are_seeds_and_one_training_is_not_tested(cli: Cli) -> None:
    folders = {f"{name}{seed}": (3, seed) for name in "ab" for seed in (0, 1)}
    for name, (shift, seed) in folders.items():
        describe(Path(name))
        predict(Path(name), CASES, shift * (name[0] == "a"), seed)
    labels = ("--labels", "labelsTr")
    outcome = cli("compare", *(f"{name[0]}={name}" for name in folders), *labels, "--out", "two")
    assert outcome.code == 0, outcome.err
    frame = pd.read_csv("two/comparison.csv")
    row = frame[(frame["scope"] == "all") & (frame["metric"] == "dice")].set_index("arm").loc["b"]
    assert (row["trainings"], row["verdict"] != "one training") == (2, True)
    assert "Test set" in Path("two/report.md").read_text()
    assert cli("compare", "a=a0", "b=b0", *labels, "--out", "one").code == 0
    assert "luck cannot be told from its merit" in Path("one/report.md").read_text()
    assert "one training" in Path("one/report.md").read_text()


def test_a_page_can_be_made_again_from_a_comparison(cli: Cli) -> None:
    from nnunet_ext.benchmark import results
    from nnunet_ext.benchmark.report import write_report

    a, b = model("A", 3), model("B", 0)
    assert cli("compare", f"a={a}", f"b={b}", "--out", "page").code == 0
    again = write_report(results.read(Path("page")), Path("again"))
    assert again.read_text() == Path("page/index.html").read_text()


def test_labels_that_have_moved_can_be_named(cli: Cli) -> None:
    a, b = model("A", 3), model("B", 0)
    Path("labelsTr").rename("elsewhere")
    outcome = cli("compare", f"a={a}", f"b={b}")
    assert outcome.code == 1
    assert "Name the folder where they are with --labels" in outcome.err
    assert cli("compare", f"a={a}", f"b={b}", "--labels", "elsewhere").code == 0


def test_a_fold_without_validation_is_left_out_and_named(cli: Cli) -> None:
    a, b = model("A", 3), model("B", 0)
    for folder in (a, b):
        (folder / "fold_1" / "validation" / "summary.json").unlink()
    outcome = cli("compare", f"a={a}", f"b={b}", "--out", "page")
    assert outcome.code == 0, outcome.err
    text = Path("page/report.md").read_text()
    assert f"{a / 'fold_1'} has no validation and is left out" in text
    assert "4 cases" in text


def test_predictions_without_labels_are_left_out_and_named(cli: Cli) -> None:
    for name, shift in (("a", 3), ("b", 0)):
        describe(Path(name))
        predict(Path(name), CASES, shift)
    Path("labelsTr", f"{CASES[2]}{ENDING}").unlink()
    outcome = cli("compare", "a=a", "b=b", "--labels", "labelsTr", "--out", "page")
    assert outcome.code == 0, outcome.err
    assert f"cases without labels are left out: {CASES[2]}" in outcome.out
    assert f"cases without labels are left out: {CASES[2]}" in Path("page/report.md").read_text()


def test_pictures_are_shown_where_the_raw_data_set_is_here(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = model("A", 3), model("B", 0)
    monkeypatch.setenv("nnUNet_raw", str(Path("raw").resolve()))
    for case in CASES:
        write(Path("raw", DATASET, "imagesTr", f"{case}_0000{ENDING}"), 9 * truth(case))
    assert cli("compare", f"a={a}", f"b={b}", "--out", "shown").code == 0
    assert Path("shown/index.html").read_text().count('class="labels"') == 2 * 5
    assert cli("compare", f"a={a}", f"b={b}", "--out", "hidden", "--no-images").code == 0
    assert "Pictures are left out" in Path("hidden/index.html").read_text()
    assert pd.read_csv("hidden/scores.csv")[["image", "truth", "prediction"]].isna().all(axis=None)


def drop_case(folder: Path) -> None:
    place = folder / "fold_0" / "validation"
    (place / f"{CASES[0]}{ENDING}").unlink()
    summarise(place)


def drop_validations(folder: Path) -> None:
    for place in folder.glob("fold_*"):
        shutil.rmtree(place / "validation")


def other_labels(folder: Path) -> None:
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"]["tumour"] = 3
    (folder / "dataset.json").write_text(json.dumps(described))


def change_summary(folder: Path, dice: float) -> None:
    path = folder / "fold_0" / "validation" / "summary.json"
    content = json.loads(path.read_text())
    content["metric_per_case"][1]["metrics"]["1"]["Dice"] = dice
    path.write_text(json.dumps(content))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a case less": (drop_case, f"The cases differ: b lacks {CASES[0]}"),
    "no validation": (drop_validations, "has no validation"),
    "other labels": (other_labels, "tumour"),
    "another data set": (
        lambda folder: describe(folder, dataset_name="Dataset021_Other"),
        "Dataset021_Other",
    ),
    "NaN": (lambda folder: change_summary(folder, float("nan")), "Dice nan, but the files give"),
    "another Dice": (lambda folder: change_summary(folder, 0.5), "Dice 0.5, but the files give"),
    "a damaged summary": (
        lambda folder: (folder / "fold_1" / "validation" / "summary.json").write_text("{"),
        "is missing or damaged",
    ),
    "no folder": (shutil.rmtree, "There is no folder"),
    "an empty folder": (empty, "is not a model folder"),
}


@pytest.mark.parametrize("damage", BAD)
def test_what_cannot_be_compared_is_named_and_nothing_is_written(cli: Cli, damage: str) -> None:
    a, b = model("A", 3), model("B", 0)
    spoil, message = BAD[damage]
    spoil(b)
    before = everything()
    outcome = cli("compare", f"a={a}", f"b={b}")
    assert outcome.code == 1
    assert message in outcome.err
    assert str(b) in outcome.err or damage == "a case less"
    assert "Traceback" not in outcome.err
    assert everything() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "expected NAME=FOLDER"),
        (["=a", "b=b"], "expected NAME=FOLDER"),
        (["a=a", "a=b"], "at least two"),
        (["a=missing", "b=b"], "There is no folder missing"),
    ],
)
def test_what_is_typed_wrong_is_explained(cli: Cli, arguments: list[str], message: str) -> None:
    outcome = cli("compare", *arguments)
    assert outcome.code == 1
    assert message in outcome.err


def test_a_subject_that_no_name_has_is_refused(cli: Cli) -> None:
    a, b = model("A", 3), model("B", 0)
    outcome = cli("compare", f"a={a}", f"b={b}", "--subject", r"q(\d)")
    assert outcome.code == 1
    assert "finds no subject" in outcome.err


def test_a_model_and_a_folder_of_predictions_are_not_compared(cli: Cli) -> None:
    a = model("A", 3)
    describe(Path("b"))
    predict(Path("b"), CASES, 0)
    outcome = cli("compare", f"a={a}", "b=b", "--labels", "labelsTr")
    assert outcome.code == 1
    assert "validation of a model and test" in outcome.err
