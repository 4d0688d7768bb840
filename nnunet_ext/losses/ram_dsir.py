"""The losses of RAM-DSIR: consistency between two views, and restoration of the original image.

Paper: Zhou, Qi, Shi, ECCV 2022, arXiv 2208.03901 (RAM-DSIR), whose body was not available to us;
reductions follow the authors' published implementation.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class SymmetricKLConsistency(nn.Module):
    r"""How much two predictions for the same voxels differ.

    With p and q the class probabilities of both views,

    .. math:: L = \mathrm{mean}\,[(p - q)(\log p - \log q)]

    over voxels and classes, which is KL(q‖p) + KL(p‖q) divided by the number of classes. Both
    views get gradient. Logarithms come from logits, so that saturated predictions stay finite,
    where the published implementation takes them of probabilities.

    Regions are Bernoulli variables, whose divergence is :math:`(p - q)(z_p - z_q)` with the
    logits z; the published implementation leaves out the term of :math:`1 - p`, which about
    halves it.

    Args:
        regions: Whether outputs are overlapping regions (sigmoid) or classes (softmax).
        temperature: Divides all logits; the authors use none.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, regions: bool = False, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.regions = regions
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compare two views, in float32 at least.

        Args:
            first: Logits (B, K, *S) of one view.
            second: Logits of the other.
            valid: Voxels that count (B, *S), bool; all without it.

        Returns:
            A scalar; 0 if no voxel counts.
        """
        first, second = (
            logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
            for logits in (first, second)
        )
        divergence = self._divergence(first, second)
        if valid is None:
            return divergence.mean()
        kept = divergence.where(valid[:, None], 0)
        return kept.sum() / (valid.sum() * kept.shape[1]).clamp_min(1)

    def _divergence(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.regions:
            log_p, log_q = first.log_softmax(1), second.log_softmax(1)
            return (log_p.exp() - log_q.exp()) * (log_p - log_q)
        return (first.sigmoid() - second.sigmoid()) * (first - second)


class RestorationLoss(nn.Module):
    r"""Mean squared error of each domain's images, summed over the domains in the batch.

    Restored images lie in [-1, 1]; so do their targets :math:`\mathrm{clip}(x / r, -1, 1)`. The
    range r is fixed: one taken from each patch would erase the style that is to be restored.

    Args:
        intensity_range: r, in units of the images; 3 suits z-scores.

    Raises:
        ValueError: If the range is not positive.
    """

    def __init__(self, intensity_range: float = 3.0) -> None:
        super().__init__()
        if not intensity_range > 0:
            raise ValueError(f"intensity_range must be positive, got {intensity_range}.")
        self.intensity_range = intensity_range

    def target(self, images: Tensor) -> Tensor:
        """Bring images to the range of restored ones."""
        return (images.float() / self.intensity_range).clamp(-1, 1)

    def per_image(self, restored: Tensor, images: Tensor) -> Tensor:
        """Compute the mean squared error of each image (B,)."""
        target = self.target(images)
        if restored.shape[2:] != images.shape[2:]:
            pool: Any = F.adaptive_avg_pool2d if images.ndim == 4 else F.adaptive_avg_pool3d
            target = pool(target, restored.shape[2:])
        return (restored.float() - target).square().flatten(1).mean(1)

    def forward(self, restored: Tensor, images: Tensor, domains: Tensor) -> Tensor:
        """Compute the loss in float32.

        Args:
            restored: Images (B, C, *R) in [-1, 1].
            images: What they should be (B, C, *S), in their own units; averaged if R is not S.
            domains: Domain of each image (B,).
        """
        return over_domains(self.per_image(restored, images), domains)


def over_domains(per_image: Tensor, domains: Tensor) -> Tensor:
    """Average figures (B,) over the images of each domain, then sum over domains."""
    peers = (domains[:, None] == domains).sum(1)
    return torch.sum(per_image / peers)
