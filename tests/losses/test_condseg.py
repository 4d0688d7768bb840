"""The losses of ConDSeg."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnunet_ext.losses import ConsistencyReinforcementLoss, SemanticDecouplingLoss
from nnunet_ext.losses.condseg import (
    AnyForeground,
    DecouplingLosses,
    any_foreground,
    area_weight,
    complementary_loss,
    mask_loss,
    region_probabilities,
)


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


IGNORE = 3
BACKGROUND, UNCERTAIN = 1, 2


def perfect_logits(target: Tensor) -> Tensor:
    return 40 * target - 20


def share_of_ones(share: float) -> Tensor:
    target = torch.zeros(1, 1, 100, 100)
    target.view(-1)[: int(share * target.numel())] = 1
    return target


class TestMaskLoss:
    @pytest.mark.parametrize("share", [0.02, 0.15, 0.5])
    def test_perfect_logits_cost_nothing(self, share: float) -> None:
        target = share_of_ones(share)
        assert mask_loss(perfect_logits(target), target, torch.ones_like(target)) < 1e-3

    @pytest.mark.parametrize(("share", "perfect", "empty"), [(0.02, 1.630, 1.655)])
    def test_a_second_sigmoid_would_hide_perfection(
        self, share: float, perfect: float, empty: float
    ) -> None:
        """Defect 1 of the authors' code, which may explain runs that predict background alone."""
        target, ones = share_of_ones(share), torch.ones(1, 1, 100, 100)
        twice = mask_loss(torch.sigmoid(perfect_logits(target)), target, ones)
        nothing = mask_loss(torch.sigmoid(perfect_logits(0 * target)), target, ones)
        assert float(twice) == pytest.approx(perfect, abs=2e-3)
        assert float(nothing) == pytest.approx(empty, abs=2e-3)
        once = [mask_loss(perfect_logits(mask), target, ones) for mask in (target, 0 * target)]
        assert once[1] - once[0] > 1

    def test_no_weight_is_no_loss(self) -> None:
        logits = torch.randn(1, 1, 4, 4, requires_grad=True)
        loss = mask_loss(logits, torch.ones_like(logits), torch.zeros_like(logits))
        loss.backward()
        assert loss == 0
        assert logits.grad.abs().max() == 0


class TestComplementaryLoss:
    def test_is_a_third_where_nothing_is_decided(self) -> None:
        loss = complementary_loss(torch.zeros(1, 3, 2, 2).softmax(1))
        torch.testing.assert_close(loss, torch.full((1, 1, 2, 2), 1 / 3))

    def test_vanishes_where_one_is_certain(self) -> None:
        logits = torch.tensor([20.0, 0.0, 0.0]).view(1, 3, 1, 1)
        assert complementary_loss(logits.softmax(1)) < 1e-6

    def test_is_the_sum_of_all_products_of_probabilities_that_add_up_to_one(self) -> None:
        p = torch.randn(2, 3, 4, 4).softmax(1)
        torch.testing.assert_close(p.sum(1), torch.ones(2, 4, 4))
        fg, bg, uc = p.split(1, dim=1)
        torch.testing.assert_close(complementary_loss(p), fg * bg + fg * uc + bg * uc)

    def test_probabilities_instead_of_logits_would_leave_no_signal(self) -> None:
        """Defect 2 of the authors' code: it takes the softmax of sigmoids."""
        certain = torch.tensor([20.0, -20.0, -20.0]).view(1, 3, 1, 1)
        assert complementary_loss(torch.sigmoid(certain).softmax(1)) > 0.28
        target = AnyForeground(torch.ones(1, 1, 1, 1), None)
        assert SemanticDecouplingLoss()(certain, target).complementary < 1e-6


class TestRegionProbabilities:
    def test_add_up_to_one_and_are_float32(self) -> None:
        probabilities = region_probabilities(100 * torch.randn(2, 3, 4, 4, 4).half())
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 4, 4, 4))

    @pytest.mark.parametrize(
        ("sure", "region"), [(0.5, UNCERTAIN), (0.7, UNCERTAIN), (0.8, BACKGROUND)]
    )
    def test_uncertain_is_what_neither_foreground_nor_background_is_sure_of(
        self, sure: float, region: int
    ) -> None:
        logit = torch.logit(torch.tensor(sure))
        maps = torch.stack([-logit, logit, torch.tensor(1e3)]).view(1, 3, 1)
        assert int(region_probabilities(maps).argmax(1)) == region

    def test_an_uncertain_map_that_claims_everything_loses_what_the_others_learn(self) -> None:
        """Without the bound it would keep all, because excluding the others costs it nothing."""
        labels = torch.zeros(1, 1, 8, 9)
        labels[..., 3:6] = 0.5
        labels[..., 6:] = 1
        target = AnyForeground(labels, None)
        maps = torch.tensor([0.0, 0.0, 3.0]).view(1, 3, 1, 1).repeat(1, 1, 8, 9).requires_grad_()
        optimizer = torch.optim.Adam([maps], lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            SemanticDecouplingLoss()(maps, target).total.backward()
            optimizer.step()
        uncertain = region_probabilities(maps.detach())[0, 2].mean(0)
        assert uncertain[3:6].min() > 3 * uncertain[[*range(3), *range(6, 9)]].max()


class TestAreaWeight:
    @pytest.mark.parametrize(
        ("area", "weight"), [(0.15, 6.717), (0.5, 2.164), (0.01, 10), (0.0, 10), (1.0, 1.313)]
    )
    def test_numbers_of_the_specification(self, area: float, weight: float) -> None:
        assert float(area_weight(torch.tensor(area), 10)) == pytest.approx(weight, abs=1e-3)

    def test_has_no_gradient(self) -> None:
        assert not area_weight(torch.tensor(0.3, requires_grad=True), 10).requires_grad
        maps = torch.randn(2, 3, 4, 4, requires_grad=True)
        losses = SemanticDecouplingLoss()(maps, AnyForeground(torch.ones(2, 1, 4, 4), None))
        constants = ("foreground_weight", "background_weight", "uncertain_share")
        assert not any(getattr(losses, name).requires_grad for name in constants)

    @pytest.mark.parametrize("batch", [1, 12])
    def test_does_not_depend_on_the_size_of_the_batch(self, batch: int) -> None:
        """Defect 6 of the authors' code: with 12 images and area .15 it would be 1.06."""
        logit = torch.logit(torch.tensor(0.15))
        maps = torch.zeros(batch, 3, 4, 4)
        maps[:, 0] = logit
        losses = SemanticDecouplingLoss()(maps, AnyForeground(torch.ones(batch, 1, 4, 4), None))
        assert float(losses.foreground_weight) == pytest.approx(6.717, abs=1e-3)

    def test_images_without_valid_voxels_do_not_count(self) -> None:
        maps = torch.zeros(2, 3, 4, 4)
        valid = torch.ones(2, 1, 4, 4)
        valid[1] = 0
        losses = SemanticDecouplingLoss()(maps, AnyForeground(valid, valid))
        assert float(losses.foreground_weight) == pytest.approx(2.164, abs=1e-3)

    def test_limit_is_checked(self) -> None:
        with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
            SemanticDecouplingLoss(0.5)


class TestAnyForeground:
    @pytest.mark.parametrize("ignore", [None, IGNORE])
    def test_one_class_and_one_region_agree(self, ignore: int | None) -> None:
        labels = torch.randint(2, (2, 1, 5, 6))
        region = labels.bool()
        if ignore is not None:
            ignored = torch.rand(2, 1, 5, 6) > 0.7
            region = torch.cat([region, ignored], dim=1)
            labels = torch.where(ignored, ignore, labels)
        classes = any_foreground(labels, ignore_label=ignore)
        regions = any_foreground(region, regions=True, ignore_label=ignore)
        assert torch.equal(classes.foreground, regions.foreground)
        assert (classes.valid is None) == (ignore is None)
        assert ignore is None or torch.equal(classes.valid, regions.valid)

    def test_all_classes_and_all_regions_are_foreground(self) -> None:
        labels = torch.tensor([0, 1, 2, IGNORE]).view(1, 1, 2, 2)
        found = any_foreground(labels, ignore_label=IGNORE)
        assert found.foreground.flatten().tolist() == [0, 1, 1, 0]
        assert found.valid.flatten().tolist() == [1, 1, 1, 0]
        regions = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0]]).view(1, 2, 2, 2)
        found = any_foreground(regions.bool(), regions=True)
        assert found.foreground.flatten().tolist() == [0, 1, 1, 0]

    def test_classes_can_be_told_apart(self) -> None:
        labels = torch.tensor([0, 1, 2, IGNORE]).view(1, 1, 2, 2)
        found = any_foreground(labels, ignore_label=IGNORE, classes=2)
        assert found.foreground.flatten(2).tolist() == [[[0, 1, 0, 0], [0, 0, 1, 0]]]
        assert found.valid.flatten().tolist() == [1, 1, 1, 0]

    @pytest.mark.parametrize("regions", [False, True])
    def test_the_target_is_left_as_it_is(self, regions: bool) -> None:
        target = torch.randint(2, (2, 3 if regions else 1, 4, 4))
        before = target.clone()
        any_foreground(target, regions, IGNORE)
        assert torch.equal(target, before)

    @pytest.mark.parametrize("turn", [lambda t: t.flip(-1), lambda t: t.rot90(1, (-2, -1))])
    def test_background_is_the_rest_of_the_augmented_foreground(
        self, turn: Callable[[Tensor], Tensor]
    ) -> None:
        """Defect 5 of the authors' code: its background stays where it was.

        Logits that are perfect for the augmented target must cost nothing for either map.
        """
        labels = torch.randint(3, (2, 1, 6, 6))
        target = any_foreground(turn(labels))
        assert torch.equal(target.foreground, turn(any_foreground(labels).foreground))
        logits = perfect_logits(target.foreground)
        losses = SemanticDecouplingLoss()(torch.cat([logits, -logits, -logits], dim=1), target)
        assert losses.foreground < 1e-3
        assert losses.background < 1e-3


def losses_under(target: Tensor, maps: Tensor, regions: bool = False) -> DecouplingLosses:
    return SemanticDecouplingLoss()(maps, any_foreground(target, regions, IGNORE))


class TestSemanticDecouplingLoss:
    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("coarse", [False, True])
    def test_ignored_voxels_change_nothing(self, dim: int, coarse: bool) -> None:
        regions = torch.randint(2, (2, 3, *[8] * dim))
        ignored = regions[:, 2:].bool()
        other = torch.cat([torch.where(ignored, 1 - regions[:, :2], regions[:, :2]), ignored], 1)
        maps = torch.randn(2, 3, *[4 if coarse else 8] * dim)
        for ours, theirs in zip(
            losses_under(regions, maps, True), losses_under(other, maps, True), strict=True
        ):
            assert torch.equal(ours, theirs)

    def test_maps_under_ignored_voxels_change_nothing(self) -> None:
        labels = torch.randint(4, (2, 1, 8, 8))
        maps = torch.randn(2, 3, 8, 8)
        other = torch.where(labels == IGNORE, torch.randn_like(maps), maps)
        torch.testing.assert_close(losses_under(labels, maps), losses_under(labels, other))

    def test_all_ignored_gives_zero_and_keeps_the_graph(self) -> None:
        maps = torch.randn(2, 3, 4, 4, requires_grad=True)
        total = losses_under(torch.full((2, 1, 8, 8), IGNORE), maps).total
        total.backward()
        assert total == 0
        assert maps.grad.abs().max() == 0

    def test_coarse_maps_are_compared_with_the_share_of_the_valid_foreground(self) -> None:
        labels = torch.tensor([[1, 0], [IGNORE, IGNORE]]).view(1, 1, 2, 2)
        maps = torch.zeros(1, 3, 1, 1, requires_grad=True)
        half = torch.full((1, 1, 1, 1), 0.5)
        (expected,) = mask_loss(maps[:, :1], half, half)
        assert torch.equal(losses_under(labels, maps).foreground, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_patches_without_foreground_are_finite(self, dtype: torch.dtype) -> None:
        maps = (10 * torch.randn(2, 3, 4, 4)).to(dtype).requires_grad_()
        total = losses_under(torch.zeros(2, 1, 8, 8), maps).total
        total.backward()
        assert total.isfinite()
        assert maps.grad.isfinite().all()

    def test_maps_of_each_class_are_held_against_it(self) -> None:
        labels = torch.randint(3, (2, 1, 8, 8))
        each = torch.cat([labels == 1, labels == 2], dim=1).float()
        logits = perfect_logits(torch.cat([each, labels == 0], dim=1))
        maps = torch.cat([logits, torch.full((2, 1, 8, 8), -20.0)], dim=1)
        target = any_foreground(labels, classes=2)
        right = SemanticDecouplingLoss()(maps, target)
        assert right.total < 1e-3
        exchanged = SemanticDecouplingLoss()(maps[:, [1, 0, 2, 3]], target)
        assert exchanged.foreground > 1
        assert exchanged.complementary == pytest.approx(float(right.complementary))

    def test_descent_reduces_it(self) -> None:
        labels = torch.randint(3, (2, 1, 8, 8))
        maps = torch.zeros(2, 3, 8, 8, requires_grad=True)
        optimizer = torch.optim.Adam([maps], lr=0.3)
        history = []
        for _ in range(20):
            losses = losses_under(labels, maps)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            history.append((float(losses.total.detach()), float(losses.uncertain_share)))
        assert history[-1][0] < history[0][0] / 5
        assert history[-1][1] < history[0][1] / 2
