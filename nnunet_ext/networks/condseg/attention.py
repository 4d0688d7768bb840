"""Contrast-driven feature aggregation of ConDSeg, in 2D and 3D.

Paper: Lei et al., ConDSeg, AAAI 2025, arXiv 2412.08345; the attention is that of VOLO ("outlook
attention"). Its equation in the paper was not available to us; what stands here reproduces the
authors' published implementation, which is 2D.
"""

from collections.abc import Sequence
from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.networks.condseg.parts import ConvStyle, PerAxis

WINDOW = 3
"""Edge of the authors' attention window."""
COARSE_STRIDE = 2
"""Stride of the attention where one at every position is too much."""


class AttentionPlan(NamedTuple):
    """Where and how far one level attends.

    Attributes:
        window: Odd edge lengths of the attention window.
        stride: Steps between the positions of the window.
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]

    def values(self, size: Sequence[int], heads: int) -> int:
        """Attention values per guide and image at this feature size.

        A window of K positions holds K * K values per head and position: 81 in 2D, 729 in 3D.
        """
        positions = prod(ceil(n / step) for n, step in zip(size, self.stride, strict=True))
        return heads * prod(self.window) ** 2 * positions


def plan_attention(
    size: Sequence[int], heads: int, budget: int, coarsest: int, kernel: Sequence[int]
) -> AttentionPlan | None:
    """Choose the richest attention of one level that fits the budget.

    Tried in this order: a window of 3 along every axis; 1 instead along the coarsest axis (3D);
    a stride of 2 along the other axes as well.

    Args:
        size: Feature size of the level.
        heads: Attention heads.
        budget: Most attention values per guide and image.
        coarsest: Axis along which voxels are thickest.
        kernel: Kernel size of the level; the window is never wider.

    Returns:
        The plan, or None if even the last does not fit.
    """
    window = tuple(min(WINDOW, k) for k in kernel)
    ones = (1,) * len(size)
    flat = window
    if len(size) == 3:
        flat = tuple(1 if axis == coarsest else k for axis, k in enumerate(window))
    # a stride along an axis without neighbours would leave positions out
    strided = tuple(COARSE_STRIDE if k > 1 else 1 for k in flat)
    candidates = (AttentionPlan(window, ones), AttentionPlan(flat, ones))
    for plan in (*candidates, AttentionPlan(flat, strided)):
        if plan.values(size, heads) <= budget:
            return plan
    return None


def aggregate(value: Tensor, attention: Tensor, plan: AttentionPlan) -> Tensor:
    r"""Let the positions of every window exchange values, then add up overlapping windows.

    With :math:`\omega_i` the K offsets of the window, windows centred at q and zeros outside,

    .. math:: U(q)_i = \sum_j A_{ij}(q) V(q + \omega_j), \qquad
              O(p) = \sum_{(q, i): q + \omega_i = p} U(q)_i.

    ``torch.nn.functional.fold`` does this in 2D only; here each axis is folded in turn.

    Args:
        value: V, channels last (B, *S, C).
        attention: A (B, L, heads, K, K), rows i and columns j, over the L positions q in order.
        plan: Window and stride.

    Returns:
        O, of the shape of ``value``.
    """
    batch, *size, channels = value.shape
    heads, dim = attention.shape[2], len(size)
    borders = [edge // 2 for edge in plan.window]
    windows = F.pad(value, (0, 0, *(border for b in reversed(borders) for border in (b, b))))
    for axis, (edge, step) in enumerate(zip(plan.window, plan.stride, strict=True), start=1):
        windows = windows.unfold(axis, edge, step)  # the window's axis comes last
    positions = windows.shape[1 : dim + 1]
    windows = windows.reshape(batch, prod(positions), heads, channels // heads, -1)
    mixed = attention @ windows.transpose(-1, -2)  # (B, L, heads, K, C / heads)

    folded = mixed.reshape(batch, *positions, heads, *plan.window, -1)
    window_axes = range(dim + 2, 2 * dim + 2)
    folded = folded.permute(0, *window_axes, *range(1, dim + 2), 2 * dim + 2)
    for edge, step, border, length in zip(plan.window, plan.stride, borders, size, strict=True):
        # of shape (B, *rest of the window, *folded axes, this axis, *axes to come, heads, C)
        parts = folded.unbind(1)
        shape = list(parts[0].shape)
        count, shape[dim] = shape[dim], length + 2 * border
        folded = parts[0].new_zeros(shape)
        for offset in range(edge):
            reached = slice(offset, offset + (count - 1) * step + 1, step)
            folded[(slice(None),) * dim + (reached,)].add_(parts[offset])
        folded = folded.narrow(dim, border, length)
    return folded.reshape(value.shape)


class ContrastDrivenFeatureAggregation(nn.Module):
    """Aggregate features under attention that comes from foreground and background alone.

    At each position a linear map of the guide, without queries or keys, gives the attention
    among the positions of the window around it; the foreground's acts first, then the
    background's on what that gave.

    Args:
        inputs: Channels of the features.
        width: Channels of guides and result.
        style: What blocks are made of.
        heads: Attention heads.
        plan: Window and stride; None replaces attention by a convolution of features and guides,
            for levels where it would take too much memory.
        kernel: Kernel size of the convolutions, per axis or for all.
        average: Divide the values of each pass by the number of window positions. The authors do
            not; without, they grow up to 27 times per pass in 3D, too much for half precision.
        recompute: Recompute the attention in the backward pass instead of keeping it.

    Raises:
        ValueError: If ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        style: ConvStyle,
        heads: int = 4,
        plan: AttentionPlan | None = None,
        kernel: PerAxis = 3,
        average: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}.")
        self.heads = heads
        self.plan = plan
        self.average = average
        self.recompute = recompute
        self.enter = nn.Sequential(
            style.block(inputs, width, kernel), style.block(width, width, kernel)
        )
        if plan is not None:
            values = heads * prod(plan.window) ** 2
            self.value = nn.Linear(width, width)
            self.foreground = style.conv(width, values, 1, bias=True)
            self.background = style.conv(width, values, 1, bias=True)
            self.project = nn.Linear(width, width)
        self.leave = nn.Sequential(
            style.block(3 * width if plan is None else width, width, kernel),
            style.block(width, width, kernel),
        )

    def forward(self, x: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Aggregate features (B, ``inputs``, *S) under guides (B, ``width``, *S).

        Returns:
            Features (B, ``width``, *S).
        """
        x = self.enter(x)
        if self.plan is None:
            x = torch.cat([x, foreground, background], dim=1)
        elif self.recompute and torch.is_grad_enabled():
            x = checkpoint(self._attend, x, foreground, background, use_reentrant=False)
        else:
            x = self._attend(x, foreground, background)
        left: Tensor = self.leave(x)
        return left

    def _attend(self, x: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        assert self.plan is not None
        value = self.value(x.movedim(1, -1))
        for guide, scores in ((foreground, self.foreground), (background, self.background)):
            if self.average:
                value = value / prod(self.plan.window)
            attention = self._attention(scores, guide).to(value.dtype)
            value = self.project(aggregate(value, attention, self.plan))
        return value.movedim(-1, 1)

    def _attention(self, scores: nn.Module, guide: Tensor) -> Tensor:
        """Attention (B, L, heads, K, K) in float32, whose rows sum to 1."""
        assert self.plan is not None
        head_width = guide.shape[1] // self.heads
        if max(self.plan.stride) > 1:
            pool = F.avg_pool2d if guide.ndim == 4 else F.avg_pool3d
            guide = pool(guide, self.plan.stride, self.plan.stride, ceil_mode=True)
        count = prod(self.plan.window)
        logits = scores(guide).view(len(guide), self.heads, count, count, -1)
        # positions come last until here, because a softmax along a short last axis is slow
        attention = torch.softmax(logits.float() * head_width**-0.5, dim=3)
        return attention.movedim(-1, 1)
