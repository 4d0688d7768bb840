"""Other priors than a network's own, which tell what its second pass makes of it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

UNIFORM, FOREIGN, TRUE = "uniform", "foreign", "true"


def other_priors(
    prior: Tensor, target: Any, labels: "LabelManager", as_predicted: bool
) -> dict[str, Tensor]:
    """Make priors that know nothing, another image, or the labels.

    Args:
        prior: The network's own (B, K, *S).
        target: As nnU-Net's loader gives it, a list over scales with deep supervision.
        labels: Of the data set.
        as_predicted: Whether channels are the network's outputs; otherwise they are labels.

    Returns:
        Kind -> prior like the own one: all channels alike; that of the batch's next image, if there
        is one; the true labels, where voxels to be ignored keep the own prior. Those are left out
        if outputs are regions, and channels of the prior are not.
    """
    finest = (target[0] if isinstance(target, list) else target).to(prior.device)
    alternatives = 2 if labels.has_regions and as_predicted else prior.shape[1]
    others = {UNIFORM: torch.full_like(prior, 1 / alternatives)}
    if len(prior) > 1:
        others[FOREIGN] = prior.roll(1, 0)
    if as_predicted or not labels.has_regions:
        others[TRUE] = _true(prior, finest, labels)
    return others


def _true(prior: Tensor, target: Tensor, labels: "LabelManager") -> Tensor:
    if labels.has_regions:
        true, ignored = target[:, : prior.shape[1]].to(prior.dtype), target[:, -1:].bool()
    else:
        ignored = target == (labels.ignore_label if labels.has_ignore_label else -1)
        true = torch.zeros_like(prior).scatter_(1, target.long().masked_fill(ignored, 0), 1)
    return torch.where(ignored, prior, true) if labels.has_ignore_label else true
