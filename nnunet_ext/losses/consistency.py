"""Consistency between two views of one image, as a symmetric Kullback-Leibler divergence.

Paper: Zhou, Qi, Shi, ECCV 2022, arXiv 2208.03901 (RAM-DSIR), whose body was not available to us;
the reduction follows the authors' published implementation.
"""

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

    Regions are Bernoulli variables, for which the complete divergence is
    :math:`(p - q)(z_p - z_q)` with the logits z; the published implementation leaves out the
    term of :math:`1 - p`, which about halves it (``complete=False``).

    Args:
        regions: Whether outputs are overlapping regions (sigmoid) or classes (softmax).
        complete: For regions, whether both outcomes count.
        temperature: Divides all logits; the authors use none.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(
        self, regions: bool = False, complete: bool = True, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.regions = regions
        self.complete = complete
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
        difference = first.sigmoid() - second.sigmoid()
        if self.complete:
            return difference * (first - second)
        return difference * (F.logsigmoid(first) - F.logsigmoid(second))
