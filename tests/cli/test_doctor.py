import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nnunet_ext
from nnunet_ext import registry
from nnunet_ext.cli import checks, doctor
from nnunet_ext.cli.checks import Finding

HERE = Path(nnunet_ext.__file__).parent
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
CLASSES = {
    name: {"module": entry.module, "file": "somewhere"}
    for ours in registry.OURS.values()
    for name, entry in ours.items()
}
DEVICES: dict[str, Any] = {"torch": "2", "cuda": None, "gpus": [], "mps": False}
FACTS: dict[str, Any] = {
    "start_method": "spawn",
    "site_folders": [str(HERE.parent)],
    "start_up_files": ["site/nnunet_ext.pth"],
    "package": str(HERE),
    "active": True,
    "status": "active",
    "classes": CLASSES,
    "devices": DEVICES,
}
INACTIVE = FACTS | {"active": False, "status": "not active: because", "classes": {}}


def only(findings: Any, level: str) -> Finding:
    """Return the finding of this level; there must be exactly one."""
    (found,) = [finding for finding in findings if finding.level == level]
    return found


# ----------------------------------------------------------------------------------- the command


class Probe:
    """A fresh interpreter that has answered."""

    returncode = 1

    def __init__(self, output: str, errors: str = "") -> None:
        self.answer = output, errors

    def communicate(self, timeout: float) -> tuple[str, str]:
        return self.answer


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything is as it should be."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(doctor, "_start_probe", lambda: None)
    monkeypatch.setattr(doctor, "_finish_probe", lambda _: FACTS)
    monkeypatch.setattr(checks, "check_versions", lambda: iter(()))


@pytest.mark.usefixtures("fine")
def test_healthy_installation_exits_with_0(cli: Callable[..., Any]) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "PROBLEM" not in outcome.out
    assert "Problems: 0, " in outcome.out
    assert all(name in outcome.out for name in CLASSES)


@pytest.mark.usefixtures("fine")
def test_other_programs_get_every_finding_and_the_same_exit_code(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_results")
    outcome = cli("doctor", "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)
    (problem,) = [
        each for part in found["sections"].values() for each in part if each["level"] == "PROBLEM"
    ]
    assert problem["subject"] == "nnUNet_results"
    assert problem["cure"]
    assert found["problems"] == 1
    assert {each["subject"] for each in found["sections"]["Discovery"]} >= CLASSES.keys()


def test_torch_is_left_to_the_fresh_interpreter() -> None:
    code = f"""
import sys
from nnunet_ext.cli import doctor, main
doctor._start_probe, doctor._finish_probe = lambda: None, lambda _: {FACTS!r}
try: main(["doctor"])
except SystemExit: print("LOADED", *({{"torch", "nnunetv2", "numpy"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LOADED", done.stderr


@pytest.mark.usefixtures("fine")
def test_unset_folder_exits_with_1_and_says_how_to_set_it(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_results")
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "nnUNet_results=FOLDER" in outcome.out or "setx nnUNet_results" in outcome.out
    assert "Problems: 1, " in outcome.out
    assert outcome.err == ""


def test_probe_asks_a_fresh_interpreter_as_nnunets_commands_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NNUNET_EXT_AUTOLOAD", "0")  # looking up classes would cost seconds
    facts = doctor._finish_probe(doctor._start_probe())
    assert facts.keys() == FACTS.keys()
    assert facts["devices"].keys() == DEVICES.keys()
    assert facts["start_method"] in ("fork", "spawn", "forkserver")
    assert not facts["active"]
    assert not facts["classes"]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe("", "Traceback\nOSError: libcudart.so"), "OSError: libcudart.so"),
        (Probe("", ""), "no message"),
    ],
)
def test_probe_that_dies_is_reported(probe: Any, message: str) -> None:
    found = only(checks.check_discovery(doctor._finish_probe(probe), {}), "PROBLEM")
    assert message in found.detail


def test_probe_that_hangs_is_ended_and_reported() -> None:
    killed = []

    def hang(timeout: float) -> tuple[str, str]:
        raise subprocess.TimeoutExpired("python", timeout)

    probe: Any = SimpleNamespace(communicate=hang, kill=lambda: killed.append(True))
    assert "did not answer" in doctor._finish_probe(probe)["error"]
    assert killed


# ------------------------------------------------------------------------------------- discovery


def test_active_discovery_shows_the_class_of_every_name() -> None:
    findings = list(checks.check_discovery(FACTS, {}))
    assert {finding.level for finding in findings} == {"ok"}
    assert {finding.subject for finding in findings} >= CLASSES.keys()


@pytest.mark.parametrize(
    ("facts", "environment", "why", "cure"),
    [
        ({}, {"NNUNET_EXT_AUTOLOAD": "0"}, "switched off", "unset NNUNET_EXT_AUTOLOAD"),
        ({"package": None}, {}, "stale installation: site/nnunet_ext.pth", "force-reinstall"),
        ({"package": None, "start_up_files": []}, {}, "not installed", "pip install"),
        ({"start_up_files": []}, {}, "nnunet_ext.pth is missing", "force-reinstall"),
        (
            {"start_up_files": [], "package": "/elsewhere/nnunet_ext"},
            {},
            "--target",
            "nnunet-ext run",
        ),
        ({}, {}, "because", "force-reinstall"),
    ],
)
def test_inactive_discovery_says_why_and_what_to_do(
    facts: dict[str, Any], environment: dict[str, str], why: str, cure: str
) -> None:
    found = only(checks.check_discovery(INACTIVE | facts, environment), "PROBLEM")
    assert why in found.detail
    assert cure in found.cure


def test_second_copy_of_the_package_is_a_warning() -> None:
    facts = FACTS | {"package": "/elsewhere/nnunet_ext"}
    found = only(checks.check_discovery(facts, {}), "warning")
    assert "/elsewhere/nnunet_ext" in found.detail


def test_class_of_the_user_that_wins_is_a_warning() -> None:
    classes = CLASSES | {"CateNormTrainer": {"module": "mine", "file": "mine.py"}}
    found = only(checks.check_discovery(FACTS | {"classes": classes}, {}), "warning")
    assert found.subject == "CateNormTrainer"
    assert "mine.py" in found.detail


def test_class_that_cannot_be_imported_is_a_problem() -> None:
    classes = CLASSES | {"CateNormTrainer": {"error": "ImportError: no"}}
    found = only(checks.check_discovery(FACTS | {"classes": classes}, {}), "PROBLEM")
    assert found.detail == "ImportError: no"


def test_classes_of_other_packages_are_checked_and_their_faults_are_theirs(
    install: Callable[..., None],
) -> None:
    names = ("TheirTrainer", "LostTrainer", "OtherTrainer")
    install("theirs", "", trainers=dict.fromkeys(names, "X"))
    classes = CLASSES | {
        "TheirTrainer": {"module": "theirs.inside", "file": "theirs/inside.py"},
        "LostTrainer": {"error": "UserError: no"},
        "OtherTrainer": {"module": "somebody", "file": "somebody.py"},
    }
    found = {f.subject: f for f in checks.check_discovery(FACTS | {"classes": classes}, {})}
    assert found["TheirTrainer"].level == "ok"
    assert found["LostTrainer"].level == "PROBLEM"
    assert "uninstall theirs" in found["LostTrainer"].cure
    assert found["OtherTrainer"].level == "warning"
    assert "somebody.py" in found["OtherTrainer"].detail


# --------------------------------------------------------------------------------------- folders


def test_unset_folders_are_problems() -> None:
    findings = list(checks.check_folders({}))
    assert [finding.subject for finding in findings] == list(VARIABLES)
    assert {finding.level for finding in findings} == {"PROBLEM"}


def test_folder_that_nnunet_will_make_is_a_warning(tmp_path: Path) -> None:
    environment = dict.fromkeys(VARIABLES, str(tmp_path))
    environment["nnUNet_results"] = str(tmp_path / "a" / "b")
    found = only(checks.check_folders(environment), "warning")
    assert found.subject == "nnUNet_results"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("variable", VARIABLES)
def test_file_in_place_of_a_folder_is_a_problem(tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").touch()
    environment = dict.fromkeys(VARIABLES, str(tmp_path)) | {variable: str(tmp_path / "file")}
    assert only(checks.check_folders(environment), "PROBLEM").subject == variable


def test_only_raw_data_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    levels = [f.level for f in checks.check_folders(dict.fromkeys(VARIABLES, str(tmp_path)))]
    assert levels == ["ok", "PROBLEM", "PROBLEM"]


def test_folders_of_the_user_are_checked_one_by_one(tmp_path: Path) -> None:
    environment = dict.fromkeys(VARIABLES, str(tmp_path))
    environment["nnUNet_extTrainer"] = os.pathsep.join([str(tmp_path), "", "/no/such"])
    *_, good, bad = checks.check_folders(environment)
    assert good.level == "ok"
    assert bad.level == "warning"
    assert "/no/such" in bad.detail


# ---------------------------------------------------------------------- versions, devices, compiler


def test_requirement_that_is_not_met_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["nnunetv2>=99", 'x>1; extra == "dev"'])
    found = only(checks.check_versions(), "PROBLEM")
    assert "nnunetv2>=99" in found.detail
    assert found.cure == 'pip install "nnunetv2>=99"'


def test_gpus_are_named_and_need_a_compiler() -> None:
    facts = FACTS | {"devices": DEVICES | {"gpus": ["Fast One, 24.0 GiB", "Slow One, 8.0 GiB"]}}
    found = {f.subject: f.detail for f in checks.check_devices(facts, {"nnUNet_compile": "true"})}
    assert found["cuda:0"] == "Fast One, 24.0 GiB"
    assert found["cuda:1"] == "Slow One, 8.0 GiB"
    assert "cuda" not in found
    assert found["torch.compile"] != "not used by nnU-Net here" or os.name == "nt"


def test_torch_that_cannot_be_imported_is_a_problem() -> None:
    facts = FACTS | {"devices": {"error": "OSError: libcudart.so"}}
    (found,) = checks.check_devices(facts, {})
    assert found.level == "PROBLEM"
    assert "libcudart.so" in found.detail


def test_missing_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    found = only(checks.check_devices(FACTS, {}), "warning")
    assert "there is a driver" in found.detail
    assert "-device cpu" in found.cure


@pytest.mark.skipif(os.name == "nt", reason="nnU-Net does not compile on Windows")
def test_missing_compiler_is_a_problem_only_if_nnunet_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda _: None)
    found = checks._check_compiler({}, cuda=True)
    assert found.level == "PROBLEM"
    assert "nnUNet_compile=false" in found.cure
    for environment, cuda in (({}, False), ({"nnUNet_compile": "f"}, True)):
        assert checks._check_compiler(environment, cuda).level == "ok"
