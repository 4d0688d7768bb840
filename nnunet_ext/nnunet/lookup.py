"""What nnU-Net's class look-up answers once :mod:`nnunet_ext.nnunet.discovery` has wrapped it.

Names of ours are answered without nnU-Net's own search, which imports its whole tree (only
twins of its trainers need that); a user's trainer of the same name in ``nnUNet_extTrainer``
comes first. Everything else goes to nnU-Net, and a name that nobody knows gets the near matches.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import Any

from nnunet_ext._common.errors import UnknownNameError
from nnunet_ext._common.near import did_you_mean

USER_FOLDERS = "nnUNet_extTrainer"
"""nnU-Net's own environment variable: folders in which users keep their trainers."""

TRAINERS = "nnunetv2.training.nnUNetTrainer"
"""Where nnU-Net keeps its trainers."""

PACKAGES = {
    TRAINERS: "nnunet_ext.trainers",
    "nnunetv2.experiment_planning": "nnunet_ext.planners",
}
"""Where nnU-Net looks -> the package of ours whose classes it finds there as well."""

Find = Callable[..., Any]


def with_our_names(nnunets: Find) -> Find:
    """Wrap ``recursive_find_python_class`` of nnU-Net, so that it finds our classes as well."""

    @wraps(nnunets)
    def find(
        folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        package = PACKAGES.get(current_module or "")
        if package is not None and _is_ours(package, class_name):
            users = current_module == TRAINERS and _find_users_trainer(nnunets, class_name)
            return users or getattr(import_module(package), class_name)
        found = nnunets(folder, class_name, current_module, *args, **kwargs)
        # Others call this function too (TotalSegmentator does) and may go on without a result.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if found is None and caller.startswith("nnunetv2."):
            _refuse_if_last(nnunets, folder, class_name, current_module)
        return found

    return find


def _is_ours(package: str, name: str) -> bool:
    try:
        return _without_length(package, name) in _names(package) or _is_twin(package, name)
    except Exception:  # a broken package of ours must not stop nnU-Net from finding its classes
        return False


def _is_twin(package: str, name: str) -> bool:
    module = import_module(package)
    pattern = getattr(module, "TWIN", None)
    return pattern is not None and bool(pattern.fullmatch(name)) and hasattr(module, name)


def find_trainer_of_nnunet(name: str) -> Any:
    """Find a trainer in nnU-Net's own tree, whether discovery is active or not; None without."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(nnunetv2.__path__[0], *TRAINERS.split(".")[1:])
    return recursive_find_python_class(folder, name, TRAINERS)


def _names(package: str) -> list[str]:
    return list(import_module(package).MODULES)


def _without_length(package: str, name: str) -> str:
    """Take a suffix like ``_250epochs`` off the name of a trainer."""
    suffix = getattr(import_module(package), "LENGTH_SUFFIX", None)
    match = suffix.fullmatch(name) if suffix else None
    return match["base"] if match else name


def _user_folders(nnunets: Find) -> list[str]:
    if "base_folder" not in signature(nnunets).parameters:
        return []  # nnU-Net before 2.8 does not know these folders
    folders = os.environ.get(USER_FOLDERS, "").split(os.pathsep)
    return [folder for folder in folders if folder.strip() and os.path.exists(folder)]


def _find_users_trainer(nnunets: Find, name: str) -> type | None:
    """Find a user's trainer the way nnU-Net does."""
    cleanup = "cleanup_imports_from_base_folder"
    options = {cleanup: True} if cleanup in signature(nnunets).parameters else {}
    for folder in _user_folders(nnunets):
        trainer: type | None = nnunets(folder, name, None, base_folder=folder, **options)
        if trainer is not None:
            print(f"Using trainer '{name}' from: {folder}")
            return trainer
    return None


def _refuse_if_last(nnunets: Find, folder: str, name: str, current_module: str | None) -> None:
    """Raise an error that helps, if nnU-Net has nowhere else to look for this name."""
    folders = _user_folders(nnunets)
    if current_module is None and folder in folders[-1:]:
        raise _unknown(name, TRAINERS, also_in=folders)
    if current_module == TRAINERS and folders:
        return  # nnU-Net goes on to search these
    if current_module in PACKAGES:
        raise _unknown(name, current_module)


def _unknown(name: str, root: str, also_in: list[str] | None = None) -> UnknownNameError:
    package = PACKAGES[root]
    kind = "trainer" if root == TRAINERS else "experiment planner or fingerprint extractor"
    places = f", nor in {USER_FOLDERS} ({os.pathsep.join(also_in)})" if also_in else ""
    ours, nnunets = _names(package), list(_nnunets_names(root))
    variants = [each for each in nnunets if each.startswith("nnUNetTrainer")]
    twins = [each.replace("nnUNet", "Extension", 1) for each in variants]
    length = name[len(_without_length(package, name)) :]
    known = dict.fromkeys([*(each + length for each in [*ours, *twins]), *nnunets])
    return UnknownNameError(
        f"There is no {kind} called {name} in nnU-Net or nnunet_ext{places}."
        f"{did_you_mean(name, known)}"
        f" nnunet_ext has: {', '.join(ours)}."
    )


def _nnunets_names(root: str) -> Iterator[str]:
    """Names of the classes under ``root``; looking for one in vain has imported them all."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(root):
            for name, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__.startswith(root):
                    yield name
