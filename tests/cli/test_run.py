import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context


def main():
    print("parent", sys.argv, is_active())
    for method in sorted({"spawn", "forkserver"} & set(get_all_start_methods())):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            print(method, *pool.submit(ask_a_worker_of_mine).result())
    if "fail" in sys.argv:
        raise SystemExit(3)
    if "mistake" in sys.argv:
        from nnunet_ext._common.errors import UserError
        raise UserError("the user can mend this")
    if "bug" in sys.argv:
        raise ValueError("the user cannot mend this")


def ask_a_worker_of_mine():
    with get_context("spawn").Pool(1) as pool:
        return is_active(), pool.apply(is_active)


def is_active():
    discovery = sys.modules.get("nnunet_ext.nnunet.discovery")
    return discovery is not None and discovery.is_active()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An nnU-Net whose only command starts workers, and no start-up file to help them."""
    (tmp_path / "commands.py").write_text(COMMAND)
    metadata = tmp_path / "nnunetv2-2.8.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.8.1\n")
    (metadata / "entry_points.txt").write_text("[console_scripts]\nnnUNetv2_ask = commands:main\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "NNUNET_EXT_AUTOLOAD": "0"}


def _run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "nnunet_ext", "run", "nnUNetv2_ask", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_discovery_reaches_workers_and_their_workers(environment: dict[str, str]) -> None:
    done = _run(environment)
    assert done.returncode == 0, done.stderr
    parent, *workers = done.stdout.splitlines()
    assert parent == "parent ['nnUNetv2_ask'] True"
    assert "spawn True True" in workers
    assert all(worker.endswith(" True True") for worker in workers)


def test_arguments_and_exit_code_pass_through(environment: dict[str, str]) -> None:
    done = _run(environment, "fail", "--help", "-x", "--", "--version")
    assert done.returncode == 3
    assert "['nnUNetv2_ask', 'fail', '--help', '-x', '--', '--version']" in done.stdout


def test_mistake_that_the_command_finds_is_shown_without_traceback(
    environment: dict[str, str],
) -> None:
    done = _run(environment, "mistake")
    assert done.returncode == 1
    assert done.stderr == "Error: the user can mend this\n"


def test_bug_in_the_command_keeps_its_traceback(environment: dict[str, str]) -> None:
    done = _run(environment, "bug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "commands.py" in done.stderr


@pytest.mark.parametrize(
    ("command", "meant"),
    [("nnUNetv2_trian", "nnUNetv2_train"), ("predict", "nnUNetv2_predict")],
)
def test_unknown_command_gets_the_near_match(
    cli: Callable[..., Any], command: str, meant: str
) -> None:
    outcome = cli("run", command, "4", "--help")
    assert outcome.code == 1
    assert outcome.err == (
        f'Error: "{command}" is not a command of nnU-Net. Did you mean {meant}?\n'
    )


def test_command_like_no_other_gets_the_list(cli: Callable[..., Any]) -> None:
    outcome = cli("run", "python")
    assert outcome.code == 1
    assert "There are: nnUNetv2_accumulate_crossval_results, " in outcome.err


def test_missing_command_is_a_usage_error(cli: Callable[..., Any]) -> None:
    outcome = cli("run")
    assert outcome.code == 2
    assert "COMMAND" in outcome.err
