"""Least-squares games between networks and their critics, as Mind the Gap plays them.

Paper: arXiv 2205.11888; values after the authors' published code.
"""

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
