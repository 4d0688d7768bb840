"""Consistency Reinforcement: two views of an image must be segmented alike, and with confidence.

Paper: Lei et al., ConDSeg, AAAI 2025, arXiv 2412.08345. Its body was not available to us; the
form follows the authors' published implementation for one class, the mean of both directions a
summary of the paper. Several classes and regions are our extension.
"""

from typing import Literal

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
