"""Installs the package into fresh environments and asks nnU-Net for our classes there."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from shutil import copytree
from typing import Any
from zipfile import ZipFile

import pytest

from tests.integration.conftest import Create, Environment

STARTUP_FILES = {"nnunet_ext.pth", "nnunet_ext.start"}

# Everything is looked up in one process per environment, because importing torch takes long.
LOOK_UP = """
import contextlib, json, sys, warnings

warnings.simplefilter("ignore")


def trainer(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


def planner(name):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager({"experiment_planner_used": name}).experiment_planner_class


def look_up(kind, name):
    try:
        found = globals()[kind](name)
        return f"{found.__module__}.{found.__qualname__}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def in_worker(kind, name):
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        return pool.apply(look_up, (kind, name))


if __name__ == "__main__":
    results = {}
    with contextlib.redirect_stdout(sys.stderr):
        for where, kind, name in json.loads(sys.argv[1]):
            results[name] = {"here": look_up, "worker": in_worker}[where](kind, name)
            results[f"loaded by {name}"] = [m for m in ("timm", "torchvision") if m in sys.modules]
        import nnunetv2

        results["nnunetv2"] = nnunetv2.__file__
    print(json.dumps(results))
"""


def look_up(
    environment: Environment, names: Iterable[tuple[str, str, str]], **variables: str
) -> dict[str, Any]:
    """Look names up, each given as (here or worker, trainer or planner, name)."""
    script = environment.folder / "look_up.py"
    script.write_text(LOOK_UP)
    output = environment.run(str(script), json.dumps(list(names)), **variables).stdout
    results: dict[str, Any] = json.loads(output)
    return results


@pytest.fixture(scope="session")
def editable(create: Create) -> Environment:
    return create("--editable")


@pytest.fixture(scope="session", params=["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def installed(request: pytest.FixtureRequest) -> Environment:
    environment: Environment = request.getfixturevalue(request.param)
    return environment


@pytest.fixture(scope="session")
def found(installed: Environment) -> dict[str, Any]:
    """What a plain installation finds, in this order."""
    return look_up(
        installed,
        [
            ("worker", "trainer", "CateNormTrainer_5epochs"),
            ("here", "trainer", "CateNormTrainer"),
            ("here", "trainer", "CateNormTrainer_250epochs"),
            ("here", "planner", "CateNormPlanner"),
            ("here", "trainer", "nnUNetTrainer_5epochs"),
            ("here", "trainer", "CateNormTrainr"),
            ("here", "planner", "nnUNetPlannerResEncM"),
            ("here", "planner", "CateNormPlans"),
        ],
    )


class TestInstalled:
    """As a wheel and editable, with nothing configured."""

    def test_nnunet_finds_our_trainer(self, found: dict[str, Any]) -> None:
        assert found["CateNormTrainer"] == "nnunet_ext.trainers.catenorm.CateNormTrainer"

    def test_nnunet_finds_our_trainer_with_a_length(self, found: dict[str, Any]) -> None:
        assert found["CateNormTrainer_250epochs"] == "nnunet_ext.trainers.CateNormTrainer_250epochs"

    def test_nnunet_finds_our_planner(self, found: dict[str, Any]) -> None:
        assert found["CateNormPlanner"] == "nnunet_ext.planners.method.CateNormPlanner"

    def test_spawned_worker_finds_our_trainer(self, found: dict[str, Any]) -> None:
        assert found["CateNormTrainer_5epochs"] == "nnunet_ext.trainers.CateNormTrainer_5epochs"

    def test_our_names_do_not_make_nnunet_import_its_whole_tree(
        self, found: dict[str, Any]
    ) -> None:
        assert found["loaded by CateNormTrainer"] == []
        assert found["loaded by CateNormPlanner"] == []

    def test_nnunets_own_trainer_and_planner_are_untouched(self, found: dict[str, Any]) -> None:
        assert found["nnUNetTrainer_5epochs"].startswith("nnunetv2.training.nnUNetTrainer.")
        assert found["nnUNetPlannerResEncM"].startswith("nnunetv2.experiment_planning.")

    def test_unknown_names_get_near_matches(self, found: dict[str, Any]) -> None:
        for name, meant in {
            "CateNormTrainr": "CateNormTrainer",
            "CateNormPlans": "CateNormPlanner",
        }.items():
            assert found[name].startswith("UnknownNameError: ")
            assert f"Did you mean {meant}" in found[name]

    def test_startup_files_lie_in_site_packages(self, installed: Environment) -> None:
        assert {path.name for path in installed.site_packages.iterdir()} >= STARTUP_FILES


class TestOtherCircumstances:
    @pytest.mark.slow
    def test_users_trainer_of_the_same_name_wins(self, wheel: Environment, tmp_path: Path) -> None:
        module = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        module += "class CateNormTrainer(nnUNetTrainer): pass\n"
        (tmp_path / "of_the_user.py").write_text(module)
        names = [("here", "trainer", "CateNormTrainer"), ("here", "trainer", "CateNormTrainr")]
        found = look_up(wheel, names, nnUNet_extTrainer=str(tmp_path))
        assert found["CateNormTrainer"] == "of_the_user.CateNormTrainer"
        assert found["CateNormTrainr"].startswith("UnknownNameError: ")
        assert "Did you mean CateNormTrainer" in found["CateNormTrainr"]

    @pytest.mark.slow
    def test_switch_leaves_nnunet_alone(self, wheel: Environment) -> None:
        names = [("here", "trainer", "CateNormTrainer"), ("here", "planner", "CateNormPlanner")]
        found = look_up(wheel, names, NNUNET_EXT_AUTOLOAD="0")
        assert found["CateNormTrainer"].startswith("RuntimeError: Could not find requested")
        assert found["CateNormPlanner"].startswith("AttributeError: 'NoneType'")

    @pytest.mark.slow
    def test_editable_nnunet_is_found_and_answers(self, create: Create, tmp_path: Path) -> None:
        import nnunetv2

        source = copytree(nnunetv2.__path__[0], tmp_path / "nnunetv2")

        def lend(site_packages: Path) -> None:
            (site_packages / "__editable__.nnunetv2.pth").write_text(str(tmp_path))

        names = [("here", "trainer", "CateNormTrainer"), ("here", "trainer", "nnUNetTrainer")]
        found = look_up(create(lend=lend), names)
        assert Path(found["nnunetv2"]).parent == source
        assert found["CateNormTrainer"] == "nnunet_ext.trainers.catenorm.CateNormTrainer"
        assert found["nnUNetTrainer"].startswith("nnunetv2.")

    def test_python_starts_silently_if_the_editable_source_breaks_or_goes(
        self, create: Create
    ) -> None:
        environment = create("--editable")
        package = environment.project / "nnunet_ext"
        (package / "nnunet" / "discovery.py").write_text("raise RuntimeError('broken')")
        assert environment.run("-c", "pass").stderr == ""
        package.rename(environment.project / "moved")
        assert environment.run("-c", "pass").stderr == ""

    @pytest.mark.parametrize("options", [(), pytest.param(("--editable",), marks=pytest.mark.slow)])
    def test_uninstalling_removes_the_startup_files(
        self, create: Create, options: tuple[str, ...]
    ) -> None:
        environment = create(*options)
        environment.pip("uninstall", "--yes", "nnunet-ext")
        assert {path.name for path in environment.site_packages.iterdir()} == {"lent.pth"}


def test_source_distribution_can_be_built_into_the_same_wheel(
    wheel: Environment, tmp_path: Path
) -> None:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*command, str(wheel.project)], check=True, capture_output=True, timeout=300)
    (built,) = tmp_path.glob("*.whl")  # build makes it from the source distribution
    assert set(ZipFile(built).namelist()) >= STARTUP_FILES | {
        "nnunet_ext/py.typed",
        "nnunet_ext/nnunet/discovery.py",
    }
