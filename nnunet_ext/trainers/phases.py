"""Phases of a training: what it changes to on its way, and at which share of its epochs."""

from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import Optimizer

from nnunet_ext._common.errors import UserError

ROUNDING = 1e-9
"""0.29 of 100 epochs are 29, although the product is a little less."""


@dataclass(frozen=True)
class Phase:
    """What a training changes to after a share of its epochs, for all that follow.

    Before its first phase a training is as it always was. Those of recipes that are mixed run side
    by side.

    Attributes:
        name: Unique in a training; also stands in the log and in checkpoints.
        after: Share of all epochs that lie before it, 0 if it begins with the training; never if 1.
        fresh_schedule: The learning rate begins anew, and falls until the next such phase.
        fresh_optimizer: What the optimiser has accumulated, such as momentum, is forgotten.
        outdates_best: A checkpoint from before it cannot be the best one any more.
    """

    name: str
    after: float
    fresh_schedule: bool = False
    fresh_optimizer: bool = False
    outdates_best: bool = False

    def first_epoch(self, num_epochs: int) -> int:
        """The epoch in which it begins in a training of so many."""
        return int(self.after * num_epochs + ROUNDING)


class PhasedPolyLR(PolyLRScheduler):
    """nnU-Net's schedule over a ``span`` of epochs: its first one, and the one behind its last."""

    def __init__(self, optimizer: Optimizer, initial_lr: float, num_epochs: int) -> None:
        self.span = (0, num_epochs)
        super().__init__(optimizer, initial_lr, num_epochs)

    def step(self, current_step: int | None = None) -> None:
        """Set the rates of an epoch; without one, as torch calls it once, those of the first."""
        first, end = self.span
        self.max_steps = end - first
        super().step(0 if current_step is None else current_step - first)


class PhasedTrainer(nnUNetTrainer):
    """Runs through the phases that a recipe declares, and never goes back in them.

    Checkpoints hold when each phase began. A training that is continued with another number of
    epochs stays in the phases that it has reached; those to come begin at their share of the new
    number, or at once if that has passed.
    """

    phases_begun: dict[str, int]
    """Phase -> epoch in which it began."""
    _best_ema: float | None
    _averages_anew = False  # whether this epoch's Dice is the first of a new moving average

    def phases(self) -> list[Phase]:
        """Declare phases, in their order; a recipe adds its own to those of ``super()``."""
        return []

    def on_phase_begin(self, phase: Phase) -> None:
        """Do what a phase is for; called before its first epoch, not when it is continued."""

    def start_of(self, name: str) -> int:
        """The epoch in which a phase has begun or, as things stand, will begin."""
        (phase,) = (phase for phase in self.phases() if phase.name == name)
        return self.phases_begun.get(name, phase.first_epoch(self.num_epochs))

    def reached(self, name: str) -> bool:
        """Whether the training has come to this phase."""
        return self.current_epoch >= self.start_of(name)

    def on_train_start(self) -> None:
        """Refuse to end before a phase has begun; tell if there is nothing before one.

        Raises:
            UserError: If no epoch is left for a phase.
        """
        starts = {phase: phase.first_epoch(self.num_epochs) for phase in self.phases()}
        for phase, start in starts.items():
            unmet = phase.name not in self.phases_begun and start < self.num_epochs
            if unmet and self.current_epoch >= self.num_epochs:
                raise UserError(
                    f"{self.current_epoch} epochs are trained already, so num_epochs "
                    f'{self.num_epochs} leaves none for the phase "{phase.name}", which has not '
                    f"begun. Set num_epochs to more than {self.current_epoch}."
                )
        super().on_train_start()
        for phase, start in starts.items():
            if start == 0 < phase.after:
                self.print_to_log_file(
                    f'WARNING: the phase "{phase.name}" begins at once, because {self.num_epochs} '
                    "epochs are too few for what should come before it. Set num_epochs higher."
                )

    def on_train_epoch_start(self) -> None:
        """Change to the phases whose epoch has come."""
        for phase in self.phases():
            if phase.name not in self.phases_begun and self.reached(phase.name):
                self._begin(phase)
        if isinstance(self.lr_scheduler, PhasedPolyLR):
            self.lr_scheduler.span = self._span_of_schedule()
        super().on_train_epoch_start()

    def _begin(self, phase: Phase) -> None:
        self.phases_begun[phase.name] = self.current_epoch
        if phase.fresh_optimizer:
            self.optimizer.state.clear()
        if phase.outdates_best:
            self._best_ema = None
            self._averages_anew = True
        self.on_phase_begin(phase)
        if self._do_i_compile():
            # torch 2.2, at least, does not notice changed attributes of compiled networks
            torch._dynamo.reset()
        self.print_to_log_file(f'The phase "{phase.name}" begins.')

    def _span_of_schedule(self) -> tuple[int, int]:
        starts = [self.start_of(phase.name) for phase in self.phases() if phase.fresh_schedule]
        past = [start for start in starts if start <= self.current_epoch]
        to_come = [start for start in starts if start > self.current_epoch]
        return max(past, default=0), min(to_come, default=self.num_epochs)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Let the moving average of the Dice begin anew where the best checkpoint does."""
        super().on_validation_epoch_end(val_outputs)
        if self._averages_anew:
            # an average over both phases would favour the first epochs of the new one
            latest = float(self.logger.get_value("mean_fg_dice", step=-1))
            self.logger.get_value("ema_fg_dice", step=None)[-1] = latest
            self._averages_anew = False

    def phases_at(self, epoch: int, num_epochs: int) -> dict[str, int]:
        """When phases began in a training of ``num_epochs`` that has done ``epoch`` of them.

        For checkpoints that do not tell: those of stock nnU-Net and of our first edition.
        """
        begun = {phase.name: phase.first_epoch(num_epochs) for phase in self.phases()}
        return {name: start for name, start in begun.items() if start < epoch}
