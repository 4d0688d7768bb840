"""What nnU-Net's commands see; ``doctor`` passes this file's text to a fresh ``python -c``.

Not imported from the package, because whether the package can be imported is in question.
Takes the names of trainers and planners as two JSON lists and prints one JSON object.
"""

import contextlib
import json
import multiprocessing
import os
import site
import sys
from typing import Any

USER_FOLDERS = "nnUNet_extTrainer"


def probe(trainers: list[str], planners: list[str]) -> dict[str, Any]:
    """Collect what a command of nnU-Net would find in this interpreter."""
    facts: dict[str, Any] = {
        "start_method": multiprocessing.get_start_method(),
        "site_folders": _site_folders(),
        "start_up_files": _start_up_files(),
        "package": None,
        "active": False,
        "status": "",
        "classes": {},
        "devices": _devices(),
    }
    try:
        from nnunet_ext import __file__ as package_file
        from nnunet_ext.nnunet import discovery
    except Exception as error:
        facts["status"] = f"{type(error).__name__}: {error}"
        return facts
    facts["package"] = os.path.dirname(os.path.abspath(package_file))
    facts["active"], facts["status"] = discovery.is_active(), discovery.status()
    if facts["active"]:  # without us, nnU-Net would scan its whole tree for each name in vain
        facts["classes"] = {name: _look_up(_find_trainer, name) for name in trainers}
        facts["classes"] |= {name: _look_up(_find_planner, name) for name in planners}
        facts["status"] = discovery.status()
    return facts


def _site_folders() -> list[str]:
    folders = list(getattr(site, "getsitepackages", list)())
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return folders


def _start_up_files() -> list[str]:
    ending = "start" if sys.version_info >= (3, 15) else "pth"
    files = [os.path.join(folder, f"nnunet_ext.{ending}") for folder in _site_folders()]
    return [file for file in files if os.path.isfile(file)]


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken torch fails in many ways; all of them are the finding
        return {"error": f"{type(error).__name__}: {error}"}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB" for gpu in gpus],
        "mps": torch.backends.mps.is_available(),
    }


def _look_up(find: Any, name: str) -> dict[str, str]:
    try:
        cls = find(name)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if cls is None:
        return {"error": "not found"}
    # nnU-Net forgets the modules of a user's folder again, so there may be no file to name
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return {"module": cls.__module__, "file": file or f"a folder of {USER_FOLDERS}"}


def _find_trainer(name: str) -> Any:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


def _find_planner(name: str) -> Any:
    import nnunetv2
    from nnunetv2.utilities import find_class_by_name

    return find_class_by_name.recursive_find_python_class(
        os.path.join(nnunetv2.__path__[0], "experiment_planning"),
        name,
        "nnunetv2.experiment_planning",
    )


if __name__ == "__main__":
    # the commands, being scripts, do not have the working directory on their path
    if sys.path and sys.path[0] == "":
        del sys.path[0]
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net talks while it searches
        collected = probe(*map(json.loads, sys.argv[1:3]))
    print(json.dumps(collected))
