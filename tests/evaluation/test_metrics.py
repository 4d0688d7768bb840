"""Our metrics against other people's implementations: MedPy, DeepMind's, nnU-Net's and MONAI's."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from medpy.metric import binary
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from nnunet_ext.evaluation.metrics import Lesions, Measures, count_lesions, measure

Labels = NDArray[Any]


def blobs(*shape: int, seed: int, noise: float = 0.3) -> tuple[Labels, Labels]:
    """Labels 0 to 2 in smooth blobs that may touch the border, and a noisy copy."""
    random = np.random.default_rng(seed)
    truth, change = (gaussian_filter(random.normal(size=shape), 2) for _ in range(2))
    levels = np.quantile(truth, [0.7, 0.9])
    return np.digitize(truth, levels), np.digitize(truth + noise * change, levels)


def box(shape: tuple[int, ...], *corners: tuple[int, int]) -> Labels:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(*corner) for corner in corners)] = 1
    return labels


CASES: dict[str, tuple[Labels, Labels, tuple[float, ...]]] = {
    "3D": (*blobs(30, 32, 28, seed=1), (1.0, 1.0, 1.0)),
    "thick slices": (*blobs(8, 40, 40, seed=2), (10.0, 1.0, 1.0)),
    "odd spacing": (*blobs(20, 24, 28, seed=3), (0.7, 3.3, 1.1)),
    "little overlap": (*blobs(24, 24, 24, seed=4, noise=3.0), (2.0, 0.9, 0.9)),
    "corner": (
        box((9, 9, 9), (0, 4), (0, 5), (0, 3)),
        box((9, 9, 9), (1, 9), (0, 4), (1, 4)),
        (1, 2, 3),
    ),
    "whole image": (
        box((6, 7, 8), (0, 6), (0, 7), (0, 8)),
        box((6, 7, 8), (2, 4), (1, 5), (3, 6)),
        (1, 1, 2),
    ),
    "two voxels": (
        box((9, 9, 9), (1, 2), (1, 2), (1, 2)),
        box((9, 9, 9), (7, 8), (3, 4), (8, 9)),
        (0.3, 1, 2),
    ),
    "2D": (*blobs(60, 64, seed=5), (1.0, 1.0)),
    "2D, odd spacing": (*blobs(50, 40, seed=6), (0.3, 0.71)),
    "2D, pixel in the corner": (
        box((20, 30), (0, 1), (29, 30)),
        box((20, 30), (0, 9), (11, 30)),
        (2.0, 0.7),
    ),
}


def independent(truth: Labels, prediction: Labels, spacing: tuple[float, ...]) -> Measures:
    """The metrics of two masks by MedPy and by DeepMind's surface-distance."""
    directed = [
        binary.__surface_distances(*masks, spacing)
        for masks in ((prediction, truth), (truth, prediction))
    ]
    surfaces = compute_surface_distances(truth, prediction, spacing)
    return Measures(
        dice=binary.dc(prediction, truth),
        nsd=compute_surface_dice_at_tolerance(surfaces, min(spacing)),
        hd95=max(np.percentile(distances, 95) for distances in directed),
        assd=np.concatenate(directed).mean(),
        empty="",
    )


def lumps(*shape: int, seed: int) -> tuple[Labels, Labels]:
    """Ellipsoids of labels 1 and 2, and other ones near them, by integers alone.

    Label 3 is in the first only, 4 in the second only, 5 in none.
    """
    draw = random.Random(seed).randrange
    pair = np.zeros((2, *shape), int)
    grid = np.indices(shape)
    for label in (1, 1, 1, 2, 2):
        middle = [draw(n) for n in shape]
        radii = [1 + draw(n // 4 + 1) for n in shape]
        for labels in pair:
            scale = math.prod(radii)
            moved = [at + draw(-1, 2) for at in middle]
            terms = zip(grid, moved, radii, strict=True)
            labels[sum(((x - at) * scale // r) ** 2 for x, at, r in terms) <= scale**2] = label
    for labels, label in zip(pair, (3, 4), strict=True):
        labels[tuple(slice(0, 1 + n // 8) for n in shape)] = label
    return pair[0], pair[1]


LUMPS: dict[str, tuple[Labels, Labels, tuple[float, ...]]] = {
    "hippocampus": (*lumps(36, 51, 35, seed=1), (1.0, 1.0, 1.0)),
    "heart": (*lumps(12, 64, 64, seed=2), (9.6, 0.75, 0.75)),
    "retina": (*lumps(1, 140, 130, seed=3), (999.0, 1.0, 1.0)),
    "skin": (*lumps(96, 128, seed=4), (1.0, 1.0)),
    "odd spacing": (*lumps(20, 24, 28, seed=5), (0.7, 3.3, 1.1)),
    "odd spacing in 2D": (*lumps(90, 70, seed=6), (0.3, 0.71)),
}
REGIONS = (1, 2, 3, 4, 5, (1, 2))
OF_MONAI = json.loads(Path(__file__).with_name("monai_1_6_1.json").read_text())
"""compute_surface_dice(use_subvoxels=True) and, of get_mask_edges, get_surface_distance, as the
recorded experiments were measured with."""


def numbers(measures: Measures) -> list[float]:
    return [measures.dice, measures.nsd, measures.hd95, measures.assd]


@pytest.mark.filterwarnings("ignore:Please import")  # of scipy, to surface-distance
@pytest.mark.parametrize("case", CASES)
def test_metrics_agree_with_other_implementations(case: str) -> None:
    truth, prediction, spacing = CASES[case]
    result = measure(truth, prediction, spacing, [1])[1]
    expected = independent(truth == 1, prediction == 1, spacing)
    assert numbers(result) == pytest.approx(numbers(expected), rel=1e-6, abs=1e-6)
    assert result.empty == ""


@pytest.mark.parametrize("case", LUMPS)
def test_scores_are_those_that_monai_gave(case: str) -> None:
    for region, result in measure(*LUMPS[case], REGIONS).items():
        expected = OF_MONAI[case][str(region)]
        assert result.empty == expected.pop("empty")
        for name, value in expected.items():
            found = getattr(result, name)
            assert math.isnan(found) if value is None else abs(found - value) <= 1e-6, name


def test_neighbours_one_voxel_apart_are_within_the_tolerance_along_the_finest_axis_only() -> None:
    truth = box((8, 12, 12), (3, 5), (3, 9), (3, 9))
    nsd = [measure(truth, np.roll(truth, 1, axis), (10, 1, 1), [1])[1].nsd for axis in range(3)]
    assert nsd[0] < 0.8
    assert nsd[1:] == [1, 1]


def test_a_region_is_measured_as_the_union_of_its_labels() -> None:
    truth, prediction, spacing = CASES["3D"]
    result = measure(truth, prediction, spacing, [(1, 2), 2])
    assert result[1, 2] == measure(truth > 0, prediction > 0, spacing, [1])[1]
    assert result[2] == measure(truth == 2, prediction == 2, spacing, [1])[1]


@pytest.mark.parametrize(("true", "predicted", "empty"), [(1, 0, "prediction"), (0, 1, "truth")])
def test_a_mask_missing_on_one_side_is_the_worst_possible(
    true: int, predicted: int, empty: str
) -> None:
    some = box((3, 4, 12), (0, 2), (0, 2), (0, 2))
    result = measure(true * some, predicted * some, (1, 1, 1), [1])[1]
    assert result == Measures(0, 0, 13, 13, empty)  # 3² + 4² + 12² = 13²


def test_a_region_that_is_nowhere_has_no_metrics() -> None:
    nothing = np.zeros((5, 6), int)
    result = measure(nothing, nothing, (1, 1), [3])[3]
    assert all(math.isnan(number) for number in numbers(result))
    assert result.empty == "both"


@pytest.mark.parametrize("axis", range(3))
def test_an_axis_of_length_one_is_none(axis: int) -> None:
    truth, prediction, spacing = CASES["2D, odd spacing"]
    deep = np.expand_dims(truth, axis), np.expand_dims(prediction, axis)
    result = measure(*deep, (*spacing[:axis], 0.01, *spacing[axis:]), [1, (1, 2)])
    assert result == measure(truth, prediction, spacing, [1, (1, 2)])


@pytest.mark.parametrize("ignore", [None, 2])
def test_dice_is_nnunets(ignore: int | None) -> None:
    truth, prediction, spacing = CASES["thick slices"]
    reader = SimpleNamespace(read_seg=lambda labels: (labels, {}))
    regions = [1, (1, 2)]
    metrics = compute_metrics(truth, prediction, reader, regions, ignore)["metrics"]
    result = measure(truth, prediction, spacing, regions, ignore)
    assert {region: result[region].dice for region in regions} == {
        region: metrics[region]["Dice"] for region in regions
    }


def test_ignored_voxels_are_background_on_both_sides() -> None:
    truth, prediction, spacing = CASES["3D"]
    ignored = np.zeros_like(truth, bool)
    ignored[:, :16] = True
    marked = np.where(ignored, 9, truth)
    without = measure(truth * ~ignored, prediction * ~ignored, spacing, [1, (1, 2)])
    assert measure(marked, prediction, spacing, [1, (1, 2)], ignore=9) == without


def test_a_region_all_ignored_is_nowhere() -> None:
    labels = box((4, 4), (0, 2), (0, 2))
    assert measure(2 * labels, labels, (1, 1), [1], ignore=2)[1].empty == "both"


@pytest.mark.parametrize(
    ("truth", "prediction", "spacing", "message"),
    [
        ((4, 5), (5, 4), (1, 1), r"truth's shape is \(4, 5\), the prediction's \(5, 4\)"),
        ((1, 4, 5), (1, 4, 5), (1, 1), r"shape \(1, 4, 5\) and spacing \(1, 1\)"),
        ((1, 2, 4, 5), (1, 2, 4, 5), (1, 1, 1, 1), "two or three axes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    truth: tuple[int, ...], prediction: tuple[int, ...], spacing: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(np.zeros(truth), np.zeros(prediction), spacing, [1])


def test_lesions_are_found_by_a_shared_voxel_and_hang_together_over_corners() -> None:
    truth = np.array(
        [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 2], [0, 0, 0, 0, 0, 9]]
    )
    prediction = np.array(
        [[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]]
    )
    found = count_lesions(truth, prediction, [1, 2, 3], ignore=9)
    # one prediction finds two lesions of the truth, a third is missed; one prediction is wrong
    assert found[1] == Lesions(true=3, found=2, predicted=2, right=1)
    assert (found[1].recall, found[1].precision) == (2 / 3, 1 / 2)
    assert found[1].f1 == pytest.approx(4 / 7)
    assert found[2] == Lesions(1, 0, 0, 0)
    assert (found[2].recall, found[2].f1) == (0, 0)
    assert math.isnan(found[2].precision)
    assert all(map(math.isnan, (found[3].recall, found[3].precision, found[3].f1)))


SHAPES = array_shapes(min_dims=2, max_dims=3, max_side=6)
SPACINGS = st.tuples(*[st.floats(0.1, 10)] * 3)


@settings(max_examples=40)
@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 1)), SPACINGS)
def test_the_truth_itself_is_a_perfect_prediction(labels: Labels, spacing: list[float]) -> None:
    result = measure(labels, labels, spacing[: labels.ndim], [1])[1]
    assert result.empty == "both" or numbers(result) == [1, 1, 0, 0]


@settings(max_examples=40)
@given(arrays(np.uint8, (2, 4, 5, 3), elements=st.integers(0, 1)), SPACINGS)
def test_metrics_do_not_change_when_truth_and_prediction_swap(
    pair: Labels, spacing: tuple[float, ...]
) -> None:
    result = measure(pair[0], pair[1], spacing, [1])[1]
    swapped = measure(pair[1], pair[0], spacing, [1])[1]
    assert numbers(result) == pytest.approx(numbers(swapped), rel=1e-6, nan_ok=True)
