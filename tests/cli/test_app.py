import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from nnunet_ext import __version__

COMMANDS = ("list", "doctor", "run", "configure", "demo", "fetch")


def test_version_names_the_package(cli: Callable[..., Any]) -> None:
    outcome = cli("--version")
    assert outcome.code == 0
    assert outcome.out.strip() == f"nnunet-ext {__version__}"


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_help_shows_an_example(cli: Callable[..., Any], command: tuple[str, ...]) -> None:
    outcome = cli(*command, "--help")
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert f"\n    {' '.join(('nnunet-ext', *command))}" in outcome.out


def test_help_lists_the_commands_with_whole_sentences(cli: Callable[..., Any]) -> None:
    out = cli("--help").out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert "..." not in out.partition("Commands:")[2]


def test_unknown_sub_command_is_refused_without_traceback(cli: Callable[..., Any]) -> None:
    outcome = cli("lst")
    assert outcome.code == 2
    assert "lst" in outcome.err
    assert "Traceback" not in outcome.err


def test_mistake_is_one_line_on_stderr(cli: Callable[..., Any]) -> None:
    outcome = cli("run", "no_such_command")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from nnunet_ext.cli import main\n"
        "try: main(['configure', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'nnunetv2', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "nnunet_ext.cli", "run", "nnUNetv2_trian"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        'Error: "nnUNetv2_trian" is not a command of nnU-Net. Did you mean nnUNetv2_train?\n'
    )
