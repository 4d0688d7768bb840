"""What the ranks of a DDP training share; without DDP all of this does next to nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

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
    """Within it, the first rank works while the others wait, however long it takes."""
    if _is_alone():
        yield
        return
    # nnU-Net's group gives up after minutes
    patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    is_first = dist.get_rank() == 0
    if not is_first:
        dist.barrier(patient)
    yield
    if is_first:
        dist.barrier(patient)
    dist.destroy_process_group(patient)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give all ranks the mean of their gradients."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def unwrap(module: nn.Module, *, keep_compiled: bool = False) -> nn.Module:
    """Take the DDP and torch.compile wrappers off a network."""
    if isinstance(module, DistributedDataParallel):
        module = module.module
    if isinstance(module, OptimizedModule) and not keep_compiled:
        module = module._orig_mod
    return module
