"""Scores by domain: of the epoch's validation, and of the final one."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.evaluation import validation
from nnunet_ext.evaluation.validation import counted_by_image, pseudo_dice, with_domains

# ---------------------------------------------------------------------------- while it trains


LABELLED = {
    "labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
    "labels without ignore": {"background": 0, "organ": 1, "lesion": 2},
    "regions": {"background": 0, "whole": (1, 2), "core": (2,), "ignore": 3},
    "regions without ignore": {"background": 0, "whole": (1, 2), "core": (2,)},
}


def stand_in(labels: dict[str, Any], logits: list[Any]) -> Any:
    """What nnU-Net's validation step needs of a trainer."""
    order = [1, 2] if "whole" in labels else None
    return SimpleNamespace(
        device=torch.device("cpu"),
        network=lambda data: logits if len(logits) > 1 else logits[0],
        loss=lambda output, target: torch.tensor(0.5),
        enable_deep_supervision=len(logits) > 1,
        label_manager=LabelManager(labels, order),
    )


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("size", [(5, 4), (4, 3, 5)])
def test_counts_of_images_add_up_to_what_nnunet_counts(
    size: tuple[int, ...], kind: str, scales: int
) -> None:
    torch.manual_seed(0)
    labels = LABELLED[kind]
    outputs = 2 if "whole" in labels else 3
    channels = outputs + ("ignore" in labels) if "whole" in labels else 1
    logits = [torch.randn(3, outputs, *size) for _ in range(scales)]
    highest = 2 if "whole" in labels else len(labels)
    target = [torch.randint(highest, (3, channels, *size)).float() for _ in range(scales)]
    batch = {"data": torch.zeros(1), "target": target if scales > 1 else target[0]}
    plain = stand_in(labels, logits)
    expected = nnUNetTrainer.validation_step(plain, copy.deepcopy(batch))
    trainer = stand_in(labels, logits)
    loss = trainer.loss
    with counted_by_image(trainer) as counted:
        found = nnUNetTrainer.validation_step(trainer, batch)
    assert trainer.loss is loss
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    (counts,) = counted
    assert counts.shape == (3, 3, outputs)
    hard = [expected[f"{each}_hard"] for each in ("tp", "fp", "fn")]
    np.testing.assert_array_equal(counts.sum(1)[:, "whole" not in labels :], hard)


def test_the_loss_comes_back_after_an_error() -> None:
    trainer = stand_in(LABELLED["labels"], [torch.zeros(1)])
    loss = trainer.loss
    with pytest.raises(RuntimeError, match="no luck"), counted_by_image(trainer):
        raise RuntimeError("no luck")
    assert trainer.loss is loss


def test_images_are_told_apart_by_their_case_and_those_without_domain_left_out() -> None:
    counted = [np.arange(9).reshape(3, 3, 1)]
    keys = np.array(["a", "x", "b"])  # as nnU-Net's loader gives them
    images = with_domains(counted, keys, {"a": "A", "b": "B"})
    assert [(domain, counts.ravel().tolist()) for domain, counts in images] == [
        ("A", [0, 3, 6]),
        ("B", [2, 5, 8]),
    ]


COUNTS = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=3, max_size=3)


@given(st.lists(st.tuples(st.sampled_from("AB"), COUNTS), max_size=6))
def test_pseudo_dice_is_that_of_all_voxels_of_a_domain(
    images: list[tuple[str, list[list[int]]]],
) -> None:
    dice = pseudo_dice([(domain, np.array(counts)) for domain, counts in images], background=False)
    for domain in "AB":
        total = np.sum([counts for name, counts in images if name == domain], axis=0)
        if not np.any(total):
            assert domain not in dice
            continue
        tp, fp, fn = total
        with np.errstate(invalid="ignore"):
            expected = np.nanmean(2 * tp / (2 * tp + fp + fn))
        assert dice[domain] == pytest.approx(expected)


def test_background_does_not_count() -> None:
    counts = np.array([[100, 1], [0, 1], [0, 1]])
    assert pseudo_dice([("A", counts)], background=True) == {"A": 0.5}
    assert pseudo_dice([("A", counts)], background=False) == {"A": 0.75}


# ------------------------------------------------------------------------------- after it trained

LABELS = {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}
DESCRIBED: dict[str, Any] = {
    "labels": LABELS,
    "file_ending": ".nii.gz",
    "domains": {"a1": "A", "a2": "A", "b1": "B"},
}


def evaluated(folder: Path, dice: dict[str, list[float]]) -> Path:
    """Cases of 8 voxels along each axis: a bar predicted one voxel off, and Dice as given."""
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:4, 2:4, 2:4], truth[5:7, 5:7, 5:7] = 1, 2
    cases = []
    for case, values in dice.items():
        for name, array in {"truth": truth, "predicted": np.roll(truth, 1, axis=0)}.items():
            (folder / name).mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1, 1, 2))
            sitk.WriteImage(image, folder / name / f"{case}.nii.gz")
        cases.append(
            {
                "reference_file": str(folder / "truth" / f"{case}.nii.gz"),
                "prediction_file": f"elsewhere/{case}.nii.gz",
                "metrics": {str(label): {"Dice": d} for label, d in enumerate(values, start=1)},
            }
        )
    (folder / "predicted" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    return folder / "predicted"


def summarise(folder: Path, **changes: Any) -> tuple[str, dict[str, Any]]:
    table = validation.summarise(folder, DESCRIBED | changes, SimpleITKIO(), 3)
    return table, json.loads((folder / validation.SUMMARY_FILE).read_text())


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "default_num_processes", 1)


def test_scores_are_averaged_over_cases_then_labels_and_the_worst_domain_named(
    tmp_path: Path,
) -> None:
    dice = {"a1": [0.8, 0.4], "a2": [0.6, math.nan], "b1": [0.9, 0.1], "other": [0.0, 0.0]}
    table, summary = summarise(evaluated(tmp_path, dice))
    of_a, of_b = summary["domains"]["A"], summary["domains"]["B"]
    assert of_a["cases"] == 2
    assert of_a["labels"]["organ"]["dice"] == pytest.approx(0.7)
    assert of_a["labels"]["lesion"]["dice"] == pytest.approx(0.4)
    assert of_a["mean"]["dice"] == pytest.approx(0.55)
    assert of_b["mean"]["dice"] == pytest.approx(0.5)
    assert of_b["labels"]["organ"]["hd95"] == 2  # one slice of 2 mm
    assert summary["worst_domain"] == "B"
    assert summary["cases_without_domain"] == ["other"]
    assert [line.split() for line in table.splitlines()] == [
        ["domain", "cases", "label", "Dice", "HD95"],
        ["A", "2", "organ", "0.7000", "2.0000"],
        ["A", "2", "lesion", "0.4000", "2.0000"],
        ["A", "2", "mean", "0.5500", "2.0000"],
        ["B", "1", "organ", "0.9000", "2.0000"],
        ["B", "1", "lesion", "0.1000", "2.0000"],
        ["B", "1", "mean", "0.5000", "2.0000"],
        ["Worst", "domain:", "B,", "mean", "Dice", "0.5000"],
    ]


def test_a_domain_in_which_a_label_never_is_has_no_dice_and_is_not_the_worst(
    tmp_path: Path,
) -> None:
    folder = evaluated(tmp_path, {"a1": [0.8], "b1": [math.nan]})
    _, summary = summarise(folder)
    assert summary["domains"]["B"]["mean"]["dice"] is None
    assert summary["worst_domain"] == "A"
    assert "NaN" not in (folder / validation.SUMMARY_FILE).read_text()


def test_validation_cases_without_any_domain_are_said(tmp_path: Path) -> None:
    table, summary = summarise(evaluated(tmp_path, {"x": [0.8]}))
    assert table == "No validation case has a domain."
    assert summary == {"worst_domain": None, "domains": {}, "cases_without_domain": ["x"]}


def test_where_nothing_was_evaluated_there_is_nothing_to_summarise(tmp_path: Path) -> None:
    (tmp_path / "predicted").mkdir()
    table, summary = summarise(evaluated(tmp_path, {}))
    assert table == "No validation case has a domain."
    assert summary["domains"] == {}


def test_regions_have_their_names(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, {"a1": [0.8, 0.4]})
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"1": {"D', '"(1, 2)": {"D'))
    table, summary = summarise(folder, labels={"background": 0, "whole": [1, 2], "core": 2})
    assert list(summary["domains"]["A"]["labels"]) == ["whole", "core"]
    assert "Worst domain" not in table  # there is only one
