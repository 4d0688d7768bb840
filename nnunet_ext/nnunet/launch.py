"""The main module of a process that runs a command of nnU-Net's, and of its spawned workers.

As ``__main__`` it runs the command in ``sys.argv[1:]``. Workers import it under the name
``__mp_main__``; then it only activates the discovery.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nnunet_ext._common.files import write_json
from nnunet_ext.nnunet import discovery
from nnunet_ext.nnunet.commands import PARENT, USAGE, nnunet_commands

POLL_SECONDS = 1.0
MIB = 2**20


def main() -> None:
    """Run the command; write what it has used also if it fails."""
    parent, target = os.environ.pop(PARENT, ""), os.environ.pop(USAGE, "")
    if parent and sys.platform != "win32":
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    del sys.argv[0]  # the command reads its name and its arguments as if it had been called
    try:
        nnunet_commands()[sys.argv[0]].load()()
    finally:
        if target:
            write_json(Path(target), usage())


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
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_mib": peak * unit / MIB, "memory_kind": "RAM"}


def _end_with(parent: int) -> None:
    # a training that nobody waits for any more would get in the way of the next one
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)


discovery.activate(force=True)
if __name__ == "__main__":
    main()
