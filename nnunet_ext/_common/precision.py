"""Where mixed precision must not reach."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch mixed precision off within it.

    On Apple's devices nnU-Net does not use it, and some versions of PyTorch that nnU-Net supports
    refuse even to switch it off there.
    """
    if device.type == "mps":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
