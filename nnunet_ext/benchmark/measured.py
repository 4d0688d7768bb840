"""The main module of a process that a benchmark starts: an nnU-Net command and what it used.

Called as ``python -m nnunet_ext.benchmark.measured USAGE.json nnUNetv2_train ...``. Spawned
workers import it as ``__mp_main__``; like :mod:`nnunet_ext.cli.launch` it then only activates
the discovery.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nnunet_ext._common.files import write_json
from nnunet_ext.cli import launch

POLL_SECONDS = 1.0
MIB = 2**20


def usage() -> dict[str, Any]:
    """Peak memory of this process: what PyTorch reserved on the GPU, else the resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return {
            "peak_memory_mib": torch.cuda.max_memory_reserved() / MIB,
            "memory_kind": "GPU",
            "gpu": torch.cuda.get_device_name(),
        }
    if sys.platform == "win32":  # has no such figure in the standard library
        return {}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_memory_mib": peak * (1 if sys.platform == "darwin" else 1024) / MIB,
        "memory_kind": "RAM",
    }


def _end_with_parent(parent: int) -> None:
    # a training that nobody waits for any more would get in the way of the next one
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Run the command; write the usage also if it fails."""
    target = Path(sys.argv.pop(1))
    if sys.platform != "win32":
        parent = os.getppid()
        threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    try:
        launch.run_command()
    finally:
        write_json(target, usage())


if __name__ == "__main__":
    main()
