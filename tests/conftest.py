"""What all tests share: quiet numerics, and tiny data sets that nnU-Net can train on."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:  # importing it takes seconds, which tests without nnU-Net need not wait for
    from tests.tiny import World

# not more threads than cores when nnU-Net's workers run beside the tests
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as in a background job of a shell; commands under test must hear Ctrl-C nevertheless
    signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes depends on what else the machine does
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def make_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a raw data set of this name; nnU-Net's folders are empty ones below ``tmp_path``."""
    from tests.raw import write_raw

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return lambda name, *args, **kwargs: write_raw(tmp_path / "nnUNet_raw" / name, *args, **kwargs)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install packages of somebody else's; see ``tests.packages.write_package``."""
    from nnunet_ext import registry
    from tests.packages import write_package

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def write(*args: Any, **kwargs: Any) -> None:
        write_package(site, *args, **kwargs)
        importlib.invalidate_caches()
        registry.others.cache_clear()

    yield write
    registry.others.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Write a preprocessed data set of the kind described by the arguments of ``tiny.Task``."""
    import torch

    from tests import tiny

    torch.set_num_threads(1)

    def make(**task: Any) -> World:
        return tiny.make_world(tmp_path, tiny.Task(**task), monkeypatch)

    return make
