import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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
    assert "Did you mean 'list'?" in outcome.err
    assert "Traceback" not in outcome.err


def test_mistake_is_one_line_on_stderr(cli: Callable[..., Any]) -> None:
    outcome = cli("run", "no_such_command")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1


LIGHT = """
import sys

from nnunet_ext.cli import main

try:
    sys.exit(main())
except SystemExit as leaving:
    assert not leaving.code, leaving.code
    print("LOADED", *({"torch", "pandas", "numpy", "nnunetv2", "matplotlib"} & sys.modules.keys()))
"""


def loaded_by(*arguments: str) -> set[str]:
    """The heavy packages that a command has imported when it ends well."""
    command = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("list",),
        ("list", "CateNormTrainer_250epochs"),
        ("list", "ExtensionTrainerDA5"),
        ("fetch", "--list"),
    ],
)
def test_what_only_shows_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == set()


def test_data_sets_are_joined_assigned_and_configured_without_torch(
    make_raw: Callable[..., Any], tmp_path: Path
) -> None:
    make_raw("Dataset011_A", ["a", "b"])
    make_raw("Dataset012_B", ["c"])
    light = {"numpy", "nnunetv2"}  # nnU-Net's list of training cases needs no more
    assert loaded_by("join", "11", "12", "--id", "13", "--name", "Both") <= light
    assert loaded_by("domains", "13", "--regex", "(?P<domain>[ab]|c)") <= light
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset013_Both"
    folder.mkdir()
    assert loaded_by("domains", "13", "--leave-one-out") <= light
    (folder / "nnUNetPlans.json").write_text('{"configurations": {"2d": {}}}')
    settings = ("--set", "catenorm.reduction=4", "--set", "num_epochs=2")
    assert loaded_by("configure", "13", "-c", "2d", "--name", "mine", *settings) == set()
    assert loaded_by("configure", "13", "-c", "mine", "--show") == set()


@pytest.mark.parametrize(
    ("begun", "offered"), [("", list(COMMANDS)), ("ev", ["evaluate"]), ("--v", ["--version"])]
)
def test_shells_are_offered_the_commands_without_importing_them(
    begun: str, offered: list[str]
) -> None:
    asked = {"_NNUNET_EXT_COMPLETE": "complete_bash", "COMP_WORDS": f"nnunet-ext {begun}"}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        env=os.environ | asked | {"COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    *found, loaded = done.stdout.splitlines()
    assert set(offered) <= set(found), done.stderr
    assert loaded == "LOADED"


def test_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "nnunet_ext", "run", "nnUNetv2_trian"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        'Error: "nnUNetv2_trian" is not a command of nnU-Net. Did you mean nnUNetv2_train?\n'
    )
