"""Degradations against their definitions, worked out another way where there is one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from skimage.io import imread, imsave

from nnunet_ext.benchmark.degradation import Degradation, degrade, write_degraded

NOTHING = Degradation()
ALL = Degradation(contrast=0.6, gamma=1.5, blur=1.0, noise=0.2)


def volume(shape: tuple[int, ...] = (9, 20, 24), seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).gamma(2, 50, shape)


@given(
    image=st.sampled_from(["uint8", "int16", "int32", "float32", "float64"]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=3))
    )
)
def test_no_degradation_changes_no_bit(image: NDArray[Any]) -> None:
    with np.errstate(all="ignore"):  # of its own making, hypothesis likes infinities
        same = degrade(image, (1.0,) * image.ndim, NOTHING, 0)
    assert same.dtype == image.dtype
    np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_type_and_shape_stay(dtype: str) -> None:
    image = volume().clip(0, 255).astype(dtype)
    degraded = degrade(image, (3, 1, 1), ALL, 0)
    assert (degraded.dtype, degraded.shape) == (image.dtype, image.shape)
    assert not np.array_equal(degraded, image)


def test_contrast_shrinks_around_the_mean() -> None:
    image = volume()
    half = degrade(image, (1, 1, 1), Degradation(contrast=0.5), 0)
    assert half.mean() == pytest.approx(image.mean())
    np.testing.assert_allclose(np.gradient(half), np.multiply(0.5, np.gradient(image)), atol=1e-9)


def test_gamma_bends_between_the_extremes_which_stay() -> None:
    image = np.array([[-100.0, 0.0], [100.0, 300.0]])
    bent = degrade(image, (1, 1), Degradation(gamma=2), 0)
    np.testing.assert_allclose(bent, [[-100, -75], [0, 300]])


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_constant_image_has_nothing_to_bend_and_no_noise(gamma: float) -> None:
    image = np.full((4, 4), 7.0)
    degradation = Degradation(gamma=gamma, noise=1.0, blur=1.0, contrast=0.5)
    np.testing.assert_allclose(degrade(image, (1, 1), degradation, 0), image)


def test_blur_is_a_gaussian_as_wide_in_millimetres_along_every_axis() -> None:
    image = np.zeros((21, 41, 41))
    image[10, 20, 20] = 1
    spacing = np.array([2.0, 1.0, 1.0])
    blurred = degrade(image, spacing, Degradation(blur=3.0), 0)
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    variances = (((grid - [10, 20, 20]) * spacing) ** 2 * blurred[..., None]).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(np.sqrt(variances), 3.0, rtol=0.03)


def test_blur_does_not_reach_across_slices_that_are_far_apart() -> None:
    image = volume((1, 20, 24))
    flat = degrade(image, (999, 1, 1), Degradation(blur=2.0), 0)
    np.testing.assert_allclose(flat[0], degrade(image[0], (1, 1), Degradation(blur=2.0), 0))


def test_noise_is_a_share_of_the_undegraded_images_spread() -> None:
    image = volume((40, 50, 60))
    clean = degrade(image, (1, 1, 1), Degradation(contrast=0.3), 0)
    noisy = degrade(image, (1, 1, 1), Degradation(contrast=0.3, noise=0.2), 0)
    assert (noisy - clean).std() == pytest.approx(0.2 * image.std(), rel=0.02)
    assert (noisy - clean).mean() == pytest.approx(0, abs=0.005 * image.std())


def test_the_order_is_blur_contrast_gamma_noise() -> None:
    image, spacing = volume(), (3.0, 1.0, 1.0)
    step = image
    for single in (Degradation(blur=1.0), Degradation(contrast=0.6), Degradation(gamma=1.5)):
        step = degrade(step, spacing, single, 0)
    noise = degrade(image, spacing, Degradation(noise=0.2), 5) - image
    np.testing.assert_allclose(degrade(image, spacing, ALL, 5), step + noise)


def test_integers_are_rounded_and_clipped() -> None:
    image = np.array([[0, 10], [250, 255]], np.uint8)
    noisy = degrade(np.tile(image, (50, 50)), (1, 1), Degradation(noise=1.0), 0)
    assert (noisy == 0).mean() > 0.2
    assert (noisy == 255).mean() > 0.2
    shrunk = degrade(np.array([[0, 3]], np.uint8), (1, 1), Degradation(contrast=0.6), 0)
    np.testing.assert_array_equal(shrunk, [[1, 2]])  # 0.6 and 2.4


def test_channels_keep_their_relation() -> None:
    image = np.stack([np.full((8, 8), 100.0), np.full((8, 8), 50.0), volume((8, 8))])
    shrunk = degrade(image, (1, 1), Degradation(contrast=0.5), 0)
    np.testing.assert_allclose(shrunk[0] - shrunk[1], 25)
    blurred = degrade(image, (1, 1), Degradation(blur=2.0), 0)
    np.testing.assert_allclose(blurred[:2], image[:2])
    np.testing.assert_allclose(blurred[2], degrade(image[2], (1, 1), Degradation(blur=2.0), 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"contrast": 0.0},
        {"contrast": 1.1},
        {"gamma": 0.0},
        {"blur": -1.0},
        {"noise": -0.1},
        {"gamma": float("inf")},
        {"brightness": 1.0},
        {"noise": "much"},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Degradation(**wrong)


def test_it_reads_from_json_and_back() -> None:
    adapter = TypeAdapter(Degradation)
    assert adapter.validate_json('{"blur": 2, "noise": 0.5}') == Degradation(blur=2.0, noise=0.5)
    assert json.loads(adapter.dump_json(ALL, exclude_defaults=True))["gamma"] == 1.5


# ----------------------------------------------------------------------------------------- files


def test_a_medical_file_keeps_its_geometry(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(volume().astype(np.int16))
    image.SetSpacing((0.5, 0.5, 4.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    source, target = tmp_path / "case_0000.nii.gz", tmp_path / "out.nii.gz"
    sitk.WriteImage(image, source)
    write_degraded(source, target, Degradation(blur=2.0), 0)
    degraded = sitk.ReadImage(target)
    for name in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID", "GetSize"):
        assert getattr(degraded, name)() == getattr(image, name)()
    expected = degrade(sitk.GetArrayFromImage(image), (4.0, 0.5, 0.5), Degradation(blur=2.0), 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(degraded), expected)


def test_a_photograph_loses_contrast_around_the_mean_of_all_colours(tmp_path: Path) -> None:
    colours = np.zeros((6, 6, 3), np.uint8) + np.array([200, 100, 0], np.uint8)
    imsave(tmp_path / "a.png", colours, check_contrast=False)
    write_degraded(tmp_path / "a.png", tmp_path / "b.png", Degradation(contrast=0.5), 0)
    np.testing.assert_array_equal(imread(tmp_path / "b.png")[0, 0], [150, 100, 50])


def test_noise_depends_on_seed_and_file_name_only(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> NDArray[np.uint8]:
        source = tmp_path / name
        ramp = np.tile(np.arange(0, 250, 5), (40, 1)).astype(np.uint8)
        imsave(source, ramp, check_contrast=False)
        write_degraded(source, tmp_path / "out.png", Degradation(noise=0.1), seed)
        result: NDArray[np.uint8] = imread(tmp_path / "out.png")
        return result

    first = written("case_1_0000.png", 0)
    others = [written("case_2_0000.png", 0), written("case_1_0000.png", 1)]
    assert not any(np.array_equal(first, other) for other in others)
    np.testing.assert_array_equal(written("case_1_0000.png", 0), first)
