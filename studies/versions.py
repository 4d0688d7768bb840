"""Does it work with other versions of Python, torch and nnU-Net? One command, one table::

    python -m studies.versions FOLDER                 # all combinations that are missing
    python -m studies.versions FOLDER --only main     # those whose name holds a word

Every combination gets a virtual environment in FOLDER, and in it finds all trainers and planners
by nnU-Net's look-up, trains one tiny network and predicts with it. nnU-Net's main branch needs git
and may fail; what cannot be installed on this machine is reported as such. First come those with
the Python and the torch of this environment, which are lent, so that little is downloaded.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext._common.files import read_object, write_json

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TORCHES = ("==2.2.*", "")
HERE = "here"
"""In place of a version: what the environment has that runs this."""
NNUNETS = ("nnunetv2==2.8.0", "nnunetv2", "main")
"""Requirements; without a version it is the newest."""
MAIN = "nnunetv2 @ git+https://github.com/MIC-DKFZ/nnUNet"
INSTALL_SECONDS, RUN_SECONDS = 3600, 3600

LOOK_UPS = """
import json
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as trainer
from nnunetv2.experiment_planning.plan_and_preprocess_api import recursive_find_python_class as find
import nnunetv2, os, platform, torch
from importlib.metadata import version
from nnunet_ext import registry
folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
for name in registry.TRAINERS:
    assert trainer(name).__name__ == name
    assert trainer(name + "_3epochs").__name__ == name + "_3epochs"
for name in registry.PLANNERS:
    assert find(folder, name, "nnunetv2.experiment_planning").__name__ == name
print(json.dumps([platform.python_version(), torch.__version__, version("nnunetv2")]))
"""


@dataclass(frozen=True)
class Combination:
    """Versions that are tried together."""

    python: str
    torch: str
    nnunet: str

    @property
    def name(self) -> str:
        """As folders are called."""
        torch = self.torch.strip("=*.") or "newest"
        nnunet = self.nnunet.removeprefix("nnunetv2").strip("=") or "newest"
        return f"python-{self.python}-torch-{torch}-nnunet-{nnunet}"


def combinations() -> Iterator[Combination]:
    """What is lent; then the oldest and the newest Python there are, old and newest torch."""
    there = [python for python in PYTHONS if _is_there(python)]
    for nnunet in NNUNETS:
        yield Combination(HERE, HERE, nnunet)
    for python in dict.fromkeys([*there[:1], *there[-1:]]):
        for torch in TORCHES:
            for nnunet in NNUNETS:
                yield Combination(python, torch, nnunet)


def _is_there(python: str) -> bool:
    try:  # some managers of Pythons have the name, but not the program
        return bool(_run([f"python{python}", "--version"], RUN_SECONDS))
    except (subprocess.SubprocessError, OSError):
        return False


def attempt(combination: Combination, folder: Path, main: str) -> dict[str, str]:
    """Install and try a combination; says how far it came."""
    environment = folder / combination.name
    shutil.rmtree(environment, ignore_errors=True)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    found = {"versions": "", "state": "cannot be installed here", "why": ""}
    nnunet = main if combination.nnunet == "main" else combination.nnunet
    old = ["numpy<2"] if combination.torch else []  # torch 2.2 knows no other
    lent = combination.torch == HERE
    wanted = (
        ["--no-deps", "--ignore-installed", nnunet]
        if lent
        else [f"torch{combination.torch}", *old, nnunet]
    )
    more = ["--no-deps", "--ignore-installed"] if lent else []
    interpreter = sys.executable if lent else f"python{combination.python}"
    try:
        _run([interpreter, "-m", "venv", str(environment)], INSTALL_SECONDS)
        if lent:
            _lend(python)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *wanted], INSTALL_SECONDS)
        _run([*pip, *more, str(ROOT)], INSTALL_SECONDS)
        found["state"] = "look-ups fail"
        # away from the checkout, so that it is the installed package that is found
        found["versions"] = ", ".join(json.loads(_run([str(python), "-c", LOOK_UPS], RUN_SECONDS)))
        found["state"] = "training or prediction fails"
        cell = ["-m", "studies.support", "run", str(environment / "work"), "--anew"]
        output = _run([str(python), *cell, "--only", "CateNormTrainer/2d"], RUN_SECONDS, ROOT)
        found["why"] = output.strip().splitlines()[-1]
        if ": works" in output:
            found |= {"state": "works", "why": ""}
    except (subprocess.SubprocessError, OSError) as error:
        told = str(getattr(error, "stderr", "") or error).strip().splitlines()
        told = [line for line in told if "error" in line.lower()] or told
        found["why"] = told[-1] if told else type(error).__name__
    shutil.rmtree(environment, ignore_errors=True)
    return found


def _lend(python: Path) -> None:
    """Let an environment see what this one has, after what is its own."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run([str(python), "-c", where], RUN_SECONDS).strip())
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "lent.pth").write_text("\n".join(borrowed))


def _run(command: list[str], seconds: int, place: Path | None = None) -> str:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    if place:
        variables["PYTHONPATH"] = str(place)
    done = subprocess.run(
        command,
        check=True,
        cwd=place or tempfile.gettempdir(),  # not in the checkout, whose package would be found
        env=variables,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return done.stdout


def main() -> None:
    """Try what is missing, then print all that is known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="combinations whose name holds this")
    parser.add_argument("--main", default=MAIN, help="requirement of nnU-Net's main branch")
    parser.add_argument("--list", action="store_true", help="only say what there would be")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for combination in combinations():
        record = folder / f"{combination.name}.json"
        if arguments.only in combination.name and not record.exists() and not arguments.list:
            write_json(record, attempt(combination, folder, arguments.main))
        known = read_object(record) if record.exists() else {"state": "not tried"}
        print(f"| {combination.name} | {known.get('versions', '')} | {known['state']} |")
        if known.get("why"):
            print(f"    {known['why']}")
    for python in PYTHONS:
        if not _is_there(python):
            print(f"| python-{python} | | is not on this machine |")


if __name__ == "__main__":
    main()
