"""``nnunet-ext evaluate``: scores of any predictions of any labels, and labels that are spoilt."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
from medpy.metric import binary
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

DATASET = "Dataset020_Both"
SHAPE = (6, 10, 10)
LABELS = {"background": 0, "liver": 1, "spleen": 2}
Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2 import configuration

    monkeypatch.setattr(configuration, "default_num_processes", 1)


def write(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(array, np.uint8))
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(path))


def truth(seed: int) -> Any:
    labels = np.zeros(SHAPE)
    labels[1:4, 2:6, 2 + seed : 6 + seed] = 1
    labels[4:, 7:, 7:] = 2
    return labels


@pytest.fixture
def predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two perfect predictions and a third one without label, as nnUNetv2_predict leaves them."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folder = tmp_path / "predicted"
    for seed, case in enumerate(("a", "b", "c")):
        write(folder / f"{case}.nii.gz", truth(seed))
        if case != "c":
            write(tmp_path / "raw" / DATASET / "labelsTs" / f"{case}.nii.gz", truth(seed))
    described = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MR"}}
    (folder / "dataset.json").write_text(json.dumps(described))
    plans = {"dataset_name": DATASET, "image_reader_writer": "SimpleITKIO"}
    plans["label_manager"] = "LabelManager"
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def scores_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "evaluation.csv")


def test_perfect_predictions_score_one_and_cases_without_label_are_named(
    cli: Cli, predicted: Path
) -> None:
    outcome = cli("evaluate", str(predicted))
    assert outcome.code == 0, outcome.err
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0] == "label cases Dice NSD HD95 ASSD"
    assert lines[1:3] == [
        "liver 2 1.000 1.000 0.00 0.00",
        "[1.000, 1.000] " * 2 + "[0.00, 0.00] [0.00, 0.00]",
    ]
    assert [line.split()[0] for line in lines[3:7:2]] == ["spleen", "mean"]
    assert "1 case without a label, not scored: c" in lines
    assert any("Only 2 cases" in line for line in lines)
    assert f"Wrote {predicted / 'evaluation.csv'}" in lines


def test_other_programs_get_what_is_written_and_nothing_else(cli: Cli, predicted: Path) -> None:
    outcome = cli("evaluate", str(predicted), "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found == json.loads((predicted / "evaluation.json").read_text())
    assert found["labels"]["liver"]["dice"]["mean"] == 1
    scores = scores_of(predicted)
    assert set(scores["case"]) == {"a", "b"}
    assert (scores[["dice", "nsd"]] == 1).all(axis=None)


def test_scores_are_those_of_nnunets_own_evaluation(cli: Cli, predicted: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    wrong = truth(0)
    wrong[1, 2, 2:8] = 1
    wrong[5, 9, 9] = 0
    write(predicted / "a.nii.gz", wrong)
    assert cli("evaluate", str(predicted)).code == 0
    scores = scores_of(predicted)
    for case, rows in scores.groupby("case"):
        files = [str(rows[kind].iloc[0]) for kind in ("truth", "prediction")]
        expected = compute_metrics(*files, SimpleITKIO(), [1, 2])["metrics"]
        assert list(rows["dice"]) == pytest.approx([expected[1]["Dice"], expected[2]["Dice"]])
        assert (rows["dice"].min() < 1) == (case == "a")


def test_labels_can_lie_anywhere_and_those_for_the_unlabelled_images_come_first(
    cli: Cli, predicted: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    empty = np.zeros(SHAPE)
    write(tmp_path / "raw" / DATASET / "labelsUn" / "c.nii.gz", empty)
    assert cli("evaluate", str(predicted)).code == 0
    assert set(scores_of(predicted)["case"]) == {"c"}
    assert set(scores_of(predicted)["empty"]) == {"truth"}
    write(elsewhere / "b.nii.gz", truth(1))
    write(elsewhere / "z.nii.gz", truth(1))
    outcome = cli("evaluate", str(predicted), "--labels", str(elsewhere))
    assert "1 case with a label, but not predicted, not scored: z" in outcome.out
    assert set(scores_of(predicted)["case"]) == {"b"}


def test_regions_are_scored_as_regions(cli: Cli, predicted: Path) -> None:
    described = json.loads((predicted / "dataset.json").read_text())
    described |= {"labels": {"background": 0, "both": [1, 2], "spleen": 2}}
    described |= {"regions_class_order": [1, 2]}
    (predicted / "dataset.json").write_text(json.dumps(described))
    outcome = cli("evaluate", str(predicted))
    assert outcome.code == 0, outcome.err
    assert list(scores_of(predicted)["label"]) == ["both", "spleen"] * 2


def test_a_label_that_nobody_has_counts_for_no_mean(cli: Cli, predicted: Path) -> None:
    described = json.loads((predicted / "dataset.json").read_text())
    described["labels"] = LABELS | {"kidney": 3}
    (predicted / "dataset.json").write_text(json.dumps(described))
    outcome = cli("evaluate", str(predicted))
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["kidney", "0", "-", "-", "-", "-"] in rows
    assert ["mean", "2", "1.000", "1.000", "0.00", "0.00"] in rows
    kidney = scores_of(predicted).query("label == 'kidney'")
    assert kidney["dice"].map(math.isnan).all()


# ------------------------------------------------------------------------------ spoilt labels

TURNED = (0.0, 0.8, -0.6, 0.0, 0.6, 0.8, 1.0, 0.0, 0.0)
"""Oblique, and no axis where it would be by default."""


def imperfect(folder: Path) -> Path:
    """Predictions with errors, oblique and anisotropic; the labels go to a folder beside them."""
    for seed, case in enumerate(("a", "b", "c")):
        predicted = truth(seed)
        predicted[1, 2, 2 : 7 + seed] = 1
        predicted[5, 8, 8:] = 0
        predicted[0, 0, seed : seed + 2] = 2
        for part, array in ((folder, predicted), (folder.with_name("labels"), truth(seed))):
            part.mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(np.asarray(array, np.uint8))
            image.SetSpacing((0.7, 1.1, 2.0))
            image.SetOrigin((-30.0, 12.5, 4.0))
            image.SetDirection(TURNED)
            sitk.WriteImage(image, str(part / f"{case}.nii.gz"))
    return folder.with_name("labels")


def changed(labels: Path, change: Callable[[sitk.Image], sitk.Image | None]) -> None:
    """Rewrite the labels of the second case."""
    image = sitk.ReadImage(str(labels / "b.nii.gz"))
    sitk.WriteImage(change(image) or image, str(labels / "b.nii.gz"))


def with_value(value: float) -> Callable[[sitk.Image], sitk.Image]:
    def change(image: sitk.Image) -> sitk.Image:
        image = sitk.Cast(image, sitk.sitkFloat32)
        image[3, 3, 3] = value
        return image

    return change


@pytest.mark.filterwarnings("ignore:Please import")  # of scipy, to surface-distance
def test_scores_are_those_of_other_peoples_implementations(cli: Cli, predicted: Path) -> None:
    labels = imperfect(predicted)
    outcome = cli("evaluate", str(predicted), "--labels", str(labels))
    assert outcome.code == 0, outcome.err
    for row in scores_of(predicted).to_dict("records"):
        masks = [
            sitk.GetArrayFromImage(sitk.ReadImage(row[kind])) == LABELS[row["label"]]
            for kind in ("truth", "prediction")
        ]
        spacing = (2.0, 1.1, 0.7)
        directed = [binary.__surface_distances(*m, spacing) for m in (masks, masks[::-1])]
        surfaces = compute_surface_distances(*masks, spacing)
        expected = {
            "dice": binary.dc(*masks),
            "nsd": compute_surface_dice_at_tolerance(surfaces, 0.7),
            "hd95": max(np.percentile(distances, 95) for distances in directed),
            "assd": np.concatenate(directed).mean(),
        }
        found = {name: row[name] for name in expected}
        assert found == pytest.approx(expected, rel=1e-6)
        assert 0 < found["dice"] < 1


@pytest.mark.parametrize(
    "change",
    [
        lambda image: sitk.DICOMOrient(image, "RPI"),
        lambda image: sitk.DICOMOrient(image, "SAL"),
        lambda image: image[::-1, :, ::-1],
    ],
)
def test_labels_in_another_orientation_score_as_in_the_predictions_own_and_are_named(
    cli: Cli, predicted: Path, change: Callable[[sitk.Image], sitk.Image]
) -> None:
    labels = imperfect(predicted)
    assert cli("evaluate", str(predicted), "--labels", str(labels)).code == 0
    expected = scores_of(predicted)
    changed(labels, change)
    outcome = cli("evaluate", str(predicted), "--labels", str(labels))
    assert outcome.code == 0, outcome.err
    assert (
        "1 case with labels in another orientation than the prediction, which were turned: b"
        in (outcome.out)
    )
    pd.testing.assert_frame_equal(scores_of(predicted), expected)
    assert json.loads((predicted / "evaluation.json").read_text())["reoriented"] == ["b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.SetSpacing((0.7, 1.1, 2.5)), "its spacing is 0.7 x 1.1 x 2, that of "),
        (lambda image: image.SetOrigin((0, 0, 0)), "its origin is -30 x 12.5 x 4, that of the "),
        (
            lambda image: image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0)),
            "its direction is 0 x 0.8 x -0.6 x 0",
        ),
        (lambda image: image[1:], "its shape is 10 x 10 x 6, that of the labels 9 x 10 x 6"),
        (lambda image: image * 255, "has the values 254, 255, but dataset.json names only the"),
        (lambda image: image + 3 * (image == 2), "has the values 5, but dataset.json"),
        (with_value(0.5), "has values that are not whole numbers: 0.5"),
        (with_value(math.nan), "has values that are not whole numbers: NaN"),
    ],
)
def test_spoilt_labels_are_refused_with_their_values_and_nothing_is_written(
    cli: Cli, predicted: Path, change: Callable[[sitk.Image], sitk.Image | None], message: str
) -> None:
    labels = imperfect(predicted)
    changed(labels, change)
    outcome = cli("evaluate", str(predicted), "--labels", str(labels))
    assert outcome.code == 1
    assert str(labels / "b.nii.gz") in outcome.err
    assert message in outcome.err
    assert not list(predicted.glob("evaluation*"))


def test_files_of_other_systems_are_no_cases(cli: Cli, predicted: Path) -> None:
    labels = imperfect(predicted)
    for folder in (labels, predicted):
        (folder / "._a.nii.gz").write_bytes(b"of macOS")
        (folder / ".DS_Store").write_bytes(b"of macOS")
    outcome = cli("evaluate", str(predicted), "--labels", str(labels))
    assert outcome.code == 0, outcome.err
    assert "not scored" not in outcome.out
    assert set(scores_of(predicted)["case"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "plans.json").unlink(), "no plans.json"),
        (lambda folder: (folder / "dataset.json").unlink(), "or a dataset.json with --dataset"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), 'no "file_ending"'),
        (
            lambda folder: (folder / "dataset.json").write_text('{"file_ending": ".nii.gz"}'),
            '"labels" or "file_ending" is missing',
        ),
        (lambda folder: [path.unlink() for path in folder.glob("*.nii.gz")], "no predictions"),
        (lambda folder: (folder / "a.nii.gz").write_text("text"), "a.nii.gz"),
        (
            lambda folder: write(folder / "b.nii.gz", np.zeros((2, 2, 2))),
            "b.nii.gz does not match",
        ),
        (
            lambda folder: [path.rename(folder / f"x_{path.name}") for path in folder.glob("*.gz")],
            "There are no labels such as ",
        ),
    ],
)
def test_a_mistake_is_explained_and_no_scores_are_written(
    cli: Cli, predicted: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(predicted)
    outcome = cli("evaluate", str(predicted))
    assert outcome.code == 1
    assert message in outcome.err
    assert not (predicted / "evaluation.csv").exists()


def test_a_folder_of_labels_that_does_not_exist_is_named(cli: Cli, predicted: Path) -> None:
    outcome = cli("evaluate", str(predicted), "--labels", "nowhere")
    assert outcome.code == 1
    assert "--labels nowhere: there is no such folder" in outcome.err


# ------------------------------------------------------------------------------ what is asked for


def test_predictions_without_nnunets_files_are_scored_as_a_data_set_that_is_named(
    cli: Cli, predicted: Path, tmp_path: Path
) -> None:
    described = tmp_path / "raw" / DATASET / "dataset.json"
    (predicted / "dataset.json").rename(described)
    (predicted / "plans.json").unlink()
    (tmp_path / "preprocessed").mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
        assert cli("evaluate", str(predicted), "--dataset", "20").code == 0
    labels = ("--labels", str(tmp_path / "raw" / DATASET / "labelsTs"))
    elsewhere = tmp_path / "out"
    outcome = cli(
        "evaluate", str(predicted), "--dataset", str(described), *labels, "-o", str(elsewhere)
    )
    assert outcome.code == 0, outcome.err
    pd.testing.assert_frame_equal(scores_of(elsewhere), scores_of(predicted))


def test_cases_of_a_patient_count_once_and_domains_are_told_apart(
    cli: Cli, predicted: Path
) -> None:
    labels = imperfect(predicted)
    for folder in (predicted, labels):
        for old, new in (("a", "x_1"), ("b", "x_2"), ("c", "y_3")):
            (folder / f"{old}.nii.gz").rename(folder / f"{new}.nii.gz")
    arguments = ("evaluate", str(predicted), "--labels", str(labels))
    domain = ("--domain", "(?P<domain>.)_", "--subject", "(.)_")
    outcome = cli(*arguments, *domain)
    assert outcome.code == 0, outcome.err
    assert "Only 2 subjects" in outcome.out
    assert "Domain x" in outcome.out
    assert "on other subjects. One model cannot show" in outcome.out
    scores, content = scores_of(predicted), json.loads((predicted / "evaluation.json").read_text())
    dice = scores[scores["label"] == "liver"].groupby("subject")["dice"].mean()
    liver = content["labels"]["liver"]
    assert liver["dice"]["mean"] == pytest.approx(dice.mean())
    assert 0 < liver["dice"]["low"] < liver["dice"]["high"] < 1
    assert liver["cases"] == 3
    found = {name: part["labels"]["liver"]["dice"] for name, part in content["by_domain"].items()}
    assert found == {
        name: {"mean": pytest.approx(dice[name]), "low": None, "high": None} for name in "xy"
    }
    assert content["by_subject"]["x"]["cases"] == 2
    assert ["y", "1"] in [line.split()[:2] for line in outcome.out.splitlines()]


def test_domains_are_those_of_dataset_json_unless_told_otherwise(cli: Cli, predicted: Path) -> None:
    described = json.loads((predicted / "dataset.json").read_text())
    (predicted / "dataset.json").write_text(json.dumps(described | {"domains": {"a": "Ulm"}}))
    assert cli("evaluate", str(predicted)).code == 0
    assert scores_of(predicted).groupby("case")["domain"].first().dropna().to_dict() == {"a": "Ulm"}


def test_lesions_are_counted_where_asked(cli: Cli, predicted: Path) -> None:
    labels = imperfect(predicted)
    outcome = cli("evaluate", str(predicted), "--labels", str(labels), "--lesions")
    assert outcome.code == 0, outcome.err
    assert "label   cases  lesion recall   precision       F1" in outcome.out
    spleen = scores_of(predicted).query("label == 'spleen'").iloc[0]
    counts = spleen[[f"lesions_{name}" for name in ("true", "found", "predicted", "right")]]
    assert counts.tolist() == [1, 1, 2, 1]
    assert (spleen["recall"], spleen["precision"]) == (1, 0.5)
    assert spleen["f1"] == pytest.approx(2 / 3)


def test_torch_is_not_waited_for(predicted: Path) -> None:
    code = (
        "import sys; from nnunet_ext.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", code, "evaluate", str(predicted), "--processes", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=100)


def test_several_processes_find_the_same(cli: Cli, predicted: Path) -> None:
    labels = imperfect(predicted)
    found = []
    for processes in ("1", "2"):
        arguments = ("--labels", str(labels), "--processes", processes)
        assert cli("evaluate", str(predicted), *arguments).code == 0
        found.append((predicted / "evaluation.csv").read_bytes())
    assert found[0] == found[1]
