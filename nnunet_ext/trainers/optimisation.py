"""Steps of optimisation: what a recipe asks for, and how parameters take it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ext.trainers.distributed import average_gradients

Losses: TypeAlias = dict[str, Tensor]
"""Named scalar parts of a loss; their sum is optimised."""

GRADIENT_NORM = 12
"""nnU-Net clips gradients to this norm."""
LR_FACTOR = "lr_factor"
"""Key of a parameter group: its share of the learning rate that the schedule gives to all."""


@dataclass
class Update:
    """One optimisation step out of possibly several per batch.

    Attributes:
        losses: Named scalar parts, already weighted.
        optimizer: Who steps; None is the trainer's own, over network and auxiliary networks.
            Other optimisers work without the gradient scaler of mixed precision, so their
            losses must be computed in float32.
    """

    losses: Losses
    optimizer: Optimizer | None = None

    def total(self) -> Tensor:
        """Add up the parts."""
        return torch.stack([part.float() for part in self.losses.values()]).sum()


def step_scaled(loss: Tensor, optimizer: Optimizer, scaler: Any) -> None:
    """Take a step as nnU-Net in mixed precision, which leaves out those that are not finite."""
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters_of(optimizer), GRADIENT_NORM)
    scaler.step(optimizer)
    scaler.update()


def step(loss: Tensor, optimizer: Optimizer, *, averaged: bool, only_finite: bool) -> None:
    """Take a step.

    Args:
        loss: What to descend.
        optimizer: Of the parameters that learn.
        averaged: Average gradients over ranks, for networks that are not wrapped for it.
        only_finite: Leave the step out if gradients are not finite.
    """
    loss.backward()
    if averaged:
        average_gradients(parameters_of(optimizer))
    norm = nn.utils.clip_grad_norm_(parameters_of(optimizer), GRADIENT_NORM)
    if not only_finite or norm.isfinite():
        optimizer.step()


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters that an optimiser changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def give_own_rate(optimizer: Optimizer, parameters: Iterable[Tensor], factor: float) -> None:
    """Move parameters of the first group to one that learns at another rate from then on."""
    moved = {id(parameter) for parameter in parameters}
    first = optimizer.param_groups[0]
    own = {**first, "params": [p for p in first["params"] if id(p) in moved]}
    first["params"] = [p for p in first["params"] if id(p) not in moved]
    optimizer.add_param_group({**own, LR_FACTOR: factor})
