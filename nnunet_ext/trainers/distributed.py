"""What the ranks of a DDP training share; without DDP all of this does next to nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext._common.errors import UserError

PATIENCE = timedelta(days=30)
"""How long ranks wait for one that works alone."""


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def gather(value: Any) -> list[Any]:
    """Collect a picklable value from all ranks; a list of one without DDP."""
    if _is_alone():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Within it, the first rank works while the others wait, however long it takes.

    Raises:
        UserError: On the other ranks, if the first one has failed.
    """
    if _is_alone():
        yield
        return
    # nnU-Net's group gives up after minutes
    patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        if dist.get_rank() != 0:
            failure = [""]
            dist.broadcast_object_list(failure, src=0, group=patient)
            if failure[0]:
                raise UserError(f"The first process of this training failed: {failure[0]}")
            yield
            return
        failure = ["it was stopped"]
        try:
            yield
            failure = [""]
        except Exception as error:
            failure = [str(error) or repr(error)]
            raise
        finally:
            dist.broadcast_object_list(failure, src=0, group=patient)
    finally:
        dist.destroy_process_group(patient)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give all ranks the mean of their gradients, sent as one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    means = together.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def unwrap(module: nn.Module) -> nn.Module:
    """Take the DDP and torch.compile wrappers off a network."""
    if isinstance(module, DistributedDataParallel):
        module = module.module
    return module._orig_mod if isinstance(module, OptimizedModule) else module
