"""The losses of Mind the Gap: what its translator, critics and segmenter learn from.

Paper: arXiv 2205.11888; values after the authors' published code, those of the translator after
the AD-GAN implementation that the authors name.
"""

from typing import Literal, TypeAlias

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

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


Variant: TypeAlias = Literal["v1", "v2"]


class TranslationLoss(nn.Module):
    """Reconstruction, cycle, content and adversarial loss of a batch of both domains.

    In variant ``"v1"`` real images are the discriminator's examples of what is real. In ``"v2"``
    reconstructions are, and the translator must also make them look translated; its decoder must
    then learn from the reconstruction loss alone. Which of the two produced the paper's figures is
    not known.

    Args:
        reconstruction: Weight of images decoded in their own domain.
        cycle: Weight of images translated and translated back.
        content: Weight of the content of translations.
        variant: See above.
    """

    def __init__(
        self,
        reconstruction: float = 20,
        cycle: float = 20,
        content: float = 1,
        variant: Variant = "v1",
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.cycle = cycle
        self.content = content
        self.variant = variant

    def forward(
        self,
        images: Tensor,
        reconstruction: Tensor,
        cycled: Tensor,
        content: Tensor,
        translated_content: Tensor,
        translation_scores: Tensor,
        reconstruction_scores: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compare a batch, as many images of the one domain as of the other.

        Args:
            images: (B, C, *S).
            reconstruction: Of the same shape, as is ``cycled``.
            cycled: Images after the way there and back.
            content: Of the images, any shape.
            translated_content: Of their translations, the same shape.
            translation_scores: The discriminator's, of translations in the domain they imitate.
            reconstruction_scores: The discriminator's, of reconstructions; ``"v2"`` needs them.

        Returns:
            Weighted parts to be summed: ``reconstruction``, ``cycle``, ``content``,
            ``adversarial``.
        """
        adversarial = least_squares(translation_scores, HIGH)
        if self.variant == "v2":
            assert reconstruction_scores is not None
            adversarial = adversarial + least_squares(reconstruction_scores, LOW)
        # the authors add the means of the two domains, where a mean over both gives half
        return {
            "reconstruction": 2 * self.reconstruction * F.l1_loss(reconstruction, images),
            "cycle": 2 * self.cycle * F.l1_loss(cycled, images),
            "content": 2 * self.content * F.l1_loss(translated_content, content),
            "adversarial": adversarial,
        }
