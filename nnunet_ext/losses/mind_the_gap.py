"""The losses of Mind the Gap: what its translator, critics and segmenter learn from.

Paper: arXiv 2205.11888; values after the authors' published code, those of the translator after
the AD-GAN implementation that the authors name.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

LOW, HIGH = 0.0, 1.0
"""What critics answer: 0 is translated (Step A) or source (Step B), 1 is real or target."""


def least_squares(scores: Tensor, wanted: float) -> Tensor:
    """Mean squared distance of scores, of any shape, from the one wanted."""
    return (scores - wanted).square().mean()


def critic_loss(low: Tensor, high: Tensor) -> Tensor:
    """What a critic learns from, given its scores of what it should call 0 and of what 1."""
    return least_squares(low, LOW) + least_squares(high, HIGH)


def alignment_losses(feature_scores: Tensor, output_scores: Tensor) -> dict[str, Tensor]:
    """What the segmenter learns from, besides labels: that target looks like source to critics.

    Args:
        feature_scores: Of target features, by location (B, 1, *S').
        output_scores: Of target class probabilities (B, 1, *S'').

    Returns:
        ``local`` (features) and ``global`` (outputs), not weighted; the authors weight both by
        0.01 beside a mean of cross-entropy and Dice loss.
    """
    return {
        "local": least_squares(feature_scores, LOW),
        "global": least_squares(output_scores, LOW),
    }


SURE = 0.9
"""Probability from which a teacher's word always counts."""


def confident_regions(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Regions (B, K, *S), booleans, and where (B, 1, *S) the teacher is sure of all of them.

    Args:
        probabilities: Of regions (B, K, *S).
    """
    inside = probabilities > 0.5
    kept = probabilities.where(inside, 1 - probabilities) >= SURE
    return inside, kept.all(1, keepdim=True)


def confident_classes(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """What a teacher says of images, and where it is sure enough to be believed.

    Kept are voxels of a class that are as sure as :data:`SURE`, or surer than the median of those
    that are given to this class, so that none is left out because the teacher doubts it everywhere.
    Class-balanced pseudo-labels are from Zou et al., ECCV 2018 (arXiv 1810.07911).

    Args:
        probabilities: Of classes (B, K, *S), summing to 1.

    Returns:
        Classes (B, 1, *S), and booleans of the same shape.
    """
    highest, labels = probabilities.max(1, keepdim=True)
    kept = highest >= SURE
    for label in labels.unique().tolist():
        ours = labels == label
        kept |= ours & (highest >= highest[ours].median())
    return labels, kept


RECONSTRUCTION = CYCLE = 20.0
CONTENT = 1.0
"""Weights of the translator's losses beside the adversarial one."""


def translation_losses(
    images: Tensor,
    reconstruction: Tensor,
    cycled: Tensor,
    content: Tensor,
    translated_content: Tensor,
    translation_scores: Tensor,
) -> dict[str, Tensor]:
    """What the translator learns from a batch, as many images of the one domain as of the other.

    Args:
        images: (B, C, *S).
        reconstruction: Images decoded in their own domain, of the same shape.
        cycled: Images after the way there and back, of the same shape.
        content: Of the images, any shape.
        translated_content: Of their translations, the same shape.
        translation_scores: The discriminator's, of translations in the domain they imitate.

    Returns:
        Weighted parts to be summed: ``reconstruction``, ``cycle``, ``content``, ``adversarial``.
    """
    # the authors add the means of the two domains, where a mean over both gives half
    return {
        "reconstruction": 2 * RECONSTRUCTION * F.l1_loss(reconstruction, images),
        "cycle": 2 * CYCLE * F.l1_loss(cycled, images),
        "content": 2 * CONTENT * F.l1_loss(translated_content, content),
        "adversarial": least_squares(translation_scores, HIGH),
    }
