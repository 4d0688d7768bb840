"""The envelope on pixel losses. Numbers in brackets are the checks of the specification."""

from collections.abc import Callable
from itertools import pairwise, product
from math import ceil, floor, log
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from nnunet_ext.losses import TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.envelope import saturate, select, trim, trimmed_share

EXAMPLE = [[0.1, 0.2, 0.3, 0.4, 5.0], [1.0] * 5, [0.0] * 4 + [10.0]]
FORMS = ("gate", "integral", "hard")
SCOPES = ("image", "class", "batch")


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """Losses as of a network that is right nearly everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).log().neg().pow(3)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    function(at).backward()
    assert at.grad is not None
    return at.grad


def losses_and_masks(least: int = 1) -> st.SearchStrategy[tuple[Tensor, Tensor, Tensor]]:
    """Draw distinct losses (B, N), which of them are valid, and their classes."""

    def build(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        valid = torch.rand(shape, generator=generator) < 0.8
        target = torch.randint(3, shape, generator=generator)
        return heavy_tailed(*shape, seed=seed), valid, target

    shapes = st.tuples(st.integers(1, 5), st.integers(least, 40))
    return st.builds(build, shapes, st.integers(0, 2**31))


fractions = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9])
top_fractions = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.75, 1.0])


# ------------------------------------------------------------------- an independent computation


def reference_weights(losses: NDArray[Any], sigma: float, tau: float) -> NDArray[Any]:
    """Weights of one group of losses after sections 2.2 and 2.3 of the specification."""
    count = len(losses)
    trimmed = floor(sigma * count + 1e-9)
    if trimmed == 0:
        return np.ones(count)
    order = np.argsort(losses, kind="stable")
    if tau == 0:
        weights = np.ones(count)
        weights[order[count - trimmed :]] = 0
        return weights
    threshold = losses[order[count - trimmed - 1 : count - trimmed + 1]].mean()
    return np.exp(-np.logaddexp(0, (losses - threshold) / (tau * max(threshold, 1e-3))))


def reference(
    losses: NDArray[Any],
    valid: NDArray[Any],
    target: NDArray[Any],
    sigma: float,
    top_fraction: float,
    tau: float,
    scope: str,
) -> float:
    groups = {"image": 0 * target, "class": target, "batch": 0 * target}[scope] + 0
    if scope != "batch":
        groups = groups + 1000 * np.arange(len(losses))[:, None]
    weights = np.zeros_like(losses)
    for group in np.unique(groups):
        members = (groups == group) & valid
        if members.any():
            weights[members] = reference_weights(losses[members], sigma, tau)
    sizes = weights.sum(1)
    # the specification says nothing on an image that scope="batch" trims away altogether
    means = ((weights * losses).sum(1) / np.maximum(sizes, 0.5))[sizes > 0]
    if len(means) == 0:
        return 0.0
    kept = min(len(means), max(1, ceil(top_fraction * len(means) - 1e-9)))
    if kept == len(means):
        return float(means.mean())
    ranked = np.sort(means)[::-1]
    if tau == 0:
        return float(ranked[:kept].mean())
    threshold = ranked[kept - 1 : kept + 1].mean()
    chosen = np.exp(-np.logaddexp(0, (threshold - means) / (tau * max(threshold, 1e-3))))
    return float((chosen * means).sum() / chosen.sum())


@given(
    losses_and_masks(), fractions, top_fractions, st.sampled_from([0.0, 0.03, 0.1, 0.3]),
    st.sampled_from(SCOPES),
)  # fmt: skip
@settings(max_examples=300)
def test_gate_and_hard_form_equal_the_formulas(
    drawn: tuple[Tensor, Tensor, Tensor],
    sigma: float,
    top_fraction: float,
    tau: float,
    scope: Any,
) -> None:
    losses, valid, target = drawn
    loss = TopKSigmaLoss(sigma, top_fraction, tau=tau, scope=scope)
    expected = reference(
        losses.numpy(), valid.numpy(), target.numpy(), sigma, top_fraction, tau, scope
    )
    assert float(loss(losses, valid, target)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ------------------------------------------------------------------------------- worked numbers


def test_nothing_left_out_is_the_plain_cross_entropy() -> None:  # [1]
    logits = torch.randn(3, 4, 6, 7, dtype=torch.float64)
    target = torch.randint(4, (3, 6, 7))

    def enveloped(x: Tensor) -> Tensor:
        return TopKSigmaLoss(0, 1)(F.cross_entropy(x, target, reduction="none"))

    def plain(x: Tensor) -> Tensor:
        return F.cross_entropy(x, target)

    torch.testing.assert_close(enveloped(logits), plain(logits), atol=1e-10, rtol=0)
    torch.testing.assert_close(
        gradient(enveloped, logits), gradient(plain, logits), atol=1e-10, rtol=0
    )


def test_with_an_ignore_label_every_image_counts_alike() -> None:  # [1]
    losses = heavy_tailed(2, 10)
    valid = torch.arange(10) < torch.tensor([[10], [3]])
    mean_of_means = (losses[0].mean() + losses[1, :3].mean()) / 2
    torch.testing.assert_close(TopKSigmaLoss(0, 1)(losses, valid), mean_of_means)


@pytest.mark.parametrize(("images", "expected"), [(1, 1.0), (2, 0.625)])
def test_the_worked_example_of_the_hard_form(images: int, expected: float) -> None:  # [2]
    losses = double(EXAMPLE)
    trimmed = trim(losses, 0.2, "hard")
    torch.testing.assert_close(trimmed.means, double([0.25, 1, 0]))
    loss = TopKSigmaLoss(0.2, images / 3, smoothing="hard")
    assert float(loss(losses)) == pytest.approx(expected, abs=1e-12)


def test_without_trimming_outliers_decide_which_images_are_hard() -> None:  # [2]
    losses = double(EXAMPLE)
    torch.testing.assert_close(trim(losses, 0).means, double([1.2, 1, 2]))
    assert float(TopKSigmaLoss(0, 2 / 3, tau=0)(losses)) == pytest.approx(1.6)


def test_the_worked_example_of_the_gate() -> None:  # [2]
    means = trim(double(EXAMPLE), 0.2, tau=0.1).means
    torch.testing.assert_close(means, double([0.25023, 1.0, 1.135e-4]), atol=5e-6, rtol=2e-4)


@pytest.mark.parametrize(("tau", "expected"), [(0, 0.8), (0.1, 0.7972), (0.3, 0.7503)])
def test_the_worked_example_of_the_choice_among_images(tau: float, expected: float) -> None:  # [3]
    means = double([0.25, 1, 0, 0.6])
    assert float(select(means, 0.5, tau=tau).reduce(means)) == pytest.approx(expected, abs=5e-5)


def test_the_hard_form_spreads_the_gradient_evenly_over_what_it_keeps() -> None:  # [4]
    loss = TopKSigmaLoss(0.2, 2 / 3, smoothing="hard")
    slopes = gradient(loss, heavy_tailed(3, 10))
    assert (slopes != 0).sum() == 16
    torch.testing.assert_close(slopes[slopes != 0], torch.full((16,), 1 / 16).double())


@pytest.mark.parametrize(
    ("smoothing", "errors"),
    [("gate", (0.056, 0.019, 0.006, 0.003, 0.001)), ("integral", (0.2, 0.02, 0.003, 0.001, 0.001))],
)
def test_narrower_smoothing_approaches_the_hard_form(  # [5]
    smoothing: Any, errors: tuple[float, ...]
) -> None:
    losses = heavy_tailed(1, 2000)
    hard = TopKSigmaLoss(0.05, 1, "hard")(losses)
    for tau, error in zip((0.3, 0.1, 0.03, 0.01, 0.003), errors, strict=True):
        smooth = TopKSigmaLoss(0.05, 1, smoothing, tau)(losses)
        assert float(smooth) == pytest.approx(float(hard), rel=error)
        assert smooth != hard


def test_the_gate_keeps_about_the_wanted_mass() -> None:
    losses = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)).exp()
    for tau, mass in ((0.1, 0.94), (0.3, 0.87)):
        assert float(trim(losses, 0.05, tau=tau).weights.mean()) == pytest.approx(mass, abs=0.01)


def test_a_loss_that_crosses_the_threshold_changes_its_gradient_smoothly() -> None:  # [6]
    others = torch.linspace(0.01, 1, 99, dtype=torch.float64)

    def slopes_of_the_moving_one(smoothing: Any) -> Tensor:
        loss = TopKSigmaLoss(0.1, 1, smoothing)
        positions = torch.arange(0.85, 0.95, 1e-4, dtype=torch.float64)
        batches = (torch.cat([position[None], others])[None] for position in positions)
        return torch.stack([gradient(loss, batch)[0, 0] for batch in batches])

    jumps = slopes_of_the_moving_one("gate").diff().abs()
    assert float(jumps.max()) < 3.5e-6
    hard_jumps = slopes_of_the_moving_one("hard").diff().abs()
    assert float(hard_jumps.max()) == pytest.approx(1 / 90)
    assert (hard_jumps > 1e-9).sum() == 1


# --------------------------------------------------------------------------- the integral form


def test_the_saturated_loss_starts_at_0_and_stays_close_to_the_minimum() -> None:  # [7]
    threshold, width = double(0.7), double(0.07)
    losses = torch.linspace(0, 5, 501, dtype=torch.float64)
    saturated = saturate(losses, threshold, width)
    gap = losses.minimum(threshold) - saturated
    assert saturated[0] == 0
    assert float(gap.abs().max()) <= float(width) * log(2) + 1e-12
    assert torch.autograd.gradcheck(
        lambda x: saturate(x, threshold, width), losses[::50].clone().requires_grad_()
    )


@given(losses_and_masks(5), fractions)
def test_value_and_gradient_of_the_integral_form_agree_at_fixed_thresholds(  # [7]
    drawn: tuple[Tensor, Tensor, Tensor], sigma: float
) -> None:
    losses, _, _ = drawn
    count = losses.shape[1]
    trimmed = floor(sigma * count + 1e-9)
    descending = losses.sort(descending=True).values
    threshold = descending[:, max(trimmed - 1, 0) : trimmed + 1].mean(1, keepdim=True)
    width = 0.1 * threshold.clamp_min(1e-3)

    def by_hand(x: Tensor) -> Tensor:
        if trimmed == 0:
            return x.mean(1)
        kept = saturate(x, threshold, width).sum(1) - trimmed * threshold[:, 0]
        return kept / (count - trimmed)

    def ours(x: Tensor) -> Tensor:
        return trim(x, sigma, "integral").means

    torch.testing.assert_close(ours(losses), by_hand(losses))
    torch.testing.assert_close(
        gradient(lambda x: ours(x).sum(), losses), gradient(lambda x: by_hand(x).sum(), losses)
    )


def test_the_integral_form_over_images_is_a_smooth_average_top_k() -> None:
    means = double([0.25, 1, 0, 0.6])
    threshold = (0.6 + 0.25) / 2
    delta = 0.1 * threshold

    def by_hand(x: Tensor) -> Tensor:
        above = x - threshold
        return threshold + ((above + (above**2 + delta**2).sqrt()) / 2).sum() / 2

    images = select(means, 0.5, "integral", 0.1)
    torch.testing.assert_close(images.reduce(means) + images.offset, by_hand(means))
    torch.testing.assert_close(gradient(images.reduce, means), gradient(by_hand, means))


@given(losses_and_masks(2), fractions)
def test_sums_of_the_lowest_and_highest_follow_from_one_threshold(  # [8]
    drawn: tuple[Tensor, Tensor, Tensor], sigma: float
) -> None:
    losses = drawn[0]
    weights = trim(losses, sigma, "hard").weights
    trimmed = int((weights[0] == 0).sum())
    threshold = losses.topk(max(trimmed, 1)).values[:, -1:]
    highest = ((1 - weights) * losses).sum(1, keepdim=True)
    lowest = (weights * losses).sum(1, keepdim=True)
    excess = (losses - threshold).clamp_min(0).sum(1, keepdim=True)
    capped = losses.minimum(threshold).sum(1, keepdim=True)
    if trimmed > 0:
        torch.testing.assert_close(highest, trimmed * threshold + excess)
        torch.testing.assert_close(lowest, capped - trimmed * threshold)


# ------------------------------------------------------------------------------------ properties

any_loss = st.builds(
    TopKSigmaLoss, fractions, top_fractions, st.sampled_from(FORMS),
    st.sampled_from([0.0, 0.03, 0.1]), st.sampled_from(SCOPES),
)  # fmt: skip


@given(losses_and_masks(), any_loss)
def test_gradients_are_a_weighting(  # [6]
    drawn: tuple[Tensor, Tensor, Tensor], loss: TopKSigmaLoss
) -> None:
    losses, valid, target = drawn
    slopes = gradient(lambda x: loss(x, valid, target), losses)
    assert bool((slopes >= 0).all())
    assert bool((slopes[~valid] == 0).all())
    # scope="batch" may leave less than half a voxel of an image, which then counts less
    if valid.any() and loss.smoothing != "integral" and loss.scope != "batch":
        assert float(slopes.sum()) == pytest.approx(1)


@given(losses_and_masks(), any_loss, st.randoms())
def test_the_order_of_voxels_and_images_does_not_matter(  # [9]
    drawn: tuple[Tensor, Tensor, Tensor], loss: TopKSigmaLoss, random: Any
) -> None:
    images, voxels = (random.sample(range(n), n) for n in drawn[0].shape)
    shuffled = [part[images][:, voxels] for part in drawn]
    torch.testing.assert_close(loss(*shuffled), loss(*drawn), rtol=1e-12, atol=1e-12)


@given(losses_and_masks(), any_loss)
def test_the_loss_scales_with_the_losses(  # [9]
    drawn: tuple[Tensor, Tensor, Tensor], loss: TopKSigmaLoss
) -> None:
    losses, valid, target = drawn
    losses = losses + 2e-3  # thresholds below 1e-3 do not scale
    torch.testing.assert_close(loss(3 * losses, valid, target), 3 * loss(losses, valid, target))


@given(losses_and_masks(), st.lists(fractions, min_size=2), st.lists(top_fractions, min_size=2))
def test_leaving_out_more_voxels_lowers_and_more_images_raises_the_hard_form(  # [11]
    drawn: tuple[Tensor, Tensor, Tensor], sigmas: list[float], top_fractions: list[float]
) -> None:
    losses, valid, _ = drawn
    falling = [TopKSigmaLoss(s, 0.5, "hard")(losses, valid) for s in sorted(sigmas)]
    rising = [
        TopKSigmaLoss(0.1, k, "hard")(losses, valid) for k in sorted(top_fractions, reverse=True)
    ]
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert all(a <= b + 1e-12 for a, b in pairwise(rising))


@given(losses_and_masks(), any_loss)
def test_what_is_not_valid_changes_nothing(  # [12]
    drawn: tuple[Tensor, Tensor, Tensor], loss: TopKSigmaLoss
) -> None:
    losses, valid, target = drawn
    other = losses.masked_fill(~valid, torch.nan), valid, target.masked_fill(~valid, -1)
    assert torch.equal(loss(*other), loss(losses, valid, target))


def test_only_valid_voxels_are_counted() -> None:  # [12]
    losses = torch.cat([double(EXAMPLE), torch.zeros(3, 95).double()], 1)
    valid = torch.arange(100) < 5
    means = trim(losses, 0.2, "hard", valid=valid.expand(3, -1)).means
    torch.testing.assert_close(means, double([0.25, 1, 0]))


def test_a_share_of_29_percent_of_100_are_29() -> None:
    weights = trim(heavy_tailed(1, 100), 0.29, "hard").weights
    assert int(weights.sum()) == 71


def test_of_equal_losses_the_last_ones_are_left_out_and_no_more() -> None:
    weights = trim(torch.ones(1, 10), 0.3, "hard").weights
    assert weights.tolist() == [[1.0] * 7 + [0.0] * 3]


@pytest.mark.parametrize("smoothing", FORMS)
@pytest.mark.parametrize("scope", SCOPES)
def test_images_of_two_dimensions_are_volumes_of_depth_1(
    smoothing: Any, scope: Any
) -> None:  # [13]
    losses = heavy_tailed(3, 6, 7)
    valid, target = torch.rand(3, 6, 7) < 0.8, torch.randint(2, (3, 6, 7))
    loss = TopKSigmaLoss(0.1, 0.5, smoothing, scope=scope)
    flat, deep = loss(losses, valid, target), loss(losses[:, None], valid[:, None], target[:, None])
    assert torch.equal(flat, deep)
    assert trim(losses[:, None], 0.1).weights.shape == (3, 1, 6, 7)


# ------------------------------------------------------------------------------------ robustness


@pytest.mark.parametrize(("smoothing", "most"), [("hard", 0.0), ("gate", 1e-6)])
def test_confident_voxels_with_wrong_labels_have_no_gradient(  # [10]
    smoothing: Any, most: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    margin = 4 + torch.randn(1, 1600, generator=generator, dtype=torch.float64)
    wrong = torch.arange(1600) < 64  # 4 %
    margin[:, wrong] = 6.0
    signs = torch.where(wrong, -1.0, 1.0)  # the label says the opposite

    def pixel_loss(logit: Tensor) -> Tensor:
        return F.softplus(-signs * logit)

    plain = gradient(lambda x: pixel_loss(x).mean(), margin).abs()
    assert float(plain[:, wrong].sum() / plain.sum()) > 0.19
    ours = gradient(lambda x: TopKSigmaLoss(0.05, 1, smoothing)(pixel_loss(x)), margin).abs()
    assert float(ours[:, wrong].max() / ours.mean()) <= most


def test_an_outlier_may_grow_without_bound() -> None:  # [10]
    losses = heavy_tailed(1, 1000)
    loss = TopKSigmaLoss(0.05, 1)
    threshold = losses.topk(51).values[0, -2:].mean()
    highest = losses.argmax()
    losses[0, highest] = 3 * threshold
    before = loss(losses)
    losses[0, highest] = 1e6
    assert abs(float(loss(losses) - before)) < 1e-6


def test_small_foreground_is_all_left_out_per_image_but_not_per_class() -> None:  # [18]
    target = (torch.arange(1000)[None] < 20).long()  # 2 % foreground
    logits = torch.stack([torch.full((1, 1000), 3.0), torch.full((1, 1000), -3.0)], 1)
    losses = F.cross_entropy(logits, target, reduction="none")
    for scope, least, most in (("image", 1.0, 1.0), ("class", 0.0, 0.05 + 1e-6)):
        loss = TopKSigmaLoss(0.05, 1, "hard", scope=scope)
        share, occurs = trimmed_share(loss.trim(losses, target=target).weights, target, 2)
        assert least <= float(share[1]) <= most
        assert bool(occurs.all())


def test_the_trimmed_share_counts_valid_voxels_of_each_class() -> None:
    weights = double([[1, 0.5, 0, 0, 0]])
    target, valid = torch.tensor([[0, 0, 1, 1, 9]]), torch.tensor([[True] * 4 + [False]])
    share, occurs = trimmed_share(weights, target, 3, valid)
    assert share.tolist() == [0.25, 1.0, 0.0]
    assert occurs.tolist() == [True, True, False]


def test_one_label_map_beyond_repair_may_use_up_the_budget_of_a_batch() -> None:
    losses = torch.cat([heavy_tailed(3, 10), 100 + heavy_tailed(1, 10)])
    loss = TopKSigmaLoss(0.25, 1, "hard", scope="batch")
    trimmed = loss.trim(losses)
    assert trimmed.weights.sum(1).tolist() == [10, 10, 10, 0]
    torch.testing.assert_close(loss(losses), losses[:3].mean())


@pytest.mark.parametrize("smoothing", FORMS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (2, 1, 1, 1), (1, 4)])
@pytest.mark.parametrize("covered", ["nothing", "first", "all"])
def test_tiny_maps_single_images_and_empty_ones_are_finite(
    smoothing: Any, scope: Any, shape: tuple[int, ...], covered: str
) -> None:
    losses = torch.rand(shape)
    valid = torch.ones(shape, dtype=torch.bool)
    valid[: {"nothing": 0, "first": 1, "all": len(valid)}[covered]] = False
    target = torch.zeros(shape, dtype=torch.int64)
    for sigma in (0, 0.5, 1 - 1e-12):
        loss = TopKSigmaLoss(sigma, 0.5, smoothing, scope=scope)
        losses = losses.detach().requires_grad_()
        value = loss(losses, valid, target)
        value.backward()
        assert losses.grad is not None
        assert bool(torch.isfinite(losses.grad).all())
        assert bool(value.isfinite())
        if not valid.any():  # [12]
            assert float(value.detach()) == 0
            assert not losses.grad.any()
        elif scope != "batch":
            assert losses.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:  # [16]
    losses = heavy_tailed(2, 4000).to(dtype)
    loss = TopKSigmaLoss(0.05, 0.5)(losses)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, TopKSigmaLoss(0.05, 0.5)(losses.float()))


def test_broken_losses_are_not_hidden() -> None:
    for broken in (torch.nan, torch.inf):
        for smoothing in FORMS:
            losses = torch.rand(2, 50)
            losses[0, 3] = broken
            loss = TopKSigmaLoss(0.1, 0.5, smoothing)
            assert not loss(losses).isfinite()


# ----------------------------------------------------------------------------------- compilation


@pytest.mark.parametrize(
    ("smoothing", "scope"),
    [
        pytest.param(*pair, marks=() if number % 4 == 0 else pytest.mark.slow)
        for number, pair in enumerate(product(FORMS, SCOPES))  # each of either once, and quick
    ],
)
def test_it_compiles_without_graph_breaks(smoothing: Any, scope: Any) -> None:
    torch._dynamo.reset()
    loss = TopKSigmaLoss(0.1, 0.5, smoothing, scope=scope, num_classes=3)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    losses, target = heavy_tailed(3, 6, 7), torch.randint(3, (3, 6, 7))
    valid = torch.rand(3, 6, 7) < 0.8
    torch.testing.assert_close(compiled(losses, valid, target), loss(losses, valid, target))
    torch.testing.assert_close(
        gradient(lambda x: compiled(x, valid, target), losses),
        gradient(lambda x: loss(x, valid, target), losses),
    )


def test_a_ramp_does_not_compile_anew_for_every_value() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    loss = TopKSigmaLoss(0.0, 1.0)
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    losses = heavy_tailed(4, 500)
    for step in range(20):
        loss.sigma, loss.top_fraction = 0.005 * step, 1 - 0.025 * step
        torch.testing.assert_close(compiled(losses), loss.forward(losses))
    assert counter.frame_count <= 4


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("sigma", [-0.1, 1, 1.5, float("nan")])
def test_sigma_outside_its_range_is_refused_at_any_time(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"sigma must be in \[0, 1\), got"):
        TopKSigmaLoss(sigma, 1)
    loss = TopKSigmaLoss(0.1, 1)
    with pytest.raises(ValueError, match=r"sigma must be in \[0, 1\), got"):
        loss.sigma = sigma
    assert loss.sigma == 0.1


@pytest.mark.parametrize("top_fraction", [-0.1, 0, 1.01, float("nan")])
def test_top_fraction_outside_its_range_is_refused_at_any_time(top_fraction: float) -> None:
    with pytest.raises(ValueError, match=r"top_fraction must be in \(0, 1\], got"):
        TopKSigmaLoss(0.1, top_fraction)
    loss = TopKSigmaLoss(0.1, 1)
    with pytest.raises(ValueError, match=r"top_fraction must be in \(0, 1\], got"):
        loss.top_fraction = top_fraction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": -0.1}, r"tau must be in \[0, inf\), got -0.1"),
        ({"tau": float("inf")}, r"tau must be in \[0, inf\)"),
        ({"smoothing": "soft"}, "smoothing must be one of gate, integral, hard, got 'soft'"),
        ({"scope": "voxel"}, "scope must be one of image, class, batch, got 'voxel'"),
    ],
)
def test_what_else_is_unknown_or_out_of_range_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TopKSigmaLoss(0.1, 1, **arguments)


def test_a_share_of_each_class_needs_the_classes() -> None:
    with pytest.raises(ValueError, match="needs the target"):
        TopKSigmaLoss(0.1, 1, scope="class")(torch.rand(2, 10))


def test_its_description_names_the_settings_in_force() -> None:
    loss = TopKSigmaLoss(0.02, 0.5)
    loss.sigma = 0.05
    assert "sigma=0.05, top_fraction=0.5, smoothing='gate'" in repr(loss)
