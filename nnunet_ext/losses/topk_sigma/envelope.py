r"""Top-k / bottom-all-but-sigma: trust images more than their pixels.

Paper: "Top-k Bottom All but Sigma Loss Strategy for Medical Image Segmentation", Diagnostics 2025,
15(17), 2189. Only its abstract and introduction were available to us. They fix that a loss is
reduced over the pixels of an image, leaving out the highest losses (labels of pixels are often
wrong), then over images, stressing those with the highest loss, and that the derivative is
smoothed. The formulas, the meaning of sigma as a share of the pixels of each image, and all
defaults are our reconstruction.

With :math:`\ell_{ij}` the loss of voxel j of image i, :math:`w_{ij}` and :math:`v_i` the
weights of voxels and images (both without gradient),

.. math:: P_i = \frac{\sum_j w_{ij} \ell_{ij}}{\sum_j w_{ij}}, \qquad
          L = \frac{\sum_i v_i P_i}{\sum_i v_i}.
"""

from collections.abc import Callable
from functools import partial
from operator import add
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Smoothing: TypeAlias = Literal["gate", "integral", "hard"]
Scope: TypeAlias = Literal["image", "class", "batch"]

Count = TypeVar("Count", int, Tensor)

MIN_THRESHOLD = 1e-3
"""Widths are relative to thresholds, but to no smaller one than this."""

PARTS = 10**9
"""Fractions are counted in parts of this: integers stay exact on every device, floats do not."""


class Trimmed(NamedTuple):
    """What the reduction over pixels gives.

    Attributes:
        means: Trimmed mean loss of each image (B,), with gradient; 0 without valid voxels.
        ranking: The same without gradient, -inf for images without valid voxels.
        weights: What each voxel counts (B, *spatial), in [0, 1], 0 where it is not valid.
    """

    means: Tensor
    ranking: Tensor
    weights: Tensor


class Selected(NamedTuple):
    """What the choice among images gives.

    Attributes:
        weights: What each image counts (B,), in [0, 1], 0 without valid voxels.
        total: What the weighted sum is divided by.
        offset: Constant to add for the value of the "integral" form; 0 in the others.
    """

    weights: Tensor
    total: Tensor
    offset: Tensor

    def reduce(self, per_image: Tensor) -> Tensor:
        """Average figures of the images (B,) to a scalar, 0 if no image has valid voxels."""
        weighted = (self.weights * per_image).sum()
        return weighted / self.total.clamp_min(torch.finfo(weighted.dtype).tiny)


class _Kept(NamedTuple):
    """What is kept of each voxel (R, N) of rows R.

    Attributes:
        weights: Derivative of the kept sum with respect to the losses.
        sizes: What each voxel contributes to the normaliser.
        surplus: Value of the kept sum beyond weights times losses.
    """

    weights: Tensor
    sizes: Tensor
    surplus: Tensor


class TopKSigmaLoss(nn.Module):
    """Reduce a loss per voxel to a scalar; see the module's docstring.

    ``sigma`` and ``top_fraction`` may be set at any time, for example by a schedule.

    Args:
        sigma: Share of voxels with the highest losses to leave out, in [0, 1).
        top_fraction: Share of images with the highest trimmed means to keep, in (0, 1]; at
            least one is kept.
        smoothing: ``"hard"`` keeps or drops, ``"gate"`` weights by a sigmoid around the
            threshold, ``"integral"`` by the same sigmoid, but as the derivative of a smoothed
            sum of the lowest losses, so that value and gradient agree at fixed thresholds. Its
            value may be slightly below 0.
        tau: Width of the smoothing over the threshold, at least 0, which means ``"hard"``.
            Above 0.1 noticeably more than the share sigma is lost.
        scope: Whether sigma is a share of the valid voxels of each image, of those of each
            ground-truth class in an image, or of those of all images together.
        num_classes: Number of classes for ``scope="class"``. Without it, the highest label of
            each batch decides, which costs a synchronisation and cannot be compiled.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        sigma: float = 0.02,
        top_fraction: float = 0.5,
        smoothing: Smoothing = "gate",
        tau: float = 0.1,
        scope: Scope = "image",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("smoothing", smoothing, ("gate", "integral", "hard")),
            ("scope", scope, ("image", "class", "batch")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau must be in [0, inf), got {tau}.")
        self.sigma = sigma
        self.top_fraction = top_fraction
        self.smoothing: Smoothing = smoothing
        self.tau = tau
        self.scope: Scope = scope
        self.num_classes = num_classes

    @property
    def sigma(self) -> float:
        """Share of voxels left out, in [0, 1); counted in steps of 1e-9."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        if not 0 <= value < 1:
            raise ValueError(f"sigma must be in [0, 1), got {value}.")
        self._sigma = value

    @property
    def top_fraction(self) -> float:
        """Share of images kept, in (0, 1]; counted in steps of 1e-9."""
        return self._top_fraction

    @top_fraction.setter
    def top_fraction(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"top_fraction must be in (0, 1], got {value}.")
        self._top_fraction = value

    @property
    def is_active(self) -> bool:
        """Whether this is anything but the mean over images of their mean losses."""
        return self.sigma > 0 or self.top_fraction < 1

    def extra_repr(self) -> str:
        """Settings, as PyTorch prints them."""
        return (
            f"sigma={self.sigma}, top_fraction={self.top_fraction}, "
            f"smoothing={self.smoothing!r}, tau={self.tau}, scope={self.scope!r}"
        )

    def forward(
        self, pixel_loss: Tensor, valid: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """Reduce.

        Args:
            pixel_loss: Loss of each voxel (B, *spatial), at least 0. Half precision is
                computed in float32.
            valid: Voxels that count (B, *spatial), boolean; all without it.
            target: Class of each valid voxel (B, *spatial), integers from 0; only
                ``scope="class"`` needs it.

        Returns:
            Scalar; 0 with zero gradient if no voxel is valid.

        Raises:
            ValueError: If ``scope="class"`` gets no target.
        """
        trimmed = self.trim(pixel_loss, valid, target)
        images = self.select(trimmed.ranking)
        return images.reduce(trimmed.means) + images.offset

    def trim(
        self, pixel_loss: Tensor, valid: Tensor | None = None, target: Tensor | None = None
    ) -> Trimmed:
        """Reduce over the voxels of each image; arguments as for :meth:`forward`."""
        return trim(
            pixel_loss,
            self.sigma,
            self.smoothing,
            self.tau,
            self.scope,
            valid,
            target,
            self.num_classes,
        )

    def select(self, ranking: Tensor) -> Selected:
        """Weight images by their trimmed means (B,), -inf for those without valid voxels."""
        return select(ranking, self.top_fraction, self.smoothing, self.tau)


def trim(
    pixel_loss: Tensor,
    sigma: float,
    smoothing: Smoothing = "gate",
    tau: float = 0.1,
    scope: Scope = "image",
    valid: Tensor | None = None,
    target: Tensor | None = None,
    num_classes: int | None = None,
) -> Trimmed:
    """Average the loss of each image over all but the highest losses.

    Arguments are those of :class:`TopKSigmaLoss` and its ``forward``, here unchecked.
    """
    losses = pixel_loss.flatten(1).to(torch.promote_types(pixel_loss.dtype, torch.float32))
    member = None if valid is None else valid.flatten(1)
    if member is not None:
        losses = losses.masked_fill(~member, 0)
    keep = partial(_keep, sigma=sigma, smoothing=smoothing, tau=tau)
    with torch.no_grad():
        if scope == "image":
            kept = keep(losses, member)
        elif scope == "batch":
            pooled = keep(losses.reshape(1, -1), None if member is None else member.reshape(1, -1))
            kept = _Kept(*(part.view_as(losses) for part in pooled))
        elif target is None:
            raise ValueError('scope="class" needs the target.')
        else:
            kept = _keep_of_each_class(keep, losses, member, target.flatten(1), num_classes)
        size = kept.sizes.sum(1)
        surplus = kept.surplus.sum(1)
    # one kept voxel already counts a half; less is only left where nothing is valid, or where
    # scope="batch" finds all that is wrong in one image
    means = ((kept.weights * losses).sum(1) + surplus) / size.clamp_min(0.5)
    ranking = means.detach().masked_fill(size == 0, -torch.inf)
    return Trimmed(means, ranking, kept.weights.view_as(pixel_loss))


def _keep_of_each_class(
    keep: Callable[[Tensor, Tensor | None], _Kept],
    losses: Tensor,
    member: Tensor | None,
    target: Tensor,
    num_classes: int | None,
) -> _Kept:
    kept = _Kept(*[torch.zeros_like(losses)] * 3)
    for label in range(int(target.max()) + 1 if num_classes is None else num_classes):
        of_class = target == label
        part = keep(losses, of_class if member is None else of_class & member)
        kept = _Kept(*map(add, kept, part))
    return kept


def _keep(
    losses: Tensor, member: Tensor | None, sigma: float, smoothing: Smoothing, tau: float
) -> _Kept:
    """Weight the voxels of each row (R, N) among those that are members of its group."""
    nothing = losses.new_zeros(1, 1).expand_as(losses)
    size = losses.shape[1]
    if _floor_share(size, sigma) == 0:
        everyone = torch.ones_like(losses) if member is None else member.to(losses.dtype)
        return _Kept(everyone, everyone, nothing)

    if member is None:
        ranked = losses
        count = torch.full((len(losses), 1), size, device=losses.device)
    else:
        ranked = losses.masked_fill(~member, -torch.inf)
        count = member.sum(1, keepdim=True)
    # at least one voxel stays, also where sigma is so close to 1 that rounding says otherwise
    trimmed = _floor_share(count, sigma).minimum(count - 1).clamp_min(0)
    # the tail is as long as the largest group needs, so that no size depends on the data
    tail = ranked.topk(min(_floor_share(size, sigma), size - 1) + 1).values
    lowest_trimmed = tail.gather(1, (trimmed - 1).clamp_min(0))
    highest_kept = tail.gather(1, trimmed)
    trims = trimmed > 0

    smoothing = smoothing if tau > 0 else "hard"
    if smoothing != "gate":
        spared = ~_highest(ranked, lowest_trimmed.masked_fill(~trims, torch.inf), trimmed)
        hard = (spared if member is None else spared & member).to(losses.dtype)
        if smoothing == "hard":
            return _Kept(hard, hard, nothing)

    threshold = ((lowest_trimmed + highest_kept) / 2).masked_fill(~trims, torch.inf)
    width = (tau * threshold.clamp_min(MIN_THRESHOLD)).masked_fill(~trims, 1)
    weights = (threshold - ranked).div_(width).sigmoid_()
    if member is not None:
        weights.mul_(member)
    if smoothing == "gate":
        return _Kept(weights, weights, nothing)
    surplus = saturate(losses, threshold, width) - threshold * (1 - hard) - weights * losses
    return _Kept(weights, hard, surplus.where(trims if member is None else trims & member, 0))


def _floor_share(count: Count, fraction: float) -> Count:
    # one part more than the fraction has: 0.29 of 100 are 29, though 0.29 * 100 is below
    return count * (round(fraction * PARTS) + 1) // PARTS


def _highest(ranked: Tensor, cut: Tensor, number: Tensor) -> Tensor:
    """Mark the ``number`` (R, 1) highest of each row; of those equal to ``cut``, the last ones."""
    above, equal = ranked > cut, ranked == cut
    order = equal.cumsum(1)
    spared = order[:, -1:] - (number - above.sum(1, keepdim=True))
    return above | (equal & (order > spared))


def saturate(losses: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
    """Smooth version of min(losses, threshold), 0 at 0 and within width * ln 2 of it.

    Its derivative is sigmoid((threshold - losses) / width).
    """
    return width * (F.logsigmoid((losses - threshold) / width) - F.logsigmoid(-threshold / width))


@torch.no_grad()
def select(
    ranking: Tensor, top_fraction: float, smoothing: Smoothing = "gate", tau: float = 0.1
) -> Selected:
    """Weight images by how high their trimmed means stand.

    Args:
        ranking: Trimmed means (B,), -inf for images without valid voxels, which do not count.
        top_fraction: See :class:`TopKSigmaLoss`; unchecked.
        smoothing: Likewise.
        tau: Likewise.
    """
    present = ranking > -torch.inf
    count = present.sum()
    # ceil, again with one part in PARTS to spare
    number = (count * (round(top_fraction * PARTS) - 1) + PARTS - 1) // PARTS
    number = number.clamp_min(1).minimum(count)
    descending = ranking.sort(descending=True, stable=True)
    position = torch.arange(len(ranking), device=ranking.device)
    no_offset = ranking.new_zeros(())
    if smoothing == "hard" or tau == 0:
        chosen = (position < number).to(ranking.dtype)
        weights = torch.zeros_like(ranking).scatter(0, descending.indices, chosen)
        return Selected(weights, weights.sum(), no_offset)

    everyone = present.to(ranking.dtype)
    all_chosen = number == count
    around = torch.stack([number - 1, number]).clamp(0, len(ranking) - 1)
    threshold = descending.values[around].mean()
    width = tau * threshold.abs().clamp_min(MIN_THRESHOLD)
    means = ranking.where(present, 0)
    if smoothing == "gate":
        weights = torch.sigmoid((means - threshold) / width) * everyone
        weights = everyone.where(all_chosen, weights)
        return Selected(weights, weights.sum(), no_offset)

    above = means - threshold
    root = (above.square() + width.square()).sqrt()
    weights = everyone.where(all_chosen, (1 + above / root) / 2 * everyone)
    smooth_sum = ((above + root) / 2 * everyone - weights * means).sum()
    offset = no_offset.where(all_chosen, threshold + smooth_sum / number)
    return Selected(weights, number.to(ranking.dtype), offset)


def trimmed_share(
    weights: Tensor, target: Tensor, num_classes: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Measure how much of each ground-truth class is left out.

    Args:
        weights: What each voxel counts, in [0, 1]; any shape.
        target: Class of each valid voxel, same shape.
        num_classes: Number of classes K.
        valid: Voxels that count, same shape; all without it.

    Returns:
        Share in [0, 1] per class (K,), 0 where the class does not occur, and whether it occurs.
    """
    known = torch.ones_like(weights) if valid is None else valid.to(weights.dtype)
    label = (target if valid is None else target.where(valid, 0)).flatten().long()
    count, lost = (
        weights.new_zeros(num_classes).scatter_add_(0, label, each.flatten())
        for each in (known, known - weights)
    )
    return lost / count.clamp_min(1), count > 0
