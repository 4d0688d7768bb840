"""README and docs: what they show can be typed, compiled, followed and built."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from nnunet_ext.cli.app import COMMANDS, app
from nnunet_ext.nnunet.commands import nnunet_commands
from nnunet_ext.registry import METHODS, TRAINERS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOK = DOCS / "first_hour.ipynb"
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\[\]]*\]\((?!https?:|mailto:)([^()\s]*)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [code for language, code in FENCED.findall(text) if language in languages]


def commands(path: Path) -> Iterator[str]:
    """Command lines in blocks of a page, or in a notebook, without comments."""
    text = path.read_text(encoding="utf-8")
    if path == NOTEBOOK:
        cells = json.loads(text)["cells"]
        lines = "".join("".join(cell["source"]) + "\n" for cell in cells).replace("\n!", "\n    ")
    else:
        indented = [line for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]
        lines = "\n".join([*indented, *blocks(path, "bash", "sh", "shell")])
    for line in lines.replace("\\\n", " ").splitlines():
        command = re.sub(r"^\$ | &$", "", line.strip()).partition("  #")[0]
        if command.startswith(("nnunet-ext ", "nnUNetv2_")) and "..." not in command:
            yield command


def parse(command: str) -> None:
    """Let the command line's own parser read it, without doing anything."""
    words = shlex.split(command, comments=True)[1:]
    group: Any = typer.main.get_command(app)
    context = group.make_context("nnunet-ext", [], resilient_parsing=True)
    while words and hasattr(group, "get_command"):
        name, *words = words
        if name.startswith("-"):  # an option of the command itself
            assert name in {option for each in group.params for option in each.opts}
            return
        group = group.get_command(context, name)
        assert group is not None, f"no command {name}"
    group.make_context(name, words)


@pytest.mark.parametrize("path", [*PAGES, NOTEBOOK], ids=name_of)
def test_commands_that_are_shown_are_understood(path: Path) -> None:
    known = nnunet_commands()
    for command in commands(path):
        if command.startswith("nnUNetv2_"):
            assert command.split()[0] in known, command
            continue
        try:
            parse(command)
        except Exception as error:
            pytest.fail(f"{command}: {getattr(error, 'message', error)}")


def test_a_command_with_a_misspelt_option_would_be_noticed() -> None:
    parse("nnunet-ext list CateNormTrainer --json")
    with pytest.raises(Exception, match="--jsn"):
        parse("nnunet-ext list CateNormTrainer --jsn")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_blocks_of_python_and_json_are_valid(path: Path) -> None:
    for code in blocks(path, "python"):
        compile(code, name_of(path), "exec")
    for code in blocks(path, "json"):
        json.loads(code)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_to_files(path: Path) -> None:
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in LINK.findall(text)]
    # what the site's hook writes is not in the repository
    written = [t for t in targets if t and not t.startswith("reference/")]
    assert [t for t in written if not (path.parent / t).exists()] == []


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in navigation] == []


@pytest.mark.parametrize("method", METHODS)
def test_page_of_a_method_has_its_scheme_and_says_when(method: str) -> None:
    schemes = pytest.importorskip("docs.schemes")
    text = (DOCS / f"{method}.md").read_text(encoding="utf-8")
    assert f"](schemes/{method}.svg)" in text
    assert "## When to use it" in text
    assert re.search(r"[Dd]o not (use|expect)", text)
    drawn = (DOCS / "schemes" / f"{method}.svg").read_text(encoding="utf-8")
    words = [text.get_text().split("\n") for text in schemes.SCHEMES[method]().axes.texts]
    assert [line for text in words for line in text if line and line not in drawn] == []


def test_table_of_methods_has_every_trainer_of_one_method() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    names = [name for name, trainer in TRAINERS.items() if len(trainer.settings) == 1]
    assert [name for name in [*names, "nnUNetTrainerDA5"] if f"| `{name}` |" not in text] == []


def test_reference_shows_every_command_and_every_setting() -> None:
    pytest.importorskip("mkdocs", reason="extra docs is not installed")
    from docs import hooks
    from nnunet_ext import registry
    from nnunet_ext.cli.settings_table import settings_of

    page = hooks.commands_page()
    assert [name for name in COMMANDS if f"## nnunet-ext {name}\n" not in page] == []
    assert "### nnunet-ext benchmark report\n" in page
    settings = hooks.settings_page()
    for method, settings_class in registry.settings_classes().items():
        names = [f"`{method}.{each.name}`" for each in settings_of(settings_class)]
        assert [name for name in names if name not in settings] == []


@pytest.mark.slow
def test_table_of_methods_is_what_the_records_give(tmp_path: Path) -> None:
    from studies import summarise

    assert summarise.methods() == (DOCS / "methods.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    built = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert {"tutorial", "methods", "catenorm"} <= built


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="extra docs is not installed")
    nbformat = pytest.importorskip("nbformat", reason="extra docs is not installed")
    pytest.importorskip("ipykernel", reason="extra docs is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # the kernel looks where this interpreter does
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert "Traceback" not in printed
    assert "Error: " not in printed
    assert (tmp_path / "first_hour" / "page" / "index.html").is_file()
    assert (tmp_path / "first_hour" / "predicted" / "evaluation.csv").is_file()
