"""``nnunet-ext demo`` refuses what it cannot do before it does anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
from matplotlib.image import imread

from nnunet_ext.benchmark.results import CLEAN, TEST, Results
from nnunet_ext.cli.demo import publish as publish_results

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "Task02_Heart", "--cases", "9"], "--cases is for synthetic data"),
        (["--task", "Hart"], "There is no Decathlon task"),
        (["--trainer", "CateNormTrianer"], "Did you mean CateNormTrainer"),
        (["--device", "tpu"], "one of cpu, cuda, mps"),
    ],
)
def test_impossible_wishes_are_explained_and_nothing_is_written(
    cli: Cli, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "out"
    outcome = cli("demo", "--out", str(out), *options)
    assert outcome.code == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not out.exists()


def test_a_folder_with_other_contents_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    outcome = cli("demo", "--out", str(tmp_path), "--device", "cpu")
    assert outcome.code == 1
    assert "Name another folder with --out" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


NAN = float("nan")
LABELS = {"1": "organ", "2": "lesion"}
DICE = {"siteA_101": (0.9, 0.8), "siteA_102": (0.7, NAN), "siteB_101": (0.5, 0.3)}


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., list[str]]:
    """Publish scores of cases that are all predicted alike; returns the lines of the table."""
    label = np.zeros((12, 20, 16), np.uint8)
    label[4:8, 5:15, 4:12] = 1
    label[5:7, 8:12, 6:9] = 2
    image = np.random.default_rng(0).normal(100, 10, label.shape).astype(np.float32)
    files = {}
    for name, array in (("image", image), ("truth", label), ("prediction", label)):
        files[name] = str(tmp_path / f"{name}.nii.gz")
        written = sitk.GetImageFromArray(array)
        written.SetSpacing((1.0, 1.0, 4.0))
        sitk.WriteImage(written, files[name])

    def call(dice: dict[str, tuple[float, ...]], evaluation: str = TEST) -> list[str]:
        rows = [
            {"case": case, "label": label, "dice": value, "evaluation": evaluation, **files}
            for case, values in dice.items()
            for label, value in zip(LABELS, values, strict=True)
        ]
        results = Results(
            *("Dataset999_Phantom", "", "arm", {"arm": {}}, LABELS, pd.DataFrame(rows)),
            *(pd.DataFrame(), pd.DataFrame(), {}, {}, []),
        )
        publish_results(results, tmp_path)
        return (tmp_path / "summary.txt").read_text(encoding="utf-8").strip().splitlines()

    return call


def test_table_shows_labels_sites_and_the_worst_case(publish: Callable[..., list[str]]) -> None:
    title, _, *rows = publish(DICE)
    assert title == "arm on the 3 test cases of Phantom"
    assert [row.split() for row in rows] == [
        ["Dice", "organ", "lesion", "mean"],
        ["all", "3", "cases", "0.700", "0.550", "0.625"],
        ["siteA,", "2", "cases", "0.800", "0.800", "0.800"],
        ["siteB,", "1", "case", "0.500", "0.300", "0.400"],
        ["worst", "case,", "siteB_101", "0.500", "0.300", "0.400"],
    ]


def test_table_of_a_real_task_has_no_sites(publish: Callable[..., list[str]]) -> None:
    title, _, _, *rows = publish({"hippocampus_001": (0.5, NAN)}, CLEAN)
    assert title == "arm on the 1 validation cases of Phantom"
    assert [row.split()[-4:] for row in rows] == [
        ["cases", "0.500", "-", "0.500"],
        ["hippocampus_001", "0.500", "-", "0.500"],
    ]


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_picture_shows_true_and_predicted_labels_in_colour(
    publish: Callable[..., list[str]], tmp_path: Path, cases: int
) -> None:
    publish(dict(list(DICE.items())[:cases]))
    picture = imread(tmp_path / "demo.png")[..., :3]
    assert picture.shape[0] == pytest.approx(120 * (3.05 * cases + 0.9), abs=1)
    coloured = np.ptp(picture, axis=-1) > 0.2
    third = picture.shape[1] // 3
    assert not coloured[: -picture.shape[0] // 8, :third].any()  # the image itself is grey
    assert coloured[:, third : 2 * third].sum() > 1000
    assert coloured[:, 2 * third :].sum() > 1000
    assert list(tmp_path.glob(".*")) == []
