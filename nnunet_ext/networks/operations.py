"""Operations that the networks of several methods share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Call a function of tensors without random numbers, whose inputs alone are kept.

    What is cheap to compute is computed again for gradients. The function must not update
    statistics: they would be updated twice. Modules that call this have an attribute ``recompute``
    that is true, which the trainers look for.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, C, *S) linearly, with aligned corners, to this spatial size.

    By size and not by factor, because nnU-Net plans strides such as (1, 2, 2).
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, tuple(size), mode=mode, align_corners=True)
