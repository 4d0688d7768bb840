"""Writes a measurement together with what it must name: hardware, versions, date."""

import json
from pathlib import Path
from typing import Any

from nnunet_ext.benchmark.environment import circumstances


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a result together with its circumstances."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**circumstances(), **result}, indent=2) + "\n")
