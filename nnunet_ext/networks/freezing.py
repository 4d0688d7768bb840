"""Networks that others learn through, but that do not learn themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Keep the parameters of networks out of every graph that is built inside the block.

    Gradients pass through the networks to their input. The block need only span the forward
    pass: what a graph leaves out, a later backward pass cannot reach.
    """
    learning = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
