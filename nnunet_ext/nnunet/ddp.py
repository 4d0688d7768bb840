"""nnU-Net's wrapper of networks for several GPUs, with options that it has no way to ask for."""

from contextlib import AbstractContextManager
from functools import partial
from inspect import signature
from typing import Any

from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets_module
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext._common.attributes import replaced

_NEWER = "forward_sync_buffers"  # from torch 2.14 on
OWN_BUFFERS: dict[str, Any] = {
    _NEWER
    if _NEWER in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
"""Option of DistributedDataParallel: leave buffers alone when the network runs. They are equal on
all ranks, of which one that has no case to validate would keep the others waiting."""


def wrapping_with(**options: Any) -> AbstractContextManager[None]:
    """Have nnU-Net's trainers that are initialised within wrap their networks with these options.

    To exchange the wrapper afterwards would build two, each with buffers of the network's size.

    Args:
        options: Of DistributedDataParallel.
    """
    return replaced(nnunets_module, DDP=partial(DistributedDataParallel, **options))
