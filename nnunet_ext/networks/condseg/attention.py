"""Contrast-driven feature aggregation of ConDSeg, in 2D and 3D.

Paper: Lei et al., ConDSeg, AAAI 2025, arXiv 2412.08345; the attention is that of VOLO ("outlook
attention"). Its equation in the paper was not available to us; what stands here reproduces the
authors' published implementation, which is 2D.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunet_ext.networks.condseg.parts import ConvStyle, PerAxis
from nnunet_ext.networks.condseg.recomputed import on_joined
from nnunet_ext.networks.operations import recomputed

Window: TypeAlias = tuple[int, ...]
"""Odd edge lengths of the attention window."""

EDGE = 3
"""Edge of the authors' attention window."""


def attention_values(size: Sequence[int], heads: int, window: Window) -> int:
    """Attention values per guide and image at this feature size.

    A window of K positions holds K * K values per head and position: 81 in 2D, 729 in 3D.
    """
    return heads * prod(window) ** 2 * prod(size)


def plan_attention(
    size: Sequence[int], heads: int, budget: int, coarsest: int, kernel: Sequence[int]
) -> Window | None:
    """Choose the richest attention of one level that fits the budget.

    Tried in this order: a window of 3 along every axis; 1 instead along the coarsest axis (3D).

    Args:
        size: Feature size of the level.
        heads: Attention heads.
        budget: Most attention values per guide and image.
        coarsest: Axis along which voxels are thickest.
        kernel: Kernel size of the level; the window is never wider.

    Returns:
        The window, or None if even the last does not fit.
    """
    window = tuple(min(EDGE, k) for k in kernel)
    flat = tuple(1 if axis == coarsest and len(size) == 3 else k for axis, k in enumerate(window))
    fitting = (w for w in (window, flat) if attention_values(size, heads, w) <= budget)
    return next(fitting, None)


def fold_windows(attention: Tensor, window: Window) -> Tensor:
    r"""Turn the attention within windows into weights of the neighbours of each position.

    That position p receives from :math:`p + \delta` is the sum over all windows that hold both:
    with :math:`\omega_i` the K offsets of the window, :math:`W_\delta(p) = \sum_{ij:\,
    \omega_j - \omega_i = \delta} A_{ij}(p - \omega_i)`. It is added up axis by axis.

    Args:
        attention: A (B, heads, K, K, *S), rows i and columns j, over the windows' centres.
        window: Edge lengths k.

    Returns:
        W (B, heads, R, *S) over the R = prod(2 k - 1) offsets in order.
    """
    batch, heads, _, _, *size = attention.shape
    dim = len(window)
    x = attention.reshape(batch, heads, *window, *window, *size)
    for axis, edge in enumerate(window):
        # of shape (B, heads, *offsets, *rows to come, *columns to come, *S)
        row, column, place = 2 + axis, 2 + dim, 2 + 2 * dim  # one axis less for each one done
        parts = x.movedim(column, row + 1).unbind(row)
        shape = list(parts[0].shape)
        shape[row], shape[place - 1] = 2 * edge - 1, size[axis] + edge - 1
        folded = attention.new_zeros(shape)
        for i, part in enumerate(parts):
            reached = folded.narrow(row, edge - 1 - i, edge)
            reached.narrow(place - 1, i, size[axis]).add_(part)
        x = folded.narrow(place - 1, edge // 2, size[axis])
    return x.reshape(batch, heads, -1, *size)


def aggregate(value: Tensor, attention: Tensor, window: Window, normalise: bool = True) -> Tensor:
    r"""Let the positions of every window exchange values, then add up overlapping windows.

    With :math:`\omega_i` the K offsets of the window, windows centred at q and zeros outside,

    .. math:: U(q)_i = \sum_j A_{ij}(q) V(q + \omega_j), \qquad
              O(p) = \sum_{(q, i): q + \omega_i = p} U(q)_i.

    Both steps are one sum over neighbours, with the weights of :func:`fold_windows`.

    Args:
        value: V (B, C, *S).
        attention: A (B, heads, K, K, *S), rows i and columns j.
        window: Edge lengths.
        normalise: Divide by the sum of weights of the neighbours inside the image, so that a
            constant stays what it is up to the border. The authors do not; then values grow K
            times in each pass, too much for half precision in 3D.

    Returns:
        O, of the shape of ``value``.
    """
    batch, channels, *size = value.shape
    weights = fold_windows(attention, window)
    value = value.reshape(batch, weights.shape[1], -1, *size)
    if normalise:
        value = torch.cat([value, torch.ones_like(value[:, :, :1])], dim=2)
    total: Tensor = _NeighbourSum.apply(weights, value, [2 * edge - 1 for edge in window])
    if normalise:
        total = total[:, :, :-1] / total[:, :, -1:]
    return total.reshape(batch, channels, *size)


class _NeighbourSum(torch.autograd.Function):
    """Weighted sum over neighbours; autograd's own would keep and clear a map for each of them."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, edges: list[int]) -> Tensor:
        """Sum up values (B, heads, C, *S), zeros outside, under weights (B, heads, R, *S)."""
        ctx.edges = edges
        value = F.pad(value, [edge // 2 for edge in reversed(edges) for _ in range(2)])
        ctx.save_for_backward(weights, value)
        first, *others = zip(weights.split(1, dim=2), _neighbours(value, edges), strict=True)
        total = torch.mul(*first)
        for weight, neighbour in others:
            total.addcmul_(weight, neighbour)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Give the gradients of weights and values."""
        weights, value = ctx.saved_tensors
        of_weights, of_value = torch.empty_like(weights), torch.zeros_like(value)
        for weight, of_weight, neighbour, of_neighbour in zip(
            weights.split(1, dim=2),
            of_weights.split(1, dim=2),
            _neighbours(value, ctx.edges),
            _neighbours(of_value, ctx.edges),
            strict=True,
        ):
            of_weight.copy_((gradient * neighbour).sum(2, keepdim=True))
            of_neighbour.addcmul_(weight, gradient)
        for axis, edge in enumerate(ctx.edges, start=3):
            of_value = of_value.narrow(axis, edge // 2, of_value.shape[axis] - edge + 1)
        return of_weights, of_value, None


def _neighbours(padded: Tensor, edges: Sequence[int]) -> list[Tensor]:
    """Views of what lies at each offset from the centre, with borders (B, heads, C, *S)."""
    views = padded
    for axis, edge in enumerate(edges, start=3):
        views = views.unfold(axis, padded.shape[axis] - edge + 1, 1)  # whose positions come last
    found = [views]
    for _ in edges:  # one operation for many views; one for each costs more than the sum itself
        found = [part for view in found for part in view.unbind(3)]
    return found


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
        window: Of the attention; None replaces it by a convolution of features and guides, for
            levels where it would take too much memory.
        kernel: Kernel size of the convolutions, per axis or for all.
        normalise: See :func:`aggregate`.

    Raises:
        ValueError: If ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        style: ConvStyle,
        heads: int = 4,
        window: Window | None = None,
        kernel: PerAxis = 3,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}.")
        self.heads = heads
        self.window = window
        self.recompute = window is not None
        self.normalise = normalise
        self.enter = nn.Sequential(
            style.block(inputs, width, kernel), style.block(width, width, kernel)
        )
        if window is not None:
            values = heads * prod(window) ** 2
            self.value = style.conv(width, width, 1, bias=True)
            self.foreground = style.conv(width, values, 1, bias=True)
            self.background = style.conv(width, values, 1, bias=True)
            self.project = style.conv(width, width, 1, bias=True)
        self.leave = nn.Sequential(
            style.block(3 * width if window is None else width, width, kernel),
            style.block(width, width, kernel),
        )

    def forward(
        self, x: Tensor, foreground: Tensor, background: Tensor, deeper: Tensor | None = None
    ) -> Tensor:
        """Aggregate features under guides, of which attention is not kept for gradients.

        Args:
            x: Features (B, C, *S).
            foreground: Guide (B, ``width``, *S).
            background: Likewise.
            deeper: Features of the level below, of any size, which are joined with ``x``;
                together they have ``inputs`` channels.

        Returns:
            Features (B, ``width``, *S).
        """
        first, second = self.enter
        features = [x] if deeper is None else [x, deeper]
        x = second(on_joined(first, features, x.shape[2:]))
        if self.window is None:
            x = torch.cat([x, foreground, background], dim=1)
        else:
            x = self.value(x)
            for guide, scores in ((foreground, self.foreground), (background, self.background)):
                x = self.project(recomputed(self._exchange, x, guide, scores))
        left: Tensor = self.leave(x)
        return left

    def _exchange(self, x: Tensor, guide: Tensor, scores: nn.Module) -> Tensor:
        assert self.window is not None
        attention = self._attention(scores, guide).to(x.dtype)
        return aggregate(x, attention, self.window, self.normalise)

    def _attention(self, scores: nn.Module, guide: Tensor) -> Tensor:
        """Attention (B, heads, K, K, *S) in float32, whose rows sum to 1."""
        assert self.window is not None
        head_width = guide.shape[1] // self.heads
        count = prod(self.window)
        logits = scores(guide).unflatten(1, (self.heads, count, count))
        return torch.softmax(logits.float() * head_width**-0.5, dim=3)
