"""What the translator of Mind the Gap learns from.

Paper: arXiv 2205.11888; form and weights after the AD-GAN implementation that the authors name.
"""

from typing import Literal, TypeAlias

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunet_ext.losses.adversarial import HIGH, LOW, least_squares

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
