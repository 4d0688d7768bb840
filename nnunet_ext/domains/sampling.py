"""Drawing training cases so that every domain is seen equally often."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets_module
from numpy.typing import NDArray


def even_probabilities(
    identifiers: Sequence[str], domains: Mapping[str, str]
) -> NDArray[np.float64]:
    """Probability of each case where first a domain is drawn and then one of its cases.

    Args:
        identifiers: Cases to draw from.
        domains: Case -> domain, at least for these.

    Returns:
        (N,), in the order of the identifiers; sums to 1.
    """
    sizes = Counter(domains[case] for case in identifiers)
    return np.array([1 / (len(sizes) * sizes[domains[case]]) for case in identifiers])


class ProbabilityLoader(nnUNetDataLoader):
    """nnU-Net's loader, which draws with the ``sampling_probabilities`` that its data set has."""

    def __init__(self, data: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(data, *args, **kwargs)
        self.sampling_probabilities = getattr(data, "sampling_probabilities", None)


@contextmanager
def probabilities_respected() -> Iterator[None]:
    """Have nnU-Net build loaders that respect the probabilities of their data set.

    nnU-Net starts its workers where it builds the loader, which it gives no probabilities, so
    afterwards is too late. The class is of this module, so that it pickles by reference.
    """
    with patch.object(nnunets_module, nnUNetDataLoader.__name__, ProbabilityLoader):
        yield
