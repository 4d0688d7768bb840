"""Outputs of the papers' own implementations, where this machine has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "fixtures"


def reference(name: str) -> dict[str, np.ndarray]:
    """Arrays of one reference run; skips the test where the folder is missing."""
    file = FOLDER / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"reference outputs are not on this machine: {file.name}")
    with np.load(file) as arrays:
        return dict(arrays)


def load_in_order(network: nn.Module, arrays: dict[str, np.ndarray], prefix: str) -> None:
    """Load a reference's weights below ``prefix``; its names differ from ours, its order does not.

    A perceptron's come last there. Running statistics, which no reference here uses, are left out.
    """
    weights = [
        torch.as_tensor(value)
        for key, value in arrays.items()
        if key.startswith(prefix) and "running" not in key
    ]
    ours = sorted(network.state_dict(), key=lambda key: "perceptron" in key)
    network.load_state_dict(dict(zip(ours, weights, strict=True)))
