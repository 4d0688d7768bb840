"""How nnU-Net's commands find the trainers and planners of this package.

nnU-Net finds every class through one function, ``recursive_find_python_class``. The start-up
file ``nnunet_ext.pth`` calls :func:`activate` in every interpreter, spawned workers included;
from then on an import hook waits for nnU-Net to load that function, wraps it with
:func:`nnunet_ext.nnunet.lookup.with_our_names`, and leaves.

This module runs whenever Python starts, so it must stay cheap and harmless: it imports nothing
that is not loaded already.
"""

import os
import sys

TYPE_CHECKING = False  # typing itself would cost milliseconds at every start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "NNUNET_EXT_AUTOLOAD"
"""Environment variable that keeps the start-up file from doing anything when it is ``0``."""

_MODULE = "nnunetv2.utilities.find_class_by_name"
_FUNCTION = "recursive_find_python_class"


def activate(*, force: bool = False) -> None:
    """Let nnU-Net's class look-up find our trainers and planners; safe to call repeatedly.

    Called at interpreter start it never raises; :func:`status` tells what went wrong.

    Args:
        force: Ignore ``NNUNET_EXT_AUTOLOAD=0``, and raise what goes wrong.
    """
    if is_active():
        return
    if os.environ.get(SWITCH) == "0" and not force:
        _hook.problem = f"switched off by {SWITCH}=0"
        return
    try:
        _hook.install()
    except Exception as error:
        _hook.problem = f"{type(error).__name__}: {error}"
        if force:
            raise


def is_active() -> bool:
    """Whether nnU-Net's look-up finds our classes, or will as soon as nnU-Net is imported."""
    return _hook in sys.meta_path or _hook.wrapper is not None


def status() -> str:
    """Say in one line whether nnU-Net finds our classes and, if it does not, why."""
    if _hook.wrapper is not None:
        return "active"
    if _hook in sys.meta_path:
        return "active, waiting for nnU-Net to be imported"
    return f"not active: {_hook.problem}"


class _Hook:
    """Import hook that wraps nnU-Net's look-up function when nnU-Net loads it."""

    wrapper: "Callable[..., Any] | None" = None
    problem = "the start-up file nnunet_ext.pth is not in a site directory of this interpreter"

    def install(self) -> None:
        module = sys.modules.get(_MODULE)
        if module is not None:
            self.wrap(module)
        else:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find nnU-Net's module as Python would, but wrap its function once it has run."""
        if name != _MODULE:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        self._wrap_after(spec.loader)
                    return spec
        return None

    def _wrap_after(self, loader: "Any") -> None:
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            execute(module)
            try:
                del loader.exec_module
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                self.wrap(module)
            except Exception as error:  # nnU-Net must work, whatever happens to us
                self.problem = f"{type(error).__name__}: {error}"

        loader.exec_module = exec_module

    def wrap(self, module: "ModuleType") -> None:
        from nnunet_ext.nnunet.lookup import with_our_names

        original = getattr(module, _FUNCTION)
        self.wrapper = with_our_names(original)
        # in every module of nnU-Net that has it
        for name, each in list(sys.modules.items()):
            names = getattr(each, "__dict__", {})
            if name.startswith("nnunetv2.") and names.get(_FUNCTION) is original:
                names[_FUNCTION] = self.wrapper


_hook = _Hook()
