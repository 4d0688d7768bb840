"""What is cheap to compute is computed again for gradients instead of being kept for them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Call a function of tensors without random numbers, whose inputs alone are kept.

    Neither must it update statistics: they would be updated twice.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def on_prepared(block: nn.Module, prepare: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run a block on what is made of ``inputs``, which is made again instead of being kept.

    The block is a sequence. Its first layer, a convolution, does not run again: its input is all
    that is missing. ``torch.compile`` decides itself what to compute again, and would let the
    convolution run.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        prepared: Tensor = block(prepare(*inputs))
        return prepared
    conv, *others = block.children()
    x = recomputed(lambda *given: conv(prepare(*given)), *inputs)
    for layer in others:
        x = layer(x)
    return x


def on_joined(block: nn.Module, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Run a block on features of several levels (B, C_i, *S_i), brought to one spatial size."""

    def join(*levels: Tensor) -> Tensor:
        first, *others = (resize(x, size) for x in levels)
        return torch.cat([first, *others], dim=1) if others else first

    return on_prepared(block, join, *features)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, C, *S) linearly, with aligned corners, to this spatial size.

    By size and not by factor, because nnU-Net plans strides such as (1, 2, 2).
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, tuple(size), mode=mode, align_corners=True)
