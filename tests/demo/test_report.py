"""The table and the picture at the end of a demo."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from matplotlib.image import imread
from rich.console import Console

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark.synthetic import site_of
from nnunet_ext.demo import report
from nnunet_ext.demo.report import CaseScore

LABELS = {1: "organ", 2: "lesion"}
NAN = math.nan


def score(name: str, organ: float, lesion: float) -> CaseScore:
    return CaseScore(name, {1: organ, 2: lesion}, Path("t"), Path("p"))


SCORES = [
    score("siteA_101", 0.9, 0.8),
    score("siteA_102", 0.7, NAN),
    score("siteB_101", 0.5, 0.3),
]


def rows_of(scores: list[CaseScore], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    Console(width=100).print(report.score_table(scores, LABELS, "Title", site_of))
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_table_shows_labels_sites_and_the_worst_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows_of(SCORES, capsys) == [
        ["all 3 cases", "0.700", "0.550", "0.625"],
        ["siteA, 2 cases", "0.800", "0.800", "0.800"],
        ["siteB, 1 case", "0.500", "0.300", "0.400"],
        ["worst case, siteB_101", "0.500", "0.300", "0.400"],
    ]


def test_table_of_a_real_task_has_no_sites(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of([score("hippocampus_001", 0.5, NAN)], capsys)
    assert rows == [
        ["all 1 cases", "0.500", "-", "0.500"],
        ["worst case, hippocampus_001", "0.500", "-", "0.500"],
    ]


def test_best_median_and_worst_are_chosen() -> None:
    scores = [score(f"c{i}", i / 10, i / 10) for i in (3, 1, 5, 2, 4)]
    chosen = [(role, case.name) for role, case in report.three_cases(scores)]
    assert chosen == [("best", "c5"), ("median", "c3"), ("worst", "c1")]
    assert [role for role, _ in report.three_cases(scores[:2])] == ["best", "worst"]
    assert [role for role, _ in report.three_cases(scores[:1])] == ["best"]


def test_summary_of_nnunet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    case = {
        "prediction_file": "/somewhere/siteA_101.nii.gz",
        "reference_file": "/else/siteA_101.nii.gz",
        "metrics": {"1": {"Dice": 0.5}, "2": {"Dice": NAN}, "3": {"Dice": None}},
    }
    path.write_text(json.dumps({"metric_per_case": [case]}))
    (read,) = report.read_scores(path)
    assert read.name == "siteA_101"
    assert read.mean == 0.5
    assert math.isnan(read.dice[2])
    assert math.isnan(read.dice[3])


@pytest.mark.parametrize("content", ["", "{}", '{"metric_per_case": []}'])
def test_a_broken_summary_is_explained(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"summary\.json"):
        report.read_scores(path)


def test_picture_shows_true_and_predicted_labels_in_colour(tmp_path: Path) -> None:
    label = np.zeros((12, 20, 16), np.uint8)
    label[4:8, 5:15, 4:12] = 1
    label[5:7, 8:12, 6:9] = 2
    image = np.random.default_rng(0).normal(100, 10, label.shape).astype(np.float32)
    files = {}
    for name, array in (("image", image), ("truth", label), ("empty", label * 0)):
        files[name] = tmp_path / f"{name}.nii.gz"
        written = sitk.GetImageFromArray(array)
        written.SetSpacing((1.0, 1.0, 4.0))
        sitk.WriteImage(written, str(files[name]))
    cases = [
        CaseScore("good", {1: 1.0, 2: 1.0}, files["truth"], files["truth"]),
        CaseScore("bad", {1: 0.0, 2: 0.0}, files["truth"], files["empty"]),
    ]
    path = tmp_path / "demo.png"
    report.draw_cases(cases, LABELS, lambda case: files["image"], path, "Title")
    picture = imread(path)[..., :3]
    coloured = np.ptp(picture, axis=-1) > 0.2
    third = picture.shape[1] // 3
    assert not coloured[: -picture.shape[0] // 8, :third].any()  # the image itself is grey
    assert coloured[:, third : 2 * third].sum() > 1000
    assert coloured[:, 2 * third :].sum() > 1000
    assert list(tmp_path.glob(".*")) == []
