"""What surrounds the code where it is published: workflows, forms, citation."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nnunet_ext

ROOT = Path(__file__).resolve().parents[1]
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": "CITATION.cff",
}


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_the_hosting_service_are_as_it_wants_them(schema: str) -> None:
    pytest.importorskip("check_jsonschema", reason="extra dev is not installed")
    files = sorted(ROOT.glob(SCHEMAS[schema]))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_citation_names_this_version() -> None:
    assert read("CITATION.cff")["version"] == nnunet_ext.__version__


def test_workflow_tests_the_oldest_and_the_newest_of_what_we_allow() -> None:
    matrix = read(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu", "macos", "windows"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={matrix["python"][0]}"' in project
    oldest = {each["nnunet"]: each["python"] for each in matrix["include"]}
    assert '"nnunetv2>=2.8,<3"' in project
    assert oldest["nnunetv2==2.8.0"] == matrix["python"][0]
    # only what nobody has released may fail
    unreleased = [each for each in matrix["include"] if each.get("may-fail")]
    assert all("git+" in each["nnunet"] or each["python"] > "3.14" for each in unreleased)
