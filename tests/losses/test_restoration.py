"""The loss of restored images against sums by hand."""

import pytest
import torch

from nnunet_ext.losses import RestorationLoss


def test_errors_are_averaged_within_and_summed_over_domains() -> None:
    restored = torch.tensor([0.0, 0.1, 0.2, 0.5]).view(4, 1, 1, 1).expand(4, 2, 3, 5)
    images = torch.zeros(4, 2, 3, 5)
    domains = torch.tensor([2, 0, 2, 2])
    expected = 0.1**2 + (0.0**2 + 0.2**2 + 0.5**2) / 3
    assert float(RestorationLoss()(restored, images, domains)) == pytest.approx(expected)


def test_targets_are_images_over_a_fixed_range_and_cut_off_there() -> None:
    images = torch.tensor([-9.0, -1.5, 0.0, 3.0, 3.3]).view(1, 1, 5)
    expected = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.0]).view(1, 1, 5)
    assert torch.equal(RestorationLoss(3.0).target(images), expected)
    assert torch.equal(RestorationLoss(1.5).target(images)[..., 1:2], -torch.ones(1, 1, 1))


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_smaller_images_are_compared_with_averages(size: tuple[int, ...]) -> None:
    images = torch.randn(2, 3, *size)
    halves = images.unflatten(-2, (-1, 2)).mean(-2).unflatten(-1, (-1, 2)).mean(-1)
    if len(size) == 3:
        halves = halves.mean(2, keepdim=True)
    loss = RestorationLoss(100.0)  # nothing is cut off
    errors = loss.per_image(halves / 100, images)
    assert errors.abs().max() < 1e-12


def test_half_precision_is_computed_in_single() -> None:
    restored = torch.full((1, 1, 400, 400), 0.001, dtype=torch.float16)
    loss = RestorationLoss()(restored, torch.zeros_like(restored), torch.zeros(1).long())
    assert float(loss) == pytest.approx(1e-6, rel=1e-2)


def test_a_range_must_be_positive() -> None:
    with pytest.raises(ValueError, match="intensity_range must be positive, got 0"):
        RestorationLoss(0)
