"""The losses of ConDSeg: consistency reinforcement, and telling semantic regions apart.

Paper: Lei et al., ConDSeg, AAAI 2025, arXiv 2412.08345. Its body was not available to us; the
losses follow the authors' published implementation. Several classes, regions and ignored voxels
are our extension. The reinforcement's mean of both directions is a summary of the paper. The
decoupling losses differ where the implementation works against itself: no sigmoid is applied
twice, the complementary loss sees logits, of which the uncertain one is bounded, area weights are
those of a mean area, clamped and without gradient, and the background is the complement of the
augmented foreground.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class ConsistencyReinforcementLoss(nn.Module):
    r"""Cross-entropy of each view under the other's hard prediction.

    With logits :math:`z_1, z_2` and hard, detached predictions :math:`\hat y(z)`, the largest
    class or, for regions, :math:`z > 0` in each channel,

    .. math:: L = \tfrac12 \left[ H(z_1, \hat y(z_2)) + H(z_2, \hat y(z_1)) \right].

    Views that agree do not make it zero: with one channel it is then the mean of
    :math:`-\log \max(p, 1 - p)`, which vanishes where predictions are confident, too.

    Args:
        regions: Channels are overlapping regions (sigmoid) instead of classes (softmax). One
            channel of this kind is the authors' case.
        reduction: ``"mean"`` of both directions as in the paper, or ``"sum"`` as in its code.
    """

    def __init__(self, regions: bool = False, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
        self.regions = regions
        self.reduction = reduction

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compare the logits of two views.

        Args:
            first: Logits (B, K, *S) of one view.
            second: Those of the other, voxels in the same places.
            valid: Which voxels count (B, 1, *S); default all. Without any the loss is 0.

        Returns:
            Scalar in float32.
        """
        first, second = first.float(), second.float()
        both = self._cross_entropy(first, second) + self._cross_entropy(second, first)
        if self.reduction == "mean":
            both = both / 2
        if valid is None:
            return both.mean()
        counts = valid[:, 0].to(both.dtype)
        return (both * counts).sum() / counts.sum().clamp_min(1)

    def _cross_entropy(self, logits: Tensor, others: Tensor) -> Tensor:
        """Cross-entropy (B, *S) under the others' hard prediction."""
        if self.regions:
            hard = (others.detach() > 0).to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, hard, reduction="none").mean(1)
        return F.cross_entropy(logits, others.detach().argmax(1), reduction="none")


SMOOTH = 1.0
"""Added to numerator and denominator of the soft Dice."""
CERTAIN = 0.75
"""A voxel can be called uncertain while neither foreground nor background is surer than this."""


class AnyForeground(NamedTuple):
    """What is object: any class, or each of them.

    Attributes:
        foreground: Whether a voxel belongs to any class or region (B, 1, *S), or to each class
            (B, M, *S); float32.
        valid: Whether it counts (B, 1, *S), float32; None if all do.
    """

    foreground: Tensor
    valid: Tensor | None


def any_foreground(
    target: Tensor, regions: bool = False, ignore_label: int | None = None, classes: int = 1
) -> AnyForeground:
    """Merge all classes or regions of nnU-Net's target at full resolution, or tell them apart.

    Args:
        target: Labels (B, 1, *S), or regions (B, R, *S) and, where there is an ignore label, its
            map as one more channel. Not changed.
        regions: Which of both it is.
        ignore_label: The label of voxels that do not count, None if there is none.
        classes: How many labels, from 1 on, are told apart; 1 merges all.
    """
    if not regions:
        valid = None if ignore_label is None else (target != ignore_label).float()
        labels = [target == label for label in range(1, classes + 1)]
        foreground = torch.cat(labels if classes > 1 else [target > 0], dim=1).float()
    else:
        valid = None if ignore_label is None else 1 - target[:, -1:].float()
        own = target if ignore_label is None else target[:, :-1]
        foreground = own.bool().any(1, keepdim=True).float()
    return AnyForeground(foreground if valid is None else foreground * valid, valid)


def area_weight(area: Tensor, max_weight: float) -> Tensor:
    r"""Weight :math:`1 / \tanh(a)` of a predicted area fraction a, within [1, ``max_weight``].

    Small objects weigh more. The authors divide the area of a whole batch by the size of one
    image and let gradient through; here a is a mean over images, without gradient, and patches
    without foreground do not make the weight explode.
    """
    return (1 / torch.tanh(area.detach())).clamp(1, max_weight)


def region_probabilities(maps: Tensor) -> Tensor:
    """Share the certainty of each position among the three regions.

    A softmax over logits, of which the uncertain one is bounded to that of ``CERTAIN``. Without
    bound nothing keeps this map, which has no target, from claiming easy background, too: it then
    excludes the others there at no cost. Foreground and background have targets, outgrow the bound
    wherever they are sure, and leave the rest to the uncertain region.

    Args:
        maps: Logits of M foregrounds, background and uncertain region (B, M + 2, *S).

    Returns:
        Probabilities of the three (B, 3, *S), in float32, adding up to 1.
    """
    foreground, background, uncertain = _split(maps.float())
    foreground = foreground.logsumexp(1, keepdim=True)
    bound = math.log(CERTAIN / (1 - CERTAIN))
    uncertain = bound * torch.tanh(uncertain / bound)
    return torch.cat([foreground, background, uncertain], dim=1).softmax(dim=1)


def complementary_loss(probabilities: Tensor) -> Tensor:
    r"""Overlap :math:`\sum_{i<j} P_i P_j = (1 - \sum_i P_i^2) / 2` of what should exclude itself.

    Args:
        probabilities: P (B, 3, *S), adding up to 1.

    Returns:
        Map (B, 1, *S), between 0 where one is certain and 1/3 where all are alike.
    """
    return (1 - probabilities.square().sum(1, keepdim=True)) / 2


def mask_loss(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice of the whole batch.

    Args:
        logits: Of M masks (B, M, *S), not probabilities.
        target: In [0, 1], of the same shape.
        weights: How much each voxel counts (B, 1, *S); without any the loss is 0.

    Returns:
        The loss of each mask (M,).
    """
    axes = (0, *range(2, logits.ndim))
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (weights * entropy).sum(axes) / weights.sum().clamp_min(1)
    predicted, wanted = weights * torch.sigmoid(logits), weights * target
    overlap = 2 * (predicted * target).sum(axes) + SMOOTH
    return entropy + 1 - overlap / (predicted.sum(axes) + wanted.sum(axes) + SMOOTH)


class DecouplingLosses(NamedTuple):
    """Scalars in float32.

    Attributes:
        foreground: Loss of the foreground map, not yet weighted.
        background: Likewise.
        complementary: Overlap of the three maps.
        foreground_weight: Area weight, without gradient.
        background_weight: Likewise.
        uncertain_share: Mean probability of the uncertain region, without gradient.
    """

    foreground: Tensor
    background: Tensor
    complementary: Tensor
    foreground_weight: Tensor
    background_weight: Tensor
    uncertain_share: Tensor

    @property
    def total(self) -> Tensor:
        r"""The paper's sum :math:`\beta_1 L_{fg} + \beta_2 L_{bg} + L_{compl}`."""
        weighted = self.foreground_weight * self.foreground
        weighted = weighted + self.background_weight * self.background
        return weighted + self.complementary


class SemanticDecouplingLoss(nn.Module):
    """Losses of the three decoupled maps; the uncertain one has no target but the others' gaps.

    Args:
        max_weight: Limit of the area weights, at least 1.
    """

    def __init__(self, max_weight: float = 10.0) -> None:
        super().__init__()
        if max_weight < 1:
            raise ValueError(f"max_weight must be at least 1, got {max_weight}.")
        self.max_weight = max_weight

    def forward(self, maps: Tensor, target: AnyForeground) -> DecouplingLosses:
        """Compare maps with what is foreground.

        Args:
            maps: Logits of M foregrounds, background and uncertain region (B, M + 2, *S').
            target: At full resolution, with M foregrounds; averaged over the area of each element
                of the maps.
        """
        maps = maps.float()
        foreground, valid = target
        size = maps.shape[2:]
        wanted = F.interpolate(foreground, size, mode="area")
        if valid is None:
            weights = torch.ones_like(wanted)
        else:
            weights = F.interpolate(valid, size, mode="area")
            # of the valid part of each element; ignored voxels are 0 in both
            wanted = wanted / weights.clamp_min(torch.finfo(weights.dtype).tiny)
        logits_fg, logits_bg, _ = _split(maps)
        empty = 1 - wanted.sum(1, keepdim=True).clamp_max(1)
        probabilities = region_probabilities(maps)
        total = weights.sum().clamp_min(1)
        weights_fg, weights_bg = (
            area_weight(_mean_areas(logits, weights), self.max_weight)
            for logits in (logits_fg, logits_bg)
        )
        return DecouplingLosses(
            (weights_fg / weights_fg.sum() * mask_loss(logits_fg, wanted, weights)).sum(),
            mask_loss(logits_bg, empty, weights).mean(),
            (weights * complementary_loss(probabilities)).sum() / total,
            weights_fg.mean(),
            weights_bg.mean(),
            (weights * probabilities[:, 2:]).sum().detach() / total,
        )


def _split(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take apart foreground (B, M, *S), background and uncertain region (B, 1, *S)."""
    return maps[:, :-2], maps[:, -2:-1], maps[:, -1:]


def _mean_areas(logits: Tensor, weights: Tensor) -> Tensor:
    """Predicted shares (M,) of the valid area, averaged over the images that have any."""
    counts = weights.flatten(1).sum(1, keepdim=True)
    areas = (weights * torch.sigmoid(logits)).flatten(2).sum(2) / counts.clamp_min(1)
    return areas.sum(0) / (counts > 0).sum().clamp_min(1)
