"""Blocks whose inputs are made again for gradients instead of being kept for them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.networks.operations import recomputed, resize


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
