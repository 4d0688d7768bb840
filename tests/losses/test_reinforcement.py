"""Consistency Reinforcement against its formula."""

import pytest
import torch
from torch import Tensor

from nnunet_ext.losses import ConsistencyReinforcementLoss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def two_views(channels: int = 3, dim: int = 2) -> list[Tensor]:
    return [torch.randn(2, channels, *[6] * dim, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
class TestBothKinds:
    @pytest.mark.parametrize("dim", [2, 3])
    def test_is_symmetric_and_reaches_both_views(self, regions: bool, dim: int) -> None:
        loss = ConsistencyReinforcementLoss(regions)
        first, second = two_views(dim=dim)
        value = loss(first, second)
        torch.testing.assert_close(value, loss(second, first))
        gradients = torch.autograd.grad(value, (first, second))
        assert all(gradient.abs().max() > 0 for gradient in gradients)

    def test_vanishes_for_confident_agreement_only(self, regions: bool) -> None:
        loss = ConsistencyReinforcementLoss(regions)
        view, other = two_views()
        assert loss(view, view) > 0.1
        assert loss(1000 * view, 1000 * view) < 1
        assert loss(1000 * view, 1000 * view) < loss(view, view) / 10
        assert loss(1000 * view, 1000 * other) > 100

    def test_what_is_ignored_changes_nothing(self, regions: bool) -> None:
        loss = ConsistencyReinforcementLoss(regions)
        first, second = two_views()
        valid = torch.rand(2, 1, 6, 6) > 0.5
        other = torch.where(valid, second, torch.randn_like(second))
        assert torch.equal(loss(first, second, valid), loss(first, other, valid))
        gradient = torch.autograd.grad(loss(first, second, valid), first)[0]
        assert gradient[~valid.expand_as(gradient)].abs().max() == 0

    def test_without_valid_voxels_it_is_zero_and_keeps_the_graph(self, regions: bool) -> None:
        first, second = two_views()
        value = ConsistencyReinforcementLoss(regions)(first, second, torch.zeros(2, 1, 6, 6))
        value.backward()
        assert value == 0
        assert first.grad.abs().max() == 0

    def test_the_code_adds_what_the_paper_averages(self, regions: bool) -> None:
        views = two_views()
        added, averaged = (
            ConsistencyReinforcementLoss(regions, reduction)(*views)
            for reduction in ("sum", "mean")
        )
        torch.testing.assert_close(added, 2 * averaged)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, regions: bool, dtype: torch.dtype) -> None:
        views = [view.detach().to(dtype) for view in two_views()]
        assert ConsistencyReinforcementLoss(regions)(*views).isfinite()


def test_identical_views_of_one_channel_pay_for_their_doubt() -> None:
    logits = torch.randn(2, 1, 8, 8)
    p = torch.sigmoid(logits)
    expected = -2 * torch.log(torch.maximum(p, 1 - p)).mean()
    loss = ConsistencyReinforcementLoss(regions=True, reduction="sum")
    torch.testing.assert_close(loss(logits, logits), expected)


def test_reduction_is_checked() -> None:
    with pytest.raises(ValueError, match="got 'max'"):
        ConsistencyReinforcementLoss(reduction="max")
