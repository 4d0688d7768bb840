"""Self-training for Mind the Gap: an average of the network labels what it is sure of."""

from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nnunet_ext.losses.mind_the_gap import confident_classes, confident_regions
from nnunet_ext.trainers.distributed import unwrap

DECAY = 0.99
"""Of the average, in each step."""
SMOOTH = 1e-5
"""Of nnU-Net's Dice loss."""


class Teacher(AveragedModel):
    """The exponential moving average of a segmentation network's weights, and what it teaches.

    Averages as teachers are from Tarvainen and Valpola, NeurIPS 2017 (arXiv 1703.01780).

    Args:
        network: The student, whose weights it takes when it first is told to :meth:`follow`.
        num_classes: Channels K of the network's answers.
        regions: Whether these are regions, which may overlap, rather than classes.
        batch_dice: Whether Dice is computed over the batch, as the plans say.
        ddp: Whether it is computed over all ranks, then.
    """

    def __init__(
        self, network: nn.Module, num_classes: int, *, regions: bool, batch_dice: bool, ddp: bool
    ) -> None:
        super().__init__(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.requires_grad_(False)
        average: Any = self.module
        average.decoder.deep_supervision = False
        self.regions = regions
        dice = {"batch_dice": batch_dice, "smooth": SMOOTH, "do_bg": regions, "ddp": ddp}
        self.loss: Any = (
            DC_and_BCE_loss({}, dice, use_ignore_label=True, dice_class=MemoryEfficientSoftDiceLoss)
            if regions
            else DC_and_CE_loss(
                dice, {}, ignore_label=num_classes, dice_class=MemoryEfficientSoftDiceLoss
            )
        )
        self.num_classes = num_classes

    def follow(self, network: nn.Module) -> None:
        """Move the average towards the student."""
        self.update_parameters(unwrap(network))

    def teach(self, images: Tensor, answer: Tensor) -> Tensor:
        """Loss of the student's logits (B, K, *S) against what the teacher is sure of.

        Args:
            images: (B, C, *S), as the teacher is to see them.
            answer: Of the student, which may have seen them changed.
        """
        self.eval()
        with torch.no_grad():
            logits = self(images).float()
            if self.regions:
                labels, kept = confident_regions(logits.sigmoid())
                target = torch.cat([labels, ~kept], 1).to(answer)
            else:
                labels, kept = confident_classes(logits.softmax(1))
                target = labels.masked_fill(~kept, self.num_classes)
        loss: Tensor = self.loss(answer, target)
        return loss
