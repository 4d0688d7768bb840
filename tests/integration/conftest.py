"""Fresh environments with our package installed.

They borrow nnU-Net and the other heavy dependencies from the running one through a path file.
Python does not process the path files inside a borrowed folder, so whatever works there works
because of what the installation of our package put in place.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what to do in it."""

    folder: Path
    project: Path

    @property
    def python(self) -> str:
        names = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        return str(self.folder.joinpath(*names))

    @property
    def site_packages(self) -> Path:
        variables = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", vars=variables))

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter of this environment, away from the checkout."""
        hidden = ("NNUNET_EXT_AUTOLOAD", "nnUNet_extTrainer", "PYTHONPATH")
        environment = {k: v for k, v in os.environ.items() if k not in hidden} | variables
        return subprocess.run(
            [self.python, *arguments],
            check=True,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


Create = Callable[..., Environment]


@pytest.fixture(scope="session")
def create(tmp_path_factory: pytest.TempPathFactory) -> Create:
    """Make a fresh environment with our package from a copy of the project."""
    pytest.importorskip("pip")

    def create(*options: str, lend: Callable[[Path], None] | None = None) -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        unneeded = ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "tests")
        project = copytree(PROJECT, folder / "project", ignore=unneeded)
        environment = Environment(folder / "venv", project)
        venv = [sys.executable, "-m", "venv", "--without-pip", str(environment.folder)]
        subprocess.run(venv, check=True, capture_output=True, timeout=300)
        if lend is not None:
            lend(environment.site_packages)
        borrowed = dict.fromkeys(sysconfig.get_path(lib) for lib in ("purelib", "platlib"))
        (environment.site_packages / "lent.pth").write_text("\n".join(borrowed))
        # --ignore-installed, for the lending environment may have our package as well
        how = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
        environment.pip("install", *how, *options, str(project))
        return environment

    return create


@pytest.fixture(scope="session")
def wheel(create: Create) -> Environment:
    return create()
