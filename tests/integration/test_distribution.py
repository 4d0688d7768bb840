"""The wheel and the source distribution that a release would upload."""

import subprocess
import sys
import tarfile
from pathlib import Path
from shutil import copytree, ignore_patterns
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of both, the wheel made from the source distribution."""
    pytest.importorskip("build", reason="extra dev is not installed")
    folder = tmp_path_factory.mktemp("distribution")
    unneeded = ignore_patterns(".*", "__pycache__", "build", "dist", "site", "*.egg-info")
    copytree(PROJECT, folder / "project", ignore=unneeded)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run([*command, str(folder / "project")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "dist"


def modules() -> set[str]:
    return {p.relative_to(PROJECT).as_posix() for p in (PROJECT / "nnunet_ext").rglob("*.py")}


def test_both_are_accepted_where_packages_are_published(built: Path) -> None:
    pytest.importorskip("twine", reason="extra dev is not installed")
    files = sorted(map(str, built.iterdir()))
    assert len(files) == 2
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_wheel_holds_the_package_and_the_start_up_files_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    startup = {path.name for path in (PROJECT / "startup").iterdir()}
    templates = (PROJECT / "nnunet_ext" / "benchmark" / "templates").iterdir()
    data = {path.relative_to(PROJECT).as_posix() for path in templates} | {"nnunet_ext/py.typed"}
    assert names == modules() | startup | data


def test_source_distribution_holds_what_building_and_testing_takes(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"}
    assert needed | modules() | {"startup/nnunet_ext.pth", "tests/tiny.py"} <= names
    assert not [name for name in names if name.endswith(".pyc") or "/.git" in name]
