"""The losses of RAM-DSIR."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunet_ext.losses import RestorationLoss, SymmetricKLConsistency

KINDS = pytest.mark.parametrize(
    "kind",
    [{}, {"regions": True}, {"temperature": 2.0}],
    ids=["classes", "regions", "temperature"],
)


def views(*shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return first.requires_grad_(), second.requires_grad_()


@KINDS
class TestEveryKind:
    def test_equal_views_have_none(self, kind: dict[str, Any]) -> None:
        first, _ = views(2, 3, 5, 6)
        assert SymmetricKLConsistency(**kind)(first, first.clone()).abs() <= 1e-7

    def test_it_is_symmetric_and_positive_with_gradient_to_both(self, kind: dict[str, Any]) -> None:
        loss = SymmetricKLConsistency(**kind)
        first, second = views(2, 3, 4, 5, 6)
        value = loss(first, second)
        assert value > 0
        torch.testing.assert_close(value, loss(second, first))
        value.backward()
        assert first.grad.abs().min() > 0
        assert second.grad.abs().min() > 0

    def test_saturated_views_stay_finite(self, kind: dict[str, Any]) -> None:
        first = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
        second = (-first).detach().requires_grad_()
        value = SymmetricKLConsistency(**kind)(first, second)
        value.backward()
        assert torch.isfinite(torch.stack([value, first.grad.sum(), second.grad.sum()])).all()

    def test_voxels_that_do_not_count_change_nothing(self, kind: dict[str, Any]) -> None:
        loss = SymmetricKLConsistency(**kind)
        first, second = views(2, 3, 5, 6)
        valid = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
        value = loss(first, second, valid)
        kept = [v.movedim(1, -1)[valid].T[None] for v in (first, second)]
        torch.testing.assert_close(value, loss(*kept))
        other = torch.where(valid[:, None], second, second * -50)
        torch.testing.assert_close(loss(first, other, valid), value)
        value.backward()
        assert first.grad.movedim(1, -1)[~valid].abs().max() == 0

    def test_no_voxel_that_counts_gives_0_with_gradient(self, kind: dict[str, Any]) -> None:
        first, second = views(2, 3, 5, 6)
        value = SymmetricKLConsistency(**kind)(first, second, torch.zeros(2, 5, 6).bool())
        value.backward()
        assert value == 0
        assert first.grad.abs().max() == 0

    def test_half_precision_is_computed_in_single(self, kind: dict[str, Any]) -> None:
        first, second = (view.detach().half() for view in views(2, 3, 5, 6))
        loss = SymmetricKLConsistency(**kind)
        assert torch.equal(loss(first, second), loss(first.float(), second.float()))


def test_classes_agree_with_both_divergences_of_pytorch() -> None:
    first, second = views(2, 4, 7, 5)
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    # PyTorch takes the logarithm first and the reference distribution second
    each = F.kl_div(log_p, log_q.exp(), reduction="none")
    other = F.kl_div(log_q, log_p.exp(), reduction="none")
    torch.testing.assert_close(SymmetricKLConsistency()(first, second), (each + other).mean())


def test_regions_are_both_divergences_of_bernoulli_variables() -> None:
    first, second = views(2, 3, 7, 5)
    p, q = first.sigmoid(), second.sigmoid()
    expected = (p - q) * (first - second)
    torch.testing.assert_close(SymmetricKLConsistency(regions=True)(first, second), expected.mean())
    bernoulli = torch.distributions.Bernoulli
    both = torch.distributions.kl_divergence(bernoulli(p), bernoulli(q))
    both = both + torch.distributions.kl_divergence(bernoulli(q), bernoulli(p))
    torch.testing.assert_close(expected, both)


def test_a_temperature_divides_logits() -> None:
    first, second = views(2, 3, 7, 5)
    expected = SymmetricKLConsistency()(first / 3, second / 3)
    torch.testing.assert_close(SymmetricKLConsistency(temperature=3)(first, second), expected)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        SymmetricKLConsistency(temperature=0)


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
