"""How many labels are wrong, judged by the voxels of which a network is surest.

Where a class is most probable, labels of other classes are wrong labels, whatever the calibration
of the network: such anchor points identify the noise rate of a class (Liu and Tao, "Classification
with noisy labels by importance reweighting", IEEE TPAMI 38 (2016) 447-461; Patrini et al., "Making
deep neural networks robust to label noise", CVPR 2017). A network that has yet to learn a class is
sure of wrong things, too, but in all images, whereas a structure that was forgotten in some of them
is contradicted there and nowhere else. Not seen are labels that are wrong only where classes are
hard to tell apart anyway, such as the course of a boundary.

Estimating from this how much the top-k / bottom-all-but-sigma loss is to leave out is ours.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = 0.05
"""Share of a class, by its labelled size, that is taken for sure."""
MIN_RATE = 0.1
"""Below this share of contradicted anchors there is no evidence: networks err, too."""
MAX_TYPICAL_RATE = 0.05
"""In half of the images that have anchors no more may be contradicted. Where it is more, the
network errs about the class everywhere, and its judgement is worth nothing."""
MIN_CONTRADICTED = 20
"""Fewer contradicted anchors are no evidence either."""
CORE = 0.5
"""Share of a class, by its labelled size, whose wrong labels have typical losses."""
COVERED = 0.75
"""Share of the wrong labels in the cores of classes that sigma is to reach."""

BINS = 128
LIMIT = 16.0
"""Log-odds are counted in bins from minus to plus this."""


class Counts(NamedTuple):
    """Numbers of voxels that :class:`NoiseEstimator` has seen; those of processes may be joined.

    Attributes:
        images: Of each image (P, K, scores, 2): by class, its score, and whether it is the label.
        contradicted: Those with another label than the class (K, scores, losses).
        losses: All, by loss (losses,).
    """

    images: Tensor
    contradicted: Tensor
    losses: Tensor


class NoiseShare(NamedTuple):
    """What :func:`estimate_noise` finds.

    Attributes:
        rates: Share of other labels among the surest voxels of each class (K,), in [0, 1].
        sigma: Share of all voxels that have at least the losses of these, in [0, 1); 0 without
            evidence.
    """

    rates: Tensor
    sigma: float


class NoiseEstimator:
    """Counts how sure a network is of each class, and how often the labels say otherwise.

    Counts add up over batches, which should be of images that the network is not trained with: it
    learns wrong labels by heart.

    Args:
        num_classes: Number of classes K, each of which a voxel belongs to or not. Where one voxel
            can belong to several (regions), "outside" is best made a class of its own for each.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = self._none()

    def _none(self) -> Counts:
        shapes = ((0, self.num_classes, BINS, 2), (self.num_classes, BINS, BINS), (BINS,))
        return Counts(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))

    def observe(
        self, scores: Tensor, members: Tensor, losses: Tensor, valid: Tensor | None = None
    ) -> None:
        """Count voxels.

        Args:
            scores: Log-odds of each class (B, K, *spatial).
            members: Whether the label of the voxel is the class, boolean, same shape.
            losses: Loss of each voxel (B, *spatial), at least 0.
            valid: Voxels that count (B, *spatial), boolean; all without it.
        """
        score, member = _bins(scores.flatten(2)), members.flatten(2)
        loss = _bins(_own_log_odds(losses.flatten(1)))
        kept = torch.ones_like(loss, dtype=torch.bool) if valid is None else valid.flatten(1)
        images, classes = score.shape[:2]
        row = torch.arange(images * classes, device=score.device).view(images, classes, 1)
        of_images = _count(
            (row * BINS + score) * 2 + member, kept[:, None], (images, classes, BINS, 2)
        )
        contradicted = _count(
            (row % classes * BINS + score) * BINS + loss[:, None],
            kept[:, None] & ~member,
            (classes, BINS, BINS),
        )
        new = Counts(of_images, contradicted, _count(loss, kept, (BINS,)))
        self._counts = join([self._counts, new])

    def pop_counts(self) -> Counts:
        """Take what was counted since the last call, or since the beginning, on the CPU."""
        counts, self._counts = self._counts, self._none()
        return counts


def join(parts: Sequence[Counts]) -> Counts:
    """Count together what was counted apart."""
    images, contradicted, losses = zip(*parts, strict=True)
    return Counts(torch.cat(images), torch.stack(contradicted).sum(0), torch.stack(losses).sum(0))


def estimate_noise(counts: Counts) -> NoiseShare:
    """Judge from what a :class:`NoiseEstimator` counted."""
    by_score = counts.images.sum(0)
    anchors = _surest(by_score, ANCHORS)
    contradicted, confirmed = (counts.images * anchors[..., None]).sum(2).unbind(2)
    rates = contradicted.sum(0) / (contradicted + confirmed).sum(0).clamp_min(1)
    evident = (rates >= MIN_RATE) & (contradicted.sum(0) >= MIN_CONTRADICTED)
    if not evident.any():
        return NoiseShare(rates, 0.0)
    # without anchors an image has no rate, which is NaN here and does not count
    typical = (contradicted / (contradicted + confirmed)).nanmedian(0).values
    evident &= typical <= MAX_TYPICAL_RATE
    if not evident.any():
        return NoiseShare(rates, 0.0)

    in_core = _surest(by_score, CORE)[..., None]
    by_loss = (counts.contradicted * in_core)[evident].sum(1)
    reached = by_loss.flip(1).cumsum(1)  # the highest losses first
    enough = reached >= COVERED * reached[:, -1:]
    lowest = BINS - 1 - int(enough.int().argmax(1).max())
    return NoiseShare(rates, float(counts.losses[lowest:].sum() / counts.losses.sum()))


def _surest(by_score: Tensor, share: float) -> Tensor:
    """Mark the scores (K, scores) of the surest voxels of each class.

    Args:
        by_score: Numbers of voxels (K, scores, 2).
        share: So many, as a share of the voxels labelled as the class.
    """
    number = by_score.sum(2)
    surer = number.flip(1).cumsum(1).flip(1) - number
    return surer < share * by_score[..., 1].sum(1, keepdim=True)


def _count(cells: Tensor, kept: Tensor, shape: Sequence[int]) -> Tensor:
    """Count how often each cell of a table is named, by its number in the flattened table."""
    chosen = cells[kept.expand_as(cells)]
    return torch.bincount(chosen, minlength=prod(shape)).view(*shape).cpu()


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each of the classes (B, K, *spatial) that exclude each other, from logits."""
    log_p = logits.log_softmax(1)
    # 1 - p is exact enough: beyond LIMIT nothing is told apart
    return log_p - torch.log(-torch.expm1(log_p.clamp_max(-torch.finfo(log_p.dtype).eps)))


def _own_log_odds(losses: Tensor) -> Tensor:
    """Log-odds against the label of a voxel whose cross-entropy is given; grows with it."""
    return torch.log(torch.expm1(losses.clamp(1e-9, 2 * LIMIT)))


def _bins(log_odds: Tensor) -> Tensor:
    return ((log_odds / LIMIT + 1) / 2 * BINS).long().clamp(0, BINS - 1)
