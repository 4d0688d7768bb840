"""Estimating the share of wrong labels: on simulated labels whose noise is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nnunet_ext.losses import NoiseEstimator
from nnunet_ext.losses.topk_sigma.noise import (
    CORE,
    COVERED,
    MIN_CONTRADICTED,
    MIN_RATE,
    NoiseShare,
    estimate_noise,
    join,
    log_odds,
)

IMAGES = 20
VOXELS = 3_000
CLASSES = 3


def simulate(
    missing: float = 0.0, calibrated: bool = True, share: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits (B, K, N) and labels (B, N); class 2 is missing in a share of the images.

    Class probabilities are steep functions of a coordinate, as across a boundary, so labels
    contradict the network near it. A calibrated network believes in a class only as often as
    it is labelled; the other has learned to ignore wrong labels.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (IMAGES, VOXELS)
    depth = torch.rand(shape, generator=generator) * 10
    kind = torch.rand(shape, generator=generator)
    truth = (kind < 2 * share).long() + (kind < share).long()
    logits = torch.zeros(IMAGES, CLASSES, VOXELS).scatter_(1, truth[:, None], depth[:, None])
    probabilities = logits.softmax(1)
    flat = probabilities.movedim(1, -1).flatten(0, 1)
    labels = torch.multinomial(flat, 1, generator=generator).view(shape)
    forgotten = torch.arange(IMAGES)[:, None] < round(missing * IMAGES)
    labels = labels.masked_fill(forgotten & (labels == 2), 0)
    if calibrated and missing:
        moved = missing * probabilities[:, 2]
        probabilities[:, 0] += moved
        probabilities[:, 2] -= moved
        logits = probabilities.log()
    return logits, labels


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def found(
    logits: Tensor, labels: Tensor, valid: Tensor | None = None, parts: int = 1
) -> NoiseShare:
    estimators = [NoiseEstimator(logits.shape[1]) for _ in range(2)]
    members = torch.nn.functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).bool()
    for number, part in enumerate(torch.arange(len(labels)).tensor_split(parts)):
        estimators[number % 2].observe(
            log_odds(logits[part]),
            members[part],
            losses_of(logits[part], labels[part]),
            None if valid is None else valid[part],
        )
    return estimate_noise(join([estimator.pop_counts() for estimator in estimators]))


@pytest.mark.parametrize("calibrated", [True, False], ids=["believes_labels", "ignores_noise"])
@pytest.mark.parametrize("missing", [0.15, 0.4])
def test_the_share_of_missing_labels_is_found(missing: float, calibrated: bool) -> None:
    noise = found(*simulate(missing, calibrated))
    assert noise.rates[2] == pytest.approx(missing, abs=0.05)
    assert noise.rates[:2].max() < 0.01
    assert noise.sigma > 0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_labels_that_are_only_uncertain_at_boundaries_are_no_evidence(share: float) -> None:
    noise = found(*simulate(share=share))
    assert noise.sigma == 0
    assert noise.rates.max() < MIN_RATE


@pytest.mark.parametrize("calibrated", [True, False], ids=["believes_labels", "ignores_noise"])
def test_sigma_reaches_most_of_the_wrong_labels_in_the_core_of_a_class(calibrated: bool) -> None:
    logits, labels = simulate(0.4, calibrated)
    sigma = found(logits, labels).sigma
    losses = losses_of(logits, labels).flatten()
    left_out = losses >= losses.quantile(1 - sigma)
    labels = labels.flatten()
    size = round(CORE * int((labels == 2).sum()))
    surest = log_odds(logits)[:, 2].flatten().topk(size).indices
    contradicted = surest[labels[surest] != 2]
    assert left_out[contradicted].float().mean() >= COVERED - 0.05
    assert 0 < sigma < 0.2


def test_a_network_that_ignores_wrong_labels_needs_no_more_than_their_share() -> None:
    wrong = 0.4 * 0.1
    assert found(*simulate(0.4, calibrated=False)).sigma <= 1.25 * wrong


@given(parts=st.integers(1, 7))
def test_it_does_not_matter_who_counts_which_images(parts: int) -> None:
    data = simulate(0.4)
    whole, divided = found(*data), found(*data, parts=parts)
    assert torch.equal(whole.rates, divided.rates)
    assert whole.sigma == divided.sigma


def test_voxels_that_are_not_valid_do_not_count() -> None:
    logits, labels = simulate(0.4)
    kept = slice(0, VOXELS // 2)
    valid = torch.zeros_like(labels, dtype=torch.bool)
    valid[:, kept] = True
    masked, alone = found(logits, labels, valid), found(logits[..., kept], labels[:, kept])
    assert torch.equal(masked.rates, alone.rates)
    assert masked.sigma == alone.sigma


def test_images_without_any_anchor_do_not_count() -> None:
    logits, labels = simulate(0.4)
    empty = torch.zeros(3 * IMAGES, CLASSES, VOXELS)
    empty[:, 0] = 5.0
    more = torch.cat([logits, empty]), torch.cat([labels, torch.zeros(3 * IMAGES, VOXELS).long()])
    assert found(*more).rates[2] == found(logits, labels).rates[2]
    assert found(*more).sigma > 0


def test_a_few_contradicted_voxels_are_no_evidence() -> None:
    labels = torch.zeros(1, 1000, dtype=torch.long)
    labels[:, :MIN_CONTRADICTED] = 1
    logits = torch.randn(1, 2, 1000)
    noise = found(logits, labels)
    assert noise.rates[1] > MIN_RATE
    assert noise.sigma == 0


def test_a_network_that_errs_in_all_images_is_no_evidence() -> None:
    logits, labels = simulate()
    generator = torch.Generator().manual_seed(1)
    taken_for_another = torch.rand(labels.shape, generator=generator) < 0.3
    logits = logits[:, [0, 2, 1]].where(taken_for_another[:, None], logits)
    noise = found(logits, labels)
    assert noise.rates[1:].min() > MIN_RATE
    assert noise.sigma == 0


def test_nothing_seen_is_no_evidence_and_what_is_taken_is_gone() -> None:
    estimator = NoiseEstimator(CLASSES)
    assert estimate_noise(estimator.pop_counts()).sigma == 0
    estimator.observe(torch.zeros(1, 3, 4), torch.ones(1, 3, 4).bool(), torch.ones(1, 4))
    assert estimator.pop_counts().images.sum() == 3 * 4
    assert estimator.pop_counts().images.sum() == 0


def test_extreme_scores_and_losses_are_counted_at_the_ends() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]])
    scores = log_odds(logits)
    assert torch.isfinite(scores).all()
    estimator = NoiseEstimator(2)
    estimator.observe(scores, torch.ones(1, 2, 3).bool(), torch.tensor([[0.0, 1e4, 0.7]]))
    counts = estimator.pop_counts()
    assert counts.images[0, 0, -1].sum() == counts.images[0, 1, 0].sum() == 1
    assert counts.losses[0] == counts.losses[-1] == 1


@given(st.floats(-15, 15))
def test_log_odds_of_two_classes_are_the_difference_of_their_logits(difference: float) -> None:
    logits = torch.tensor([[[difference], [0.0]]])
    expected = torch.tensor([[[difference], [-difference]]])
    torch.testing.assert_close(log_odds(logits), expected, atol=0.02, rtol=0.1)
