"""How many labels are wrong, judged by the voxels of which a network is surest.

Where a class is most probable, labels of other classes are wrong labels, whatever the calibration
of the network: such anchor points identify the noise rate of a class (Liu and Tao, "Classification
with noisy labels by importance reweighting", IEEE TPAMI 38 (2016) 447-461, theorem 4; Patrini et
al., CVPR 2017, section 4). They do not see labels that are wrong only where classes are hard to
tell apart anyway, such as the course of a boundary. That one can know how much to leave out from
them is our addition to the top-k / bottom-all-but-sigma loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = 0.05
"""Share of a class, by its labelled size, that is taken for sure."""
MIN_RATE = 0.1
"""Below this share of contradicted anchors there is no evidence: networks err, too."""
MAX_RATE = 2 / 3
"""Above it the network has not learned the class, and its judgement is worth nothing."""
MIN_CONTRADICTED = 20
"""Fewer contradicted anchors are no evidence either."""
CORE = 0.5
"""Share of a class, by its labelled size, whose wrong labels have typical losses."""
COVERED = 0.75
"""Share of the wrong labels in the cores of classes that sigma is to reach."""

BINS = 128
LIMIT = 16.0
"""Log-odds are counted in bins from minus to plus this."""


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
        num_classes: Number of classes, each of which a voxel belongs to or not. Where one voxel
            can belong to several (regions), "outside" is best made a class of its own for each.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = self._none()

    def _none(self) -> Tensor:
        # classes by score, by whether the label agrees, by loss
        return torch.zeros(self.num_classes, BINS, 2, BINS, dtype=torch.int64)

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
        classes = torch.arange(self.num_classes, device=scores.device)
        classes = classes.view(1, -1, *[1] * (scores.ndim - 2))
        cell = (classes * BINS + _bins(scores)) * 2 + members.long()
        cell = cell * BINS + _bins(_own_log_odds(losses))[:, None]
        if valid is not None:
            cell = cell.movedim(1, -1)[valid]
        counted = torch.bincount(cell.flatten(), minlength=self._counts.numel())
        self._counts += counted.view_as(self._counts).cpu()

    def pop_counts(self) -> Tensor:
        """Take what was counted since the last call, or since the beginning.

        Returns:
            Numbers of voxels (K, scores, 2, losses) on the CPU: for each class by score, by
            whether the label is the class, and by loss. Counts of processes may be added.
        """
        counts, self._counts = self._counts, self._none()
        return counts


def estimate_noise(counts: Tensor) -> NoiseShare:
    """Judge from what a :class:`NoiseEstimator` counted."""
    contradicted, confirmed = _surest(counts, ANCHORS)
    rates = contradicted.sum(1) / (contradicted + confirmed).sum(1).clamp_min(1)
    evident = (rates >= MIN_RATE) & (rates <= MAX_RATE)
    evident &= contradicted.sum(1) >= MIN_CONTRADICTED
    if not evident.any():
        return NoiseShare(rates, 0.0)
    contradicted, _ = _surest(counts[evident], CORE)
    reached = contradicted.flip(1).cumsum(1)  # the highest losses first
    enough = reached >= COVERED * reached[:, -1:]
    lowest = BINS - 1 - int(enough.int().argmax(1).max())
    losses = counts[0].sum((0, 1))
    return NoiseShare(rates, float(losses[lowest:].sum() / losses.sum()))


def _surest(counts: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Count the surest voxels by loss (K, losses): with other labels, with that of the class.

    Takes as many as ``share`` of the voxels labelled as the class.
    """
    by_score = counts.flip(1)
    number = by_score.sum((2, 3))
    surer = number.cumsum(1) - number
    taken = surer < share * by_score[:, :, 1].sum((1, 2))[:, None]
    contradicted, confirmed = (by_score * taken[:, :, None, None]).sum(1).unbind(1)
    return contradicted, confirmed


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
