"""Takes the time of work on any device."""

import time
from collections.abc import Callable
from typing import Any


def timed(device: Any, work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes, waiting for the GPU to finish."""
    import torch

    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begin
