"""What installing us changes in an environment: nothing that is there. Pip's resolver says so.

Wheels without content stand for all packages, with the names, versions and requirements that the
running environment knows; torch is there in a newer version, too, which pip would take if anything
asked for it.
"""

import ast
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

pytest.importorskip("pip")

PROJECT = Path(__file__).parents[2]
REQUIREMENTS: list[str] = read_configuration(PROJECT / "pyproject.toml", expand=False)["project"][
    "dependencies"
]
NEWEST_TORCH = "99.0"
DISTRIBUTIONS = {"skimage": "scikit-image", "markdown_it": "markdown-it-py"}


def required(name: str) -> list[str]:
    """What a distribution asks for here; vision's exact torch is left to each test's torch."""
    if name == "torchvision":
        return ["numpy", "torch"]
    found = [Requirement(text) for text in distribution(name).requires or []]
    return [str(each) for each in found if each.marker is None or each.marker.evaluate()]


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of everything that these requirements bring, torch's own aside."""
    names: set[str] = set()
    waiting = [Requirement(text).name for text in requirements]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in names:
            names.add(name)
            waiting += [Requirement(r).name for r in required(name)] if name != "torch" else []
    return names


def write_metadata(folder: Path, name: str, version: str, requirements: Iterable[str]) -> None:
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (folder / "RECORD").write_text("")


def write_wheel(folder: Path, name: str, version: str, requirements: Iterable[str]) -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = folder / "unpacked" / stem / f"{stem}.dist-info"
    write_metadata(metadata, name, version, requirements)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for file in metadata.iterdir():
            archive.write(file, f"{metadata.name}/{file.name}")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that we and nnU-Net need, as wheels without content."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in closure(REQUIREMENTS) - {"torch"}:
        write_wheel(folder, name, distribution(name).version, required(name))
    write_wheel(folder, "torch", NEWEST_TORCH, [])
    return folder


def installs(
    folder: Path, wheels: Path, there: dict[str, str], requirements: list[str]
) -> set[str]:
    """What pip would install of us, or something like us, where some packages are there."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    places = dict.fromkeys(("base", "platbase"), str(venv))
    site = Path(sysconfig.get_path("purelib", "venv", vars=places))
    for name, version in there.items():
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
        write_metadata(metadata, name, version, required(name) if name != "torch" else [])
    ours = write_wheel(folder, "nnunet-ext", "0", requirements)
    command = [sys.executable, "-m", "pip", "--python", str(venv), "install", "--dry-run"]
    command += ["--quiet", "--report", "-", "--no-index", "--find-links", str(wheels), str(ours)]
    # whatever this machine tells pip, such as where else to look
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
    environment["PIP_CONFIG_FILE"] = os.devnull
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=300, env=environment
    )
    found = json.loads(answer.stdout)["install"]
    return {canonicalize_name(each["metadata"]["name"]) for each in found}


@pytest.mark.parametrize("torch", ["2.2.0", distribution("torch").version])
def test_nnunet_and_the_torch_under_it_stay_as_they_are(
    tmp_path: Path, wheels: Path, torch: str
) -> None:
    torch = torch.split("+")[0]
    there = {name: distribution(name).version for name in closure(["nnunetv2"])} | {"torch": torch}
    added = installs(tmp_path, wheels, there, REQUIREMENTS)
    assert "nnunet-ext" in added
    assert not added & there.keys() - {"argparse"}  # Python's own, so pip never counts it as there


def test_a_torch_that_nnunet_can_use_stays_where_nnunet_is_yet_to_come(
    tmp_path: Path, wheels: Path
) -> None:
    added = installs(tmp_path, wheels, {"torch": "2.2.0"}, REQUIREMENTS)
    assert "nnunetv2" in added
    assert "torch" not in added


def test_a_requirement_of_newer_torch_would_be_noticed(tmp_path: Path, wheels: Path) -> None:
    added = installs(tmp_path, wheels, {"torch": "2.6.0"}, [*REQUIREMENTS, "torch>=2.8"])
    assert "torch" in added


def test_exactly_what_is_imported_is_declared() -> None:
    modules = set()
    for file in (PROJECT / "nnunet_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    modules -= {*sys.stdlib_module_names, "nnunet_ext", "pydantic_core"}  # comes with pydantic
    imported = {canonicalize_name(DISTRIBUTIONS.get(m, m)) for m in modules}
    assert imported == {canonicalize_name(Requirement(text).name) for text in REQUIREMENTS}
