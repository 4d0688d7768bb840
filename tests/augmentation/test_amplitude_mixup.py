"""Amplitude mixup against an independent computation; numbers in brackets are the checks of the
method's specification."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext.augmentation import amplitude_mixup
from nnunet_ext.augmentation.amplitude_mixup import (
    LowFrequencies,
    StyleBank,
    draw_ratios,
    low_frequencies,
)
from tests.fixtures import reference

SHAPES = [(64, 64), (51, 77), (64, 96), (33, 20), (1, 40), (1, 1), (20, 24, 28), (1, 32, 31)]


def images(*shape: int, seed: int = 0) -> Tensor:
    """Images with more energy at low frequencies, in float64."""
    rng = np.random.default_rng(seed)
    noise, walk = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    return noise + walk.cumsum(-1) / 4


def spectrum(image: Tensor, axes: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The whole spectrum with frequency 0 in the middle, and how far each is from it."""
    whole = np.fft.fftshift(np.fft.fftn(image.numpy(), axes=axes), axes=axes)
    centered = (np.arange(image.shape[a]) - image.shape[a] // 2 for a in axes)
    return whole, np.abs(np.stack(np.meshgrid(*centered, indexing="ij")))


def window(image: Tensor, band: float, axes: tuple[int, ...]) -> NDArray[np.bool_]:
    _, distances = spectrum(image, axes)
    half = [int(np.floor(band * image.shape[a])) for a in axes]
    return np.all([d <= h for d, h in zip(distances, half, strict=True)], axis=0)


def by_the_book(
    source: Tensor, partner: Tensor, ratio: float, band: float = 0.1, *, signed: bool = True
) -> NDArray[np.float64]:
    """The formula on whole spectra of float64, without clipping.

    Where ``signed``, both images are first shifted to where all voxels are positive.
    """
    axes = tuple(range(2, source.ndim))
    shift = min(float(source.min()), float(partner.min())) if signed else 0.0
    ours, _ = spectrum(source - shift, axes)
    theirs, _ = spectrum(partner - shift, axes)
    amplitude = np.where(
        window(source, band, axes), (1 - ratio) * abs(ours) + ratio * abs(theirs), abs(ours)
    )
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * np.angle(ours)), axes=axes)
    back = np.fft.ifftn(mixed, axes=axes)
    assert np.abs(back.imag).max() < 1e-9
    return back.real + shift


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestFormula:
    def test_it_agrees_with_the_formula_on_whole_spectra(self, shape: tuple[int, ...]) -> None:
        source, partner = images(2, 3, *shape), images(2, 3, *shape, seed=1)  # [5]
        ratios = torch.tensor([0.3, 0.9], dtype=torch.float64)
        mixed = amplitude_mixup(source, partner, ratios, clip=False)
        for number, ratio in enumerate((0.3, 0.9)):
            one = slice(number, number + 1)
            expected = by_the_book(source[one], partner[one], ratio)
            np.testing.assert_allclose(mixed[one].numpy(), expected, atol=1e-9)

    def test_ratio_0_returns_the_source(self, shape: tuple[int, ...]) -> None:  # [1]
        source, partner = images(2, 2, *shape).float(), images(2, 2, *shape, seed=1).float()
        for clip in (True, False):
            assert torch.equal(amplitude_mixup(source, partner, torch.zeros(2), clip=clip), source)

    def test_a_partner_equal_to_the_source_changes_nothing(self, shape: tuple[int, ...]) -> None:
        source = images(2, 2, *shape).float()  # [6]
        for ratio in (0.1, 0.5, 1.0):
            assert torch.equal(amplitude_mixup(source, source, ratio), source)

    def test_phases_stay_and_amplitudes_are_mixed_inside_the_window_only(
        self, shape: tuple[int, ...]
    ) -> None:  # [2] [3]
        source, partner = images(1, 1, *shape), images(1, 1, *shape, seed=1)
        axes = tuple(range(2, source.ndim))
        inside = window(source, 0.1, axes)[None, None]
        center = np.zeros_like(inside)
        center[0, 0].flat[np.ravel_multi_index([n // 2 for n in shape], shape)] = True
        ours, theirs = (spectrum(each, axes)[0] for each in (source, partner))
        for ratio in (0.4, 1.0):
            mixed, _ = spectrum(
                amplitude_mixup(source.float(), partner.float(), ratio, clip=False).double(), axes
            )
            expected = (1 - ratio) * abs(ours) + ratio * abs(theirs)
            scale = abs(ours).max()
            np.testing.assert_allclose(mixed[~inside], ours[~inside], atol=1e-5 * scale)
            others = inside & ~center
            np.testing.assert_allclose(abs(mixed)[others], expected[others], atol=1e-5 * scale)
            loud = ~center & (abs(mixed) > 1e-3 * abs(mixed).max()) & (abs(ours) > 1e-3 * scale)
            turned = np.angle(mixed[loud] / ours[loud])
            assert np.abs(turned).max(initial=0) <= 2e-4

    def test_results_stay_in_the_range_of_the_pair(self, shape: tuple[int, ...]) -> None:  # [6]
        source, partner = images(2, 2, *shape), images(2, 2, *shape, seed=1)
        partner[:, 1] *= 3
        mixed = amplitude_mixup(source, partner, 1.0)
        axes = tuple(range(2, source.ndim))
        assert (mixed >= torch.minimum(source, partner).amin(axes, keepdim=True)).all()
        assert (mixed <= torch.maximum(source, partner).amax(axes, keepdim=True)).all()


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("ram_2d_square", 0.1),
        # the published window is a square also where the image is none
        ("ram_2d_even", (0.1, 6.5 / 96)),
        ("ram_2d_odd", (0.1, 5.5 / 77)),
    ],
)
def test_it_agrees_with_the_published_implementation(name: str, band: Any) -> None:
    arrays = reference(name)
    source, partner, expected = (
        torch.from_numpy(arrays[key])[None] for key in ("source", "partner", "mixed_unclipped")
    )
    ratio = float(arrays["partner_weight"])
    mixed = amplitude_mixup(source, partner, ratio, band, clip=False)
    torch.testing.assert_close(mixed, expected, atol=1e-9, rtol=1e-9)
    single = amplitude_mixup(source.float(), partner.float(), ratio, band, clip=False)
    torch.testing.assert_close(single.double(), expected, atol=1e-6 * 255, rtol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [(-0.5, 1.0), (-2.0, -1.0), (3.0, -1.0), (0.0, 0.0)])
def test_means_are_mixed_with_their_signs(ours: float, theirs: float) -> None:  # [4]
    source, partner = images(1, 1, 32, 48), images(1, 1, 32, 48, seed=1)
    source += ours - source.mean()
    partner += theirs - partner.mean()
    mixed = amplitude_mixup(source, partner, 0.5, clip=False)
    assert float(mixed.mean()) == pytest.approx((ours + theirs) / 2, abs=1e-9)


@pytest.mark.parametrize("shape", [(30, 50), (7, 12, 9)])
@pytest.mark.parametrize("value", [0.0, -0.7, 1e4])
def test_an_image_without_variation_keeps_none(shape: tuple[int, ...], value: float) -> None:
    constant, partner = torch.full((1, 2, *shape), value), images(1, 2, *shape).float()
    mixed = amplitude_mixup(constant, partner, 0.5, clip=False)  # [6]
    axes = tuple(range(2, partner.ndim))
    expected = (value + partner.mean(axes, keepdim=True)) / 2
    torch.testing.assert_close(mixed, expected.expand_as(mixed), atol=2e-6, rtol=2e-6)
    assert torch.isfinite(amplitude_mixup(partner, constant, 1.0)).all()
    both = amplitude_mixup(constant, torch.full_like(constant, 2.0), 0.25)
    torch.testing.assert_close(both, torch.full_like(both, 0.75 * value + 0.5))


def test_slices_are_mixed_each_for_itself_and_clipped_together() -> None:
    source, partner = images(2, 2, 5, 24, 18), images(2, 2, 5, 24, 18, seed=1)
    source[:, :, 2] = 0  # a slice without variation
    ratio = torch.tensor([0.3, 0.8])
    mixed = amplitude_mixup(source, partner, ratio, clip=False, slicewise=True)
    for number in range(5):
        each = amplitude_mixup(source[:, :, number], partner[:, :, number], ratio, clip=False)
        torch.testing.assert_close(mixed[:, :, number], each)
    axes = (2, 3, 4)
    low = torch.minimum(source, partner).amin(axes, keepdim=True)
    high = torch.maximum(source, partner).amax(axes, keepdim=True)
    clipped = amplitude_mixup(source, partner, ratio, slicewise=True)
    torch.testing.assert_close(clipped, mixed.clamp(low, high))


@pytest.mark.parametrize(
    ("shape", "half_widths"),
    [((256, 256), (25, 25)), ((384, 384), (38, 38)), ((20, 320, 256), (2, 32, 25))],
)
def test_the_window_has_a_half_width_per_axis(  # [7]
    shape: tuple[int, ...], half_widths: tuple[int, ...]
) -> None:
    kept = low_frequencies(torch.zeros(1, 1, *shape)).style.amplitude.shape[2:]
    *others, last = half_widths
    assert tuple(kept) == (*(2 * width + 1 for width in others), last + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_stays_and_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    source, partner = images(1, 1, 40, 36).to(dtype), images(1, 1, 40, 36, seed=1).to(dtype)
    before = source.clone()
    mixed = amplitude_mixup(source, partner, 0.5)
    assert mixed.dtype == dtype
    assert torch.equal(source, before)
    inside = torch.promote_types(dtype, torch.float32)
    expected = amplitude_mixup(source.to(inside), partner.to(inside), 0.5)
    assert torch.equal(mixed, expected.to(dtype))


def test_half_widths_from_the_mean_alone_to_the_whole_axis() -> None:
    source, partner = images(1, 1, 12, 9), images(1, 1, 12, 9, seed=1)
    shifted = source + (partner.mean() - source.mean()) / 2
    torch.testing.assert_close(amplitude_mixup(source, partner, 0.5, 0.0, clip=False), shifted)
    everything = amplitude_mixup(source, partner, 0.5, 0.5, clip=False).numpy()
    np.testing.assert_allclose(everything, by_the_book(source, partner, 0.5, 0.5), atol=1e-9)


def test_bad_input_is_refused_by_name() -> None:
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 8, 8\) and \(1, 1, 8, 9\)"):
        amplitude_mixup(image, torch.zeros(1, 1, 8, 9), 0.5)
    with pytest.raises(ValueError, match=r"band must be in \[0, 0.5\].*got 0.6"):
        amplitude_mixup(image, image, 0.5, 0.6)
    with pytest.raises(ValueError, match=r"band must be .*got \(0.1,\)"):
        amplitude_mixup(image, image, 0.5, (0.1,))
    with pytest.raises(ValueError, match=r"\(B, C, \*S\) in 2D or 3D, got \(8, 8\)"):
        amplitude_mixup(image[0, 0], image[0, 0], 0.5)


# ---------------------------------------------------------------------------------- random draws


def test_ratios_are_ten_levels_of_equal_chance() -> None:  # [7]
    ratios = draw_ratios(10_000, torch.Generator().manual_seed(0))
    levels = Counter(np.round(ratios.numpy(), 6).tolist())
    assert sorted(levels) == pytest.approx([k / 10 for k in range(10)])
    assert float(ratios.mean()) == pytest.approx(0.45, abs=0.02)
    assert levels[0.0] == pytest.approx(1000, abs=100)
    assert float(draw_ratios(100, maximum=0.3).max()) <= 0.3 + 1e-6


def frequencies(*values: float) -> LowFrequencies:
    """Low frequencies of images that can be told apart by their mean."""
    return low_frequencies(torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 8, 8))


class TestBank:
    def test_partners_are_of_other_domains_and_all_of_them_come(self) -> None:  # [8]
        bank = StyleBank(3)
        bank.push(frequencies(0, 0, 1, 1, 2, 2).style, [0, 0, 1, 1, 2, 2])
        style = frequencies(0, 1, 2).style
        generator = torch.Generator().manual_seed(0)
        seen = set()
        for _ in range(100):
            partners, found = bank.draw(style, [0, 1, 2], generator)
            assert found.all()
            drawn = partners.low.flatten().int().tolist()
            assert all(domain != own for own, domain in enumerate(drawn))
            seen |= set(enumerate(drawn))
        assert len(seen) == 6

    def test_without_another_domain_images_are_their_own_partners(self) -> None:  # [8]
        bank = StyleBank(2)
        style = frequencies(3, 4).style
        for _ in range(2):
            partners, found = bank.draw(style, [0, 0])
            assert not found.any()
            assert all(map(torch.equal, partners, style))
            bank.push(style, [0, 0])

    def test_the_oldest_are_forgotten(self) -> None:  # [8]
        bank = StyleBank(2, capacity=3)
        for value in range(5):
            bank.push(frequencies(value).style, [0])
        assert len(bank) == 3
        drawn = {float(bank.draw(frequencies(9).style, [1])[0].low) for _ in range(50)}
        assert drawn == {2.0, 3.0, 4.0}
        again = StyleBank(2, capacity=3)
        again.remember(bank.styles, torch.device("cpu"))
        assert len(again) == 3

    def test_another_patch_shape_is_refused(self) -> None:
        bank = StyleBank(2)
        bank.push(frequencies(0).style, [0])
        with pytest.raises(ValueError, match="one patch shape"):
            bank.push(low_frequencies(torch.zeros(1, 1, 64, 64)).style, [1])

    def test_it_keeps_no_batch_alive(self) -> None:
        bank = StyleBank(1)
        style = frequencies(0, 1).style
        bank.push(style, [0, 0])
        style.amplitude.fill_(7)
        assert float(bank.draw(style, [5])[0].amplitude.max()) < 100 * 64
        remembered = bank._styles[0][0].amplitude
        assert remembered.untyped_storage().nbytes() == remembered.numel() * 4
