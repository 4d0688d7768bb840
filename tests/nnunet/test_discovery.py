"""The start-up hook and the wrapped look-up, without torch and without installing anything."""

import ast
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns
from types import ModuleType
from typing import Any

import pytest

import nnunet_ext
from nnunet_ext import planners, registry, trainers
from nnunet_ext._common.errors import UnknownNameError, UserError
from nnunet_ext.nnunet import discovery, lookup
from nnunet_ext.nnunet.lookup import KINDS, TRAINERS, with_our_names
from nnunet_ext.registry import Planner, Trainer

PACKAGE = Path(nnunet_ext.__file__).parent
STARTUP = Path(__file__).parents[2] / "startup"
PLANNERS = "nnunetv2.experiment_planning"

FIND_CLASS_BY_NAME = """
def recursive_find_python_class(folder, class_name, current_module, base_folder=None):
    return None
"""
FIND_OBJECTS = "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with our package and a stand-in for nnU-Net that loads in no time."""
    utilities = tmp_path / "nnunetv2" / "utilities"
    utilities.mkdir(parents=True)
    for package in (utilities.parent, utilities):
        (package / "__init__.py").touch()
    (utilities / "find_class_by_name.py").write_text(FIND_CLASS_BY_NAME)
    (utilities / "find_objects.py").write_text(FIND_OBJECTS)
    copytree(PACKAGE, tmp_path / "nnunet_ext", ignore=ignore_patterns("__pycache__"))
    return tmp_path


def run(site: Path, code: str, **environment: str) -> str:
    """Run code in an interpreter that has only ``site`` and the standard library."""
    setup = f"import os, sys; sys.path.insert(0, {str(site)!r})\n"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", setup + textwrap.dedent(code)],
        env={k: v for k, v in os.environ.items() if k != discovery.SWITCH} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout.strip()


class TestStartup:
    def test_activation_imports_nothing_but_itself(self, site: Path) -> None:
        loaded = run(
            site,
            """
            before = set(sys.modules)
            from nnunet_ext.nnunet import discovery
            discovery.activate()
            print(*sorted(set(sys.modules) - before))
            """,
        )
        assert loaded == "nnunet_ext nnunet_ext.nnunet nnunet_ext.nnunet.discovery"

    def test_startup_file_is_one_line_that_activates(self, site: Path) -> None:
        (line,) = (STARTUP / "nnunet_ext.pth").read_text().splitlines()
        assert line.startswith("import ")
        code = (
            f"exec({line!r}); from nnunet_ext.nnunet import discovery; print(discovery.is_active())"
        )
        assert run(site, code) == "True"

    def test_its_pep_829_twin_names_the_same_function(self) -> None:
        module, _, function = (STARTUP / "nnunet_ext.start").read_text().strip().partition(":")
        assert getattr(sys.modules[module], function) is discovery.activate

    @pytest.mark.parametrize("source", [None, "1 / 0", "import no_such_module", "syntax error"])
    def test_startup_file_is_silent_if_our_package_is_gone_or_broken(
        self, tmp_path: Path, source: str | None
    ) -> None:
        if source is not None:
            (tmp_path / "nnunet_ext").mkdir()
            (tmp_path / "nnunet_ext" / "__init__.py").write_text(source)
        line = (STARTUP / "nnunet_ext.pth").read_text()
        assert run(tmp_path, f"exec({line!r}); print('started')") == "started"

    def test_the_switch_keeps_it_off_and_force_overrules_the_switch(self, site: Path) -> None:
        code = """
            from nnunet_ext.nnunet import discovery
            discovery.activate()
            print(discovery.status())
            discovery.activate(force=True)
            print(discovery.status())
            """
        off, on = run(site, code, **{discovery.SWITCH: "0"}).splitlines()
        assert off == "not active: switched off by NNUNET_EXT_AUTOLOAD=0"
        assert on == "active, waiting for nnU-Net to be imported"

    def test_status_says_so_if_nothing_activated_it(self, site: Path) -> None:
        said = run(site, "from nnunet_ext.nnunet import discovery; print(discovery.status())")
        assert said.startswith("not active: the start-up file nnunet_ext.pth is not in")


class TestHook:
    ACTIVATE = "from nnunet_ext.nnunet import discovery; discovery.activate()\n"

    def test_wraps_when_nnunet_is_imported_and_leaves(self, site: Path) -> None:
        code = """
            importers = len(sys.meta_path)
            from nnunetv2.utilities import find_objects, find_class_by_name as module
            function = find_objects.recursive_find_python_class
            print(function is module.recursive_find_python_class, hasattr(function, "__wrapped__"))
            print(importers - len(sys.meta_path), discovery.status())
            """
        assert run(site, self.ACTIVATE + textwrap.dedent(code)) == "True True\n1 active"

    def test_wraps_in_place_if_nnunet_is_loaded_already(self, site: Path) -> None:
        code = """
            from nnunetv2.utilities import find_objects, find_class_by_name as module
            from nnunet_ext.nnunet import discovery; discovery.activate()
            function = find_objects.recursive_find_python_class
            print(function is module.recursive_find_python_class, hasattr(function, "__wrapped__"))
            """
        assert run(site, code) == "True True"

    def test_activating_twice_wraps_once(self, site: Path) -> None:
        code = """
            discovery.activate()
            from nnunetv2.utilities import find_objects
            discovery.activate()
            function = find_objects.recursive_find_python_class
            print(hasattr(function.__wrapped__, "__wrapped__"))
            print([finder for finder in sys.meta_path if "nnunet_ext" in repr(finder)])
            """
        assert run(site, self.ACTIVATE + textwrap.dedent(code)) == "False\n[]"

    def test_still_waits_after_nnunet_was_only_looked_for(self, site: Path) -> None:
        code = """
            from importlib.util import find_spec
            assert find_spec("nnunetv2.utilities.find_class_by_name") is not None
            import nnunetv2.utilities.find_class_by_name
            print(discovery.status())
            """
        assert run(site, self.ACTIVATE + textwrap.dedent(code)) == "active"

    def test_nnunet_without_the_function_imports_all_the_same(self, site: Path) -> None:
        (site / "nnunetv2/utilities/find_class_by_name.py").write_text("VERSION = 3")
        code = "import nnunetv2.utilities.find_class_by_name; print(discovery.status())"
        assert run(site, self.ACTIVATE + code).startswith("not active: AttributeError: ")

    def test_an_error_of_nnunets_own_is_not_hidden_and_can_be_mended(self, site: Path) -> None:
        module = site / "nnunetv2/utilities/find_class_by_name.py"
        module.write_text("import no_such_module")
        code = f"""
            try:
                import nnunetv2.utilities.find_class_by_name
            except ModuleNotFoundError as error:
                print(error.name)
            open({str(module)!r}, "w").write({FIND_CLASS_BY_NAME!r} + "# longer")
            import nnunetv2.utilities.find_class_by_name
            print(discovery.status())
            """
        assert run(site, self.ACTIVATE + textwrap.dedent(code)) == "no_such_module\nactive"

    def test_missing_nnunet_stays_missing(self, site: Path) -> None:
        (site / "nnunetv2/utilities/find_class_by_name.py").unlink()
        code = """
            try:
                import nnunetv2.utilities.find_class_by_name
            except ModuleNotFoundError as error:
                print(error.name)
            """
        said = run(site, self.ACTIVATE + textwrap.dedent(code))
        assert said == "nnunetv2.utilities.find_class_by_name"


class StubTrainer:
    pass


class StubPlanner:
    pass


class Nnunets:
    """Stands for nnU-Net's function: knows one class, and what users keep in folders."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.users: dict[str, type] = {}

    def __call__(
        self,
        folder: str,
        class_name: str,
        current_module: str | None,
        base_folder: str | None = None,
        verbose: bool = False,
        cleanup_imports_from_base_folder: bool = False,
    ) -> type | None:
        self.calls.append((folder, class_name, current_module, base_folder, verbose))
        if current_module is None:
            assert cleanup_imports_from_base_folder
            return self.users.get(folder)
        return int if class_name == "nnUNetTrainer" else None


@pytest.fixture
def nnunets(monkeypatch: pytest.MonkeyPatch) -> Nnunets:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    return Nnunets()


Find = Callable[..., type | None]


@pytest.fixture
def find(nnunets: Nnunets, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """The wrapped function, called from within nnU-Net, with a trainer and a planner of ours."""
    for package, stub in ((trainers, StubTrainer), (planners, StubPlanner)):
        module = ModuleType(f"{package.__name__}.stub")
        setattr(module, stub.__name__, stub)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    entries: list[Any] = [
        Trainer("StubTrainer", "nnunet_ext.trainers.stub", "a test"),
        Trainer("BrokenTrainer", "nnunet_ext.trainers.no_such_module", "a test"),
    ]
    for entry in entries:
        monkeypatch.setitem(registry.TRAINERS, entry.name, entry)
    planner = Planner("StubPlanner", "nnunet_ext.planners.stub", "StubPlans", "a test")
    monkeypatch.setitem(registry.PLANNERS, planner.name, planner)
    twins = ModuleType("nnunet_ext.trainers.twins")
    setattr(twins, "twin", {"ExtensionTrainerStub": StubTrainer}.get)  # noqa: B010
    monkeypatch.setitem(sys.modules, twins.__name__, twins)
    scope = {"__name__": "nnunetv2.some_module", "find": with_our_names(nnunets)}
    exec("def call(*args, **kwargs): return find(*args, **kwargs)", scope)
    yield scope["call"]  # type: ignore[misc]
    for package in (trainers, planners):
        for name in [name for name in vars(package) if "Stub" in name]:
            delattr(package, name)


@pytest.fixture
def user_folders(
    nnunets: Nnunets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    folders = (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        folder.mkdir()
    listed = os.pathsep.join(["", str(folders[0]), str(tmp_path / "absent"), str(folders[1])])
    monkeypatch.setenv("nnUNet_extTrainer", listed)
    return str(folders[0]), str(folders[1])


class TestNamesOfOurs:
    def test_trainer_is_found_without_nnunets_search(self, find: Find, nnunets: Nnunets) -> None:
        assert find("folder", "StubTrainer", TRAINERS) is StubTrainer
        assert nnunets.calls == []

    def test_planner_is_found_without_nnunets_search(self, find: Find, nnunets: Nnunets) -> None:
        assert find("folder", "StubPlanner", current_module=PLANNERS) is StubPlanner
        assert nnunets.calls == []

    def test_trainer_with_a_length_is_one_and_the_same_class(self, find: Find) -> None:
        trainer = find("folder", "StubTrainer_250epochs", TRAINERS)
        assert trainer is find("folder", "StubTrainer_250epochs", TRAINERS)
        assert trainer is not None
        assert issubclass(trainer, StubTrainer)
        assert trainer.__name__ == "StubTrainer_250epochs"

    def test_twin_of_a_trainer_of_nnunets_is_found(self, find: Find, nnunets: Nnunets) -> None:
        assert find("folder", "ExtensionTrainerStub", TRAINERS) is StubTrainer
        lengthened = find("folder", "ExtensionTrainerStub_20epochs", TRAINERS)
        assert lengthened is find("folder", "ExtensionTrainerStub_20epochs", TRAINERS)
        assert lengthened is not None
        assert issubclass(lengthened, StubTrainer)
        assert nnunets.calls == []

    @pytest.mark.parametrize("root", ["nnunetv2.preprocessing", "nnunetv2.imageio", None])
    def test_are_not_answered_elsewhere(self, find: Find, root: str | None) -> None:
        assert find("folder", "StubTrainer", root, cleanup_imports_from_base_folder=True) is None

    def test_users_trainer_of_the_same_name_wins(
        self, find: Find, nnunets: Nnunets, user_folders: tuple[str, str]
    ) -> None:
        nnunets.users[user_folders[1]] = str
        assert find("folder", "StubTrainer", TRAINERS) is str
        assert [call[0] for call in nnunets.calls] == list(user_folders)
        assert [call[3] for call in nnunets.calls] == list(user_folders)

    @pytest.mark.usefixtures("user_folders")
    def test_are_ours_if_the_user_has_others(self, find: Find) -> None:
        assert find("folder", "StubTrainer", TRAINERS) is StubTrainer

    def test_error_in_our_code_is_shown_as_it_is(self, find: Find) -> None:
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            find("folder", "BrokenTrainer", TRAINERS)

    def test_users_trainer_named_like_a_twin_that_does_not_exist_is_found(
        self, find: Find, nnunets: Nnunets, user_folders: tuple[str, str]
    ) -> None:
        assert find("folder", "ExtensionTrainerMine", TRAINERS) is None  # nnU-Net goes on there
        nnunets.users[user_folders[0]] = str
        options = {"cleanup_imports_from_base_folder": True}
        assert find(user_folders[0], "ExtensionTrainerMine", None, **options) is str

    def test_never_look_like_nnunets(self) -> None:
        names = [name for ours in registry.OURS.values() for name in ours]
        assert not [name for name in names if name.lower().startswith("nnunet")]

    @pytest.mark.parametrize("root", KINDS)
    def test_do_not_exist_in_nnunets_tree(self, root: str) -> None:
        spec = find_spec("nnunetv2")
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(*spec.submodule_search_locations, *root.split(".")[1:])
        trees = [ast.parse(file.read_text("utf-8")) for file in folder.rglob("*.py")]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
        assert len(classes) > 5
        assert not classes & {*registry.TRAINERS, *registry.PLANNERS}
        assert not any(map(registry.TWIN.fullmatch, classes))


THEIRS = """
class Settable:
    def __init__(self, plans, device="cuda"):
        self.num_epochs = 1000

class TheirTrainer(Settable):
    pass

class Reading(Settable):
    epochs_from_name = None

class TheirPlanner:
    pass
"""


@pytest.fixture
def theirs(install: Callable[..., None]) -> None:
    names = ("TheirTrainer", "ExtensionTrainerTheirs", "StubTrainer", "nnUNetTrainer")
    trainers = dict.fromkeys(names, "TheirTrainer") | {"Reading": "Reading"}
    install("theirs", THEIRS, trainers=trainers, planners={"TheirPlanner": "TheirPlanner"})
    install("broken", "1 / 0", trainers={"BrokenOfTheirs": "X"})


@pytest.mark.usefixtures("theirs")
class TestNamesOfOtherPackages:
    @pytest.mark.parametrize("name", ["TheirTrainer", "ExtensionTrainerTheirs"])
    def test_trainer_is_found_without_nnunets_search(
        self, find: Find, nnunets: Nnunets, name: str
    ) -> None:
        found: Any = find("folder", name, TRAINERS)
        assert (found.__module__, found.__name__) == ("theirs", "TheirTrainer")
        assert nnunets.calls == []

    def test_planner_is_found_and_only_as_a_planner(self, find: Find, nnunets: Nnunets) -> None:
        found: Any = find("folder", "TheirPlanner", PLANNERS)
        assert (found.__module__, found.__name__) == ("theirs", "TheirPlanner")
        with pytest.raises(UnknownNameError):
            find("folder", "TheirPlanner", TRAINERS)

    def test_users_trainer_of_the_same_name_wins(
        self, find: Find, nnunets: Nnunets, user_folders: tuple[str, str]
    ) -> None:
        nnunets.users[user_folders[1]] = str
        assert find("folder", "TheirTrainer", TRAINERS) is str

    def test_ours_wins(self, find: Find) -> None:
        assert find("folder", "StubTrainer", TRAINERS) is StubTrainer

    def test_nnunets_wins(self, find: Find, nnunets: Nnunets) -> None:
        assert find("folder", "nnUNetTrainer", TRAINERS) is int

    def test_nnunets_wins_with_a_length_that_it_does_not_have(self, find: Find) -> None:
        with pytest.raises(UnknownNameError, match="called nnUNetTrainer_33epochs"):
            find("folder", "nnUNetTrainer_33epochs", TRAINERS)

    def test_word_in_nnunets_sources_that_is_no_trainer_hides_none(
        self, find: Find, nnunets: Nnunets, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lookup, "occurs_in_nnunet", lambda name: name == "TheirTrainer")
        found: Any = find("folder", "TheirTrainer", TRAINERS)
        assert found.__module__ == "theirs"
        assert len(nnunets.calls) == 1  # nnU-Net was asked first

    @pytest.mark.parametrize("base", ["TheirTrainer", "Reading"])
    def test_trainer_with_a_length_trains_so_long_and_pickles(self, find: Find, base: str) -> None:
        found: Any = find("folder", f"{base}_25epochs", TRAINERS)
        assert found is find("folder", f"{base}_25epochs", TRAINERS)
        assert found.__name__ == f"{base}_25epochs"
        assert pickle.loads(pickle.dumps(found)) is found
        assert str(inspect.signature(found)) == "(plans, device='cuda')"
        made = found({})
        assert 25 in (made.num_epochs, getattr(made, "epochs_from_name", None))
        delattr(trainers, found.__name__)

    def test_broken_one_is_named_with_its_package_and_hides_nothing(self, find: Find) -> None:
        with pytest.raises(UserError, match=r"BrokenOfTheirs of broken .* ZeroDivisionError"):
            find("folder", "BrokenOfTheirs", TRAINERS)
        assert find("folder", "nnUNetTrainer", TRAINERS) is int
        assert find("folder", "StubTrainer", TRAINERS) is StubTrainer
        assert find("folder", "TheirTrainer", TRAINERS) is not None

    def test_name_that_nobody_knows_gets_theirs_as_near_matches(self, find: Find) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean TheirTrainer_25epochs"):
            find("folder", "ThierTrainer_25epochs", TRAINERS)


class TestNamesOfNnunet:
    def test_go_to_nnunet_with_all_arguments(self, find: Find, nnunets: Nnunets) -> None:
        assert find("folder", "nnUNetTrainer", TRAINERS, "base", verbose=True) is int
        assert nnunets.calls == [("folder", "nnUNetTrainer", TRAINERS, "base", True)]

    def test_are_found_even_if_our_package_is_broken(
        self, find: Find, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "nnunet_ext.trainers", None)
        assert find("folder", "nnUNetTrainer", TRAINERS) is int
        with pytest.raises(ImportError, match=r"nnunet_ext\.trainers"):
            find("folder", "StubTrainer", TRAINERS)

    def test_load_nothing_of_ours_but_the_tables(self, site: Path) -> None:
        code = """
            from nnunet_ext.nnunet import discovery; discovery.activate()
            from nnunetv2.utilities.find_objects import recursive_find_python_class as find
            find("folder", "nnUNetTrainer", "nnunetv2.training.nnUNetTrainer")
            find("folder", "ExperimentPlanner", "nnunetv2.experiment_planning")
            print(*sorted(name for name in sys.modules if name.startswith("nnunet_ext.")))
            """
        assert run(site, code).split() == [
            f"nnunet_ext.{name}"
            for name in (
                *("_common", "_common.errors", "_common.near", "nnunet", "nnunet.discovery"),
                *("nnunet.lookup", "registry"),
            )
        ]


class TestNamesThatNobodyKnows:
    def test_trainer_gets_near_matches(self, find: Find) -> None:
        with pytest.raises(
            UnknownNameError, match=r"no trainer called .* Did you mean StubTrainer"
        ):
            find("folder", "StubTrainr", TRAINERS)

    def test_twin_gets_near_matches_among_the_twins_of_nnunets_trainers(
        self, find: Find, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = ModuleType(f"{TRAINERS}.some")
        variant = type("nnUNetTrainerDA5", (), {"__module__": module.__name__})
        module.nnUNetTrainerDA5 = variant  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        with pytest.raises(UnknownNameError, match="Did you mean ExtensionTrainerDA5_20epochs"):
            find("folder", "ExtensionTrainerDA55_20epochs", TRAINERS)

    def test_trainer_with_a_length_gets_near_matches_of_that_length(self, find: Find) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean StubTrainer_250epochs"):
            find("folder", "StubTrainr_250epochs", TRAINERS)

    def test_planner_gets_near_matches(self, find: Find) -> None:
        with pytest.raises(UnknownNameError, match=r"planner .* Did you mean StubPlanner"):
            find("folder", "StubPlans", current_module=PLANNERS)

    def test_nnunets_own_names_are_near_matches_too(
        self, find: Find, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = ModuleType(f"{PLANNERS}.some")
        extractor = type("DatasetFingerprintExtractor", (), {"__module__": module.__name__})
        module.DatasetFingerprintExtractor = extractor  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        with pytest.raises(UnknownNameError, match="mean DatasetFingerprintExtractor"):
            find("folder", "DatasetFingerprintExtracter", current_module=PLANNERS)

    def test_error_lists_what_we_have_if_nothing_is_near(self, find: Find) -> None:
        with pytest.raises(UnknownNameError, match=r"nnunet_ext has: .*StubTrainer") as caught:
            find("folder", "Xyz", TRAINERS)
        assert "Did you mean" not in str(caught.value)
        assert isinstance(caught.value, RuntimeError)  # what nnU-Net itself would raise
        assert isinstance(caught.value, UserError)

    def test_trainer_is_refused_only_after_the_last_user_folder(
        self, find: Find, user_folders: tuple[str, str]
    ) -> None:
        options = {"cleanup_imports_from_base_folder": True}
        assert find("folder", "StubTrainr", TRAINERS) is None
        assert find(user_folders[0], "StubTrainr", None, **options) is None
        with pytest.raises(UnknownNameError, match=r"nor in nnUNet_extTrainer .*StubTrainer"):
            find(user_folders[1], "StubTrainr", None, **options)

    @pytest.mark.parametrize("root", [*KINDS, "nnunetv2.preprocessing"])
    def test_are_none_to_other_packages_as_ever(self, nnunets: Nnunets, root: str) -> None:
        assert with_our_names(nnunets)("folder", "NoSuchClass", root) is None

    def test_are_none_outside_trainers_and_planners_as_ever(self, find: Find) -> None:
        assert find("folder", "NoSuchClass", "nnunetv2.preprocessing") is None
