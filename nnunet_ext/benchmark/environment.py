"""What a recorded measurement must name: date, hardware, versions."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("nnunet-ext", "nnunetv2", "torch", "dynamic-network-architectures"),
    *("batchgeneratorsv2", "numpy", "scipy"),
)


def processor() -> str:
    """Name the processor as well as the platform allows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores"


def circumstances() -> dict[str, Any]:
    """Collect date, hardware and versions of everything that matters for a measurement."""
    import torch

    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
