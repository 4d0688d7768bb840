"""``nnunet-ext evaluate-target``: scores of predictions of images without training labels."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813

DATASET = "Dataset020_Both"
SHAPE = (6, 10, 10)
LABELS = {"background": 0, "liver": 1, "spleen": 2}
Cli = Callable[..., Any]


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
    return pd.read_csv(folder / "target_scores.csv")


def test_perfect_predictions_score_one_and_cases_without_label_are_named(
    cli: Cli, predicted: Path
) -> None:
    outcome = cli("evaluate-target", str(predicted))
    assert outcome.code == 0, outcome.err
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0] == "label cases Dice NSD HD95 ASSD"
    assert lines[1:3] == [
        "liver 2 1.000 1.000 0.00 0.00",
        "[1.000, 1.000] " * 2 + "[0.00, 0.00] [0.00, 0.00]",
    ]
    assert [line.split()[0] for line in lines[3:7:2]] == ["spleen", "mean"]
    assert "1 without a label, not scored: c" in lines
    assert any("Only 2 cases" in line for line in lines)
    assert lines[-1] == f"Wrote {predicted / 'target_scores.csv'}"
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
    assert cli("evaluate-target", str(predicted)).code == 0
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
    assert cli("evaluate-target", str(predicted)).code == 0
    assert set(scores_of(predicted)["case"]) == {"c"}
    assert set(scores_of(predicted)["empty"]) == {"truth"}
    write(elsewhere / "b.nii.gz", truth(1))
    write(elsewhere / "z.nii.gz", truth(1))
    outcome = cli("evaluate-target", str(predicted), "--labels", str(elsewhere))
    assert "1 with a label, but not predicted, not scored: z" in outcome.out
    assert set(scores_of(predicted)["case"]) == {"b"}


def test_regions_are_scored_as_regions(cli: Cli, predicted: Path) -> None:
    described = json.loads((predicted / "dataset.json").read_text())
    described |= {"labels": {"background": 0, "both": [1, 2], "spleen": 2}}
    described |= {"regions_class_order": [1, 2]}
    (predicted / "dataset.json").write_text(json.dumps(described))
    outcome = cli("evaluate-target", str(predicted))
    assert outcome.code == 0, outcome.err
    assert list(scores_of(predicted)["label"]) == ["both", "spleen"] * 2


def test_a_label_that_nobody_has_counts_for_no_mean(cli: Cli, predicted: Path) -> None:
    described = json.loads((predicted / "dataset.json").read_text())
    described["labels"] = LABELS | {"kidney": 3}
    (predicted / "dataset.json").write_text(json.dumps(described))
    outcome = cli("evaluate-target", str(predicted))
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["kidney", "0", "-", "-", "-", "-"] in rows
    assert ["mean", "2", "1.000", "1.000", "0.00", "0.00"] in rows
    kidney = scores_of(predicted).query("label == 'kidney'")
    assert kidney["dice"].map(math.isnan).all()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "plans.json").unlink(), "no plans.json"),
        (lambda folder: [path.unlink() for path in folder.glob("*.nii.gz")], "no predictions"),
        (lambda folder: (folder / "a.nii.gz").write_text("text"), "a.nii.gz"),
        (
            lambda folder: write(folder / "b.nii.gz", np.zeros((2, 2, 2))),
            "b.nii.gz does not match",
        ),
        (
            lambda folder: [path.rename(folder / f"x_{path.name}") for path in folder.glob("*.gz")],
            "no labels of the predictions",
        ),
    ],
)
def test_a_mistake_is_explained_and_no_scores_are_written(
    cli: Cli, predicted: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(predicted)
    outcome = cli("evaluate-target", str(predicted))
    assert outcome.code == 1
    assert message in outcome.err
    assert not (predicted / "target_scores.csv").exists()


def test_a_folder_of_labels_that_does_not_exist_is_named(cli: Cli, predicted: Path) -> None:
    outcome = cli("evaluate-target", str(predicted), "--labels", "nowhere")
    assert outcome.code == 1
    assert "--labels nowhere: there is no such folder" in outcome.err
