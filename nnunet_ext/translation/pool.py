"""Translations of the past, so that the discriminator does not forget what it has seen through."""

import torch
from torch import Tensor


class HistoryPool:
    """Keeps translations, and half of the time answers with one of them.

    Args:
        size: Number of images kept, at least one.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many images (B, C, *S), each new or, once the pool is full, perhaps an old one.

        Args:
            images: New translations, without gradient.
            generator: On the CPU.
        """
        answers = []
        for image in images:
            answer = image
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif torch.rand((), generator=generator) < 0.5:
                place = int(torch.randint(self.size, (), generator=generator))
                answer, self.images[place] = self.images[place], image.clone()
            answers.append(answer)
        return torch.stack(answers)
