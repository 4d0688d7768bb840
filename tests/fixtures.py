"""Outputs of the papers' own implementations, where this machine has them."""

from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "fixtures"


def reference(name: str) -> dict[str, np.ndarray]:
    """Arrays of one reference run; skips the test where the folder is missing."""
    file = FOLDER / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"reference outputs are not on this machine: {file.name}")
    with np.load(file) as arrays:
        return dict(arrays)
