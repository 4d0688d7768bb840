"""The pictures of worst, median and best cases."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_ext.benchmark import overlays
from nnunet_ext.benchmark.overlays import Picture
from tests.benchmark.synthetic_results import ARMS, make_results


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


def pictures(folder: Path, photographs: bool = False, cases: int = 7) -> list[Picture]:
    results = make_results(folder, cases=cases, photographs=photographs)
    scores = results.scores[results.scores["arm"] == ARMS[0]]
    return [*overlays.overlays(scores, results, folder)]


def test_worst_median_and_best_are_picked_once() -> None:
    assert overlays.pick(9) == {"worst": 0, "2nd worst": 1, "3rd worst": 2, "median": 4, "best": 8}
    assert overlays.pick(3) == {"worst": 0, "median": 1, "best": 2}
    assert overlays.pick(1) == {"worst": 0}
    assert overlays.pick(0) == {}


def test_cases_are_picked_by_mean_dice_over_labels_and_seeds(tmp_path: Path) -> None:
    results = make_results(tmp_path, cases=7)
    mine = results.scores[results.scores["arm"] == ARMS[0]]
    means = mine.groupby("case")["dice"].mean().sort_values()
    expected = [means.index[i] for i in (0, 1, 2, 3, 6)]
    drawn = pictures(tmp_path)
    assert [picture.title.split(": ")[1] for picture in drawn] == expected
    assert [float(picture.details[0].split()[1]) for picture in drawn] == pytest.approx(
        [round(means[case], 3) for case in expected]
    )


def test_prediction_nearest_to_the_mean_is_shown_and_named(tmp_path: Path) -> None:
    results = make_results(tmp_path, cases=1, seeds=3)
    scores = results.scores[results.scores["arm"] == ARMS[0]].copy()
    scores["dice"] = scores["seed"].map({0: 0.2, 1: 0.5, 2: 0.9})
    (picture,) = overlays.overlays(scores, results, tmp_path)
    assert picture.details[:2] == ["Dice 0.533", "shown: seed 1, 0.500"]


@pytest.mark.parametrize("photographs", [False, True])
def test_slice_and_labels_are_separate_small_pictures(tmp_path: Path, photographs: bool) -> None:
    drawn = pictures(tmp_path, photographs)
    assert len(drawn) == 5
    for picture in drawn:
        image, labels = pixels(picture.image), pixels(picture.labels)
        assert image.shape[:2] == labels.shape[:2]
        grey = (np.ptp(image.astype(int), axis=-1) < 12).mean()
        assert grey < 0.5 if photographs else grey > 0.99
        assert 0.02 < (labels[..., 3] > 0).mean() < 0.6
        assert len(picture.image) + len(picture.labels) < 150_000


def test_picture_has_contrast_whatever_the_units_of_the_image(tmp_path: Path) -> None:
    for picture in pictures(tmp_path):
        image = pixels(picture.image)
        assert np.percentile(image, 1) < 30
        assert np.percentile(image, 99) > 220


def test_region_of_several_labels_is_drawn_as_one(tmp_path: Path) -> None:
    results = make_results(
        tmp_path, arms=ARMS[:1], cases=1, labels={"(1, 2)": "whole", "2": "part"}
    )
    (picture,) = overlays.overlays(results.scores, results, tmp_path)
    labels = pixels(picture.labels)
    seen = {tuple(pixel) for pixel in labels[labels[..., 3] == labels[..., 3].max()][:, :3]}
    assert len(seen) >= 2
    assert overlays._region("(1, 2)") == (1, 2)
    assert overlays._region("3") == (3,)


def test_thin_structures_are_shown_where_they_are_wrong() -> None:
    truth = np.zeros((400, 400), int)
    truth[::20, :] = 1
    prediction = truth.copy()
    prediction[290:310, 80:110] = 1
    rows, columns = overlays._close_up(truth, prediction, 1.0)
    assert rows.start < 290 < 310 < rows.stop
    assert columns.start < 80 < 110 < columns.stop
    assert rows.stop - rows.start < 150


@pytest.mark.parametrize("aspect", [1.0, 3.0, 0.4])
def test_close_up_is_square_and_holds_all_labels(aspect: float) -> None:
    truth = np.zeros((300, 400), int)
    truth[140:170, 50:90] = 1
    rows, columns = overlays._close_up(truth, truth, aspect)
    assert rows.start < 140 < 170 < rows.stop
    assert columns.start < 50 < 90 < columns.stop
    height, width = (rows.stop - rows.start) * aspect, columns.stop - columns.start
    assert height == pytest.approx(width, rel=0.05)


def test_slice_without_labels_is_shown_whole() -> None:
    nothing = np.zeros((30, 40), int)
    assert overlays._close_up(nothing, nothing, 1.0) == (slice(0, 30), slice(0, 40))


@pytest.mark.parametrize("damage", ["missing", "broken", "other shape"])
def test_case_that_cannot_be_drawn_says_why(tmp_path: Path, damage: str) -> None:
    results = make_results(tmp_path, arms=ARMS[:1], cases=1, photographs=True)
    image = Path(results.scores["image"].iloc[0])
    if damage == "missing":
        image.unlink()
    elif damage == "broken":
        image.write_bytes(b"no picture")
    else:
        Image.new("RGB", (5, 5)).save(image)
    (picture,) = overlays.overlays(results.scores, results, tmp_path)
    assert picture.image == picture.labels == ""
    assert re.match("cannot be drawn: .+", picture.details[-1])
