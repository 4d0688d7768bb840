"""How well images were restored from what a network saw of them in another style.

Paper: Zhou, Qi, Shi, ECCV 2022, arXiv 2208.03901 (RAM-DSIR), whose body was not available to us;
the reduction follows the authors' published implementation.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


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
