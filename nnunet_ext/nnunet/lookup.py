"""What nnU-Net's class look-up answers once :mod:`nnunet_ext.nnunet.discovery` has wrapped it.

Names of ours, and after them those of other packages, are answered without nnU-Net's own search,
which imports its whole tree (only twins of its trainers need that); a user's trainer of the same
name in ``nnUNet_extTrainer`` comes first. Everything else goes to nnU-Net, and a name that nobody
knows gets the near matches.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from nnunet_ext import registry
from nnunet_ext._common.errors import UnknownNameError, UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.registry import OURS, TWIN, Kind, without_length

USER_FOLDERS = "nnUNet_extTrainer"
"""nnU-Net's own environment variable: folders in which users keep their trainers."""

TRAINERS = "nnunetv2.training.nnUNetTrainer"
"""Where nnU-Net keeps its trainers."""

KINDS: dict[str, Kind] = {TRAINERS: "trainers", "nnunetv2.experiment_planning": "planners"}
"""Where nnU-Net looks -> what it finds there of ours and others'."""

Find = Callable[..., Any]


def with_our_names(nnunets: Find) -> Find:
    """Wrap ``recursive_find_python_class`` of nnU-Net, so that it finds our classes as well."""

    @wraps(nnunets)
    def find(
        folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Find ours and others' where nnU-Net has none of its own of this name."""
        kind = KINDS.get(current_module or "")
        owner = _owner(kind, class_name) if kind else None
        found = None
        if owner is None or (owner == "others" and occurs_in_nnunet(class_name)):
            found = nnunets(folder, class_name, current_module, *args, **kwargs)
        if kind and owner and found is None:
            if kind == "trainers":
                found, of_user = _find_users_trainer(nnunets, class_name)
                if found:
                    print(f"Using trainer '{class_name}' from: {of_user}")
            return found or load(kind, class_name)
        # Others call this function too (TotalSegmentator does) and may go on without a result.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if found is None and caller.startswith("nnunetv2."):
            _refuse_if_last(folder, class_name, current_module)
        return found

    return find


def load(kind: Kind, name: str) -> Any:
    """Import a class of ours or of another package."""
    point = registry.others(kind).get(name) if _owner(kind, name) == "others" else None
    # that of another package with a length of training is made by ours
    return registry.load_other(point) if point else getattr(_room(kind), name)


def _owner(kind: Kind, name: str) -> Literal["ours", "others"] | None:
    try:
        base = without_length(name) if kind == "trainers" else name
        if base in OURS[kind] or (
            kind == "trainers" and TWIN.fullmatch(name) and hasattr(_room(kind), name)
        ):
            return "ours"
        others = registry.others(kind)
        theirs = name in others or (base in others and not occurs_in_nnunet(base))
        return "others" if theirs else None
    except Exception:  # a broken package of ours must not stop nnU-Net from finding its classes
        return None


def _room(kind: Kind) -> Any:
    return import_module(f"nnunet_ext.{kind}")


@cache
def _sources_of_nnunet() -> str:
    spec = find_spec("nnunetv2")
    trees = [Path(tree) for tree in (spec.submodule_search_locations or ())] if spec else []
    folders = [tree.joinpath(*root.split(".")[1:]) for tree in trees for root in KINDS]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def occurs_in_nnunet(name: str) -> bool:
    """Whether nnU-Net may have a trainer or planner of this name; imports nothing."""
    return re.search(rf"\b{re.escape(name)}\b", _sources_of_nnunet()) is not None


def find_trainer_of_nnunet(name: str) -> Any:
    """Find a trainer in nnU-Net's own tree, whether discovery is active or not; None without."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(nnunetv2.__path__[0], *TRAINERS.split(".")[1:])
    return recursive_find_python_class(folder, name, TRAINERS)


# --------------------------------------------------------------------------------- users' folders


def user_folders() -> list[str]:
    """The folders in which a user keeps trainers, as far as they exist."""
    folders = os.environ.get(USER_FOLDERS, "").split(os.pathsep)
    return [folder for folder in folders if folder.strip() and os.path.exists(folder)]


def _find_users_trainer(nnunets: Find, name: str) -> tuple[Any, str]:
    """Find a user's trainer the way nnU-Net does, and the folder that it is in."""
    for folder in user_folders():
        trainer = nnunets(
            folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
        )
        if trainer is not None:
            return trainer, folder
    return None, ""


def users_settings() -> dict[str, dict[str, type]]:
    """Trainers in the user's folders -> method -> settings class; imports these as nnU-Net does.

    Raises:
        UserError: If a file there cannot be imported, which nnU-Net does not forgive either.
    """
    if not user_folders():
        return {}  # without importing torch
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found = {}
    for folder in user_folders():
        for file in sorted(Path(folder).rglob("*.py")):
            for name in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
                try:
                    trainer, _ = _find_users_trainer(recursive_find_python_class, name)
                except Exception as error:
                    raise UserError(
                        f"The trainer {name} in {file} cannot be imported: {error!r}"
                    ) from error
                found[name] = registry.settings_read_by(trainer)
    return found


# ---------------------------------------------------------------------------------- near matches


def _refuse_if_last(folder: str, name: str, current_module: str | None) -> None:
    """Raise an error that helps, if nnU-Net has nowhere else to look for this name."""
    folders = user_folders()
    if current_module is None and folder in folders[-1:]:
        raise _unknown(name, TRAINERS, also_in=folders)
    if current_module == TRAINERS and folders:
        return  # nnU-Net goes on to search these
    if current_module in KINDS:
        raise _unknown(name, current_module)


def _unknown(name: str, root: str, also_in: list[str] | None = None) -> UnknownNameError:
    kind = KINDS[root]
    what = "trainer" if root == TRAINERS else "experiment planner or fingerprint extractor"
    places = f", nor in {USER_FOLDERS} ({os.pathsep.join(also_in)})" if also_in else ""
    ours, nnunets = [*OURS[kind], *registry.others(kind)], list(_nnunets_names(root))
    variants = [each for each in nnunets if each.startswith("nnUNetTrainer")]
    twins = [each.replace("nnUNet", "Extension", 1) for each in variants]
    length = name[len(without_length(name)) :]
    known = dict.fromkeys([*(each + length for each in [*ours, *twins]), *nnunets])
    return UnknownNameError(
        f"There is no {what} called {name} in nnU-Net or nnunet_ext{places}."
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
