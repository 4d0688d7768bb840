"""Running statistics of batch normalisation, which are to be those of what is predicted."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_ext._common.attributes import replaced


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let training batches pass through a network without a trace in its running statistics.

    They are still normalised by their own. A mixture of two kinds of images would fit neither.
    """
    with ExitStack() as stack:
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                stack.enter_context(replaced(layer, momentum=0.0))
        yield
