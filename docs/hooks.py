"""What MkDocs does besides: pages from the code and from outside docs, and links between them.

The home page is README.md, records are pages of their own, and the reference of settings, commands,
trainers and planners is asked of the code, so that nothing is written twice.
"""

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "studies/records/README.md",
    "studies/records/*/report.md",
    "studies/experiments/README.md",
)
"""Pages of the repository that are shown, too."""

LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?:|#|mailto:)([^()\s#]*)(#[^()\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
HELP_WIDTH = "96"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs and those that the code writes."""
    pages = {_address(path): path.read_text(encoding="utf-8") for path in _outside()}
    pages["reference/settings.md"] = settings_page()
    pages["reference/commands.md"] = commands_page()
    pages["reference/trainers.md"] = trainers_page()
    for address, content in pages.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at pages of the site; name what is not one of them."""
    source = _source(page.file.src_uri)
    fences = [match.span() for match in FENCE.finditer(markdown)]

    def pointed(match: re.Match[str]) -> str:
        if any(begin <= match.start() < end for begin, end in fences):
            return match[0]
        image, text, target, part = match.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        address = _address(ROOT / path)
        if files.get_file_from_path(address):
            start = posixpath.dirname(page.file.src_uri) or "."
            return f"{image}[{text}]({posixpath.relpath(address, start)}{part})"
        if not (ROOT / path).exists():
            return match[0]  # which MkDocs then refuses
        if config.repo_url:
            return f"{image}[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(pointed, markdown).replace(' src="docs/', ' src="')


def _outside() -> Iterator[Path]:
    for pattern in OUTSIDE:
        yield from sorted(ROOT.glob(pattern))


def _address(path: Path) -> str:
    """Where a file of the repository is in the site."""
    inside = path.relative_to(ROOT).as_posix()
    return "index.md" if inside == "README.md" else inside.removeprefix("docs/")


def _source(address: str) -> str:
    """The opposite: where a page of the site is in the repository."""
    outside = {_address(path): path.relative_to(ROOT).as_posix() for path in _outside()}
    return outside.get(address, f"docs/{address}")


# --------------------------------------------------------------------------- pages from the code


def settings_page() -> str:
    """Every setting with its default, what is allowed and what it does."""
    from nnunet_ext import registry
    from nnunet_ext.settings import TrainingSettings

    parts = [
        "# Settings",
        "They stand in a configuration of the plans, under `nnunet_ext`; `nnunet-ext configure` "
        "writes and checks them ([Hyper-parameters](../index.md#hyper-parameters)). `null` keeps "
        "nnU-Net's own value.",
        "## Of training itself, for every trainer here",
        _settings(TrainingSettings, ""),
    ]
    for method, settings_class in registry.settings_classes().items():
        parts += [f"## Of [{method}](../{method}.md)", _settings(settings_class, f"{method}.")]
    return "\n\n".join(parts) + "\n"


def _settings(settings_class: type, prefix: str) -> str:
    from nnunet_ext.cli.settings_table import settings_of

    rows = [
        (f"`{prefix}{name}`", f"`{default}`", f"`{allowed}`", description)
        for name, default, allowed, description in settings_of(settings_class)
    ]
    return _table(("setting", "default", "allowed", "what it does"), rows)


def trainers_page() -> str:
    """Trainers and planners as the registry has them."""
    from nnunet_ext.registry import PLANNERS, TRAINERS

    trainers = [
        (f"`{name}`", each.purpose, each.cost, f"[{each.paper}]({each.link})" if each.link else "")
        for name, each in TRAINERS.items()
    ]
    planners = [(f"`{n}`", f"`{p.plans}`", p.purpose, p.cost) for n, p in PLANNERS.items()]
    return "\n\n".join(
        [
            "# Trainers and planners",
            "Every trainer also exists with nnU-Net's suffix for the length of training "
            "(`CateNormTrainer_250epochs`), and every trainer of nnU-Net's has a twin that reads "
            "settings (`ExtensionTrainerDA5` for `nnUNetTrainerDA5`).",
            _table(("trainer, `-tr`", "what it is for", "cost", "paper"), trainers),
            _table(("planner, `-pl`", "plans, `-p`", "what it is for", "cost"), planners),
        ]
    )


def commands_page() -> str:
    """The help of every command, as it is shown."""
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = HELP_WIDTH
    import typer

    from nnunet_ext.cli.app import COMMANDS, app

    group: Any = typer.main.get_command(app)
    context = group.make_context("nnunet-ext", [], resilient_parsing=True)
    parts = ["# Commands", "Also as `python -m nnunet_ext`."]
    parts += _help("nnunet-ext", group, context, 2)
    for name in COMMANDS:
        command = group.get_command(context, name)
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        parts += _help(f"nnunet-ext {name}", command, inner, 2)
        for sub, each in getattr(command, "commands", {}).items():
            deeper = each.make_context(sub, [], parent=inner, resilient_parsing=True)
            parts += _help(f"nnunet-ext {name} {sub}", each, deeper, 3)
    return "\n\n".join(parts) + "\n"


def _help(name: str, command: Any, context: Any, level: int) -> list[str]:
    return [f"{'#' * level} {name}", f"```text\n{command.get_help(context).strip()}\n```"]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading)]
    lines += [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
