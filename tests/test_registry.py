"""The registry: complete, true, and unharmed by what other packages do."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import get_args

import pytest

from nnunet_ext import planners, registry, trainers
from nnunet_ext._common.errors import UserError
from nnunet_ext.registry import METHODS, PLANNERS, TRAINERS

ROOT = Path(__file__).resolve().parents[1]


# ------------------------------------------------------------------------------------------ ours


def test_importing_it_takes_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import nnunet_ext.registry\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names), 'importlib.metadata' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["nnunet_ext", "False"], done.stderr


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_is_where_its_entry_says_and_reads_the_settings_named_there(
    name: str,
) -> None:
    entry, trainer = TRAINERS[name], getattr(trainers, name)
    assert (trainer.__module__, trainer.__name__) == (entry.module, name)
    assert trainer.collected_method_settings() == entry.settings_classes
    assert entry.purpose
    assert entry.cost
    assert entry.paper


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_is_where_its_entry_says_and_names_its_plans(name: str) -> None:
    entry, planner = PLANNERS[name], getattr(planners, name)
    assert (planner.__module__, planner.__name__) == (entry.module, name)
    assert planner.default_plans_name == entry.plans
    assert pickle.loads(pickle.dumps(planner)) is planner
    assert entry.purpose
    assert entry.cost


def test_settings_of_all_methods_are_read_without_torch() -> None:
    code = "import sys; from nnunet_ext import registry; classes = registry.settings_classes()\n"
    code += "assert tuple(classes) == registry.METHODS\n"
    code += "assert not {'torch', 'nnunetv2', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_readme_lists_what_the_registry_has() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = []
    for name, trainer in TRAINERS.items():
        (page,) = list(trainer.settings) if len(trainer.settings) == 1 else [""]
        cell = f"[`{name}`](docs/{page}.md)" if page else f"`{name}`"
        paper = f"[{trainer.paper}]({trainer.link})" if trainer.link else trainer.paper
        listed.append(f"| {trainer.purpose} | {cell} | {paper} |\n")
    planned = [f"| `{name}` | `{p.plans}` | {p.purpose} |\n" for name, p in PLANNERS.items()]
    assert [row for row in listed + planned if row not in readme] == []
    for rows in (listed, planned):  # all together, and nothing else
        assert "|---|---|---|\n" + "".join(rows) + "\n" in readme
    assert all((ROOT / f"docs/{method}.md").is_file() for method in METHODS)


# ---------------------------------------------------------------------------------- other packages


def test_classes_of_other_packages_are_known_by_name_before_anything_is_imported(
    install: Callable[..., None],
) -> None:
    points = {"trainers": {"TheirTrainer": "Any"}, "planners": {"TheirPlanner": "Any"}}
    install("theirs", "raise AssertionError('imported')", **points)
    for kind, names in points.items():
        found = registry.others(kind)
        assert names.keys() <= found.keys()
        assert {registry.package_of(found[name]) for name in names} == {"theirs"}
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("code", ["1 / 0", "import no_such_module", "raise SystemExit", "x ="])
def test_a_broken_package_is_named_when_asked_for_and_hides_nobody_elses(
    install: Callable[..., None], code: str
) -> None:
    install("broken", code, trainers={"BrokenTrainer": "BrokenTrainer"})
    reads = "collected_method_settings = staticmethod(lambda: {'mine': int})"
    install("sound", f"class SoundTrainer:\n {reads}", trainers={"SoundTrainer": "SoundTrainer"})
    point = registry.others("trainers")["BrokenTrainer"]
    with pytest.raises(UserError, match="BrokenTrainer of broken cannot be imported"):
        registry.load_other(point)
    assert registry.others_settings()["SoundTrainer"] == {"mine": int}


def test_damaged_metadata_of_any_package_hides_nobody_elses(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install("damaged", "", trainers={"DamagedTrainer": "DamagedTrainer"})
    metadata = tmp_path / "site" / "damaged-1.0.dist-info"
    (metadata / "entry_points.txt").write_text("[a]\nno equals sign\n")
    with pytest.raises(Exception, match="argument"):
        _ = PathDistribution(metadata).entry_points
    install("sound", "", trainers={"SoundTrainer": "SoundTrainer"})
    assert "SoundTrainer" in registry.others("trainers")


def test_kinds_are_those_of_the_entry_point_groups() -> None:
    assert set(get_args(registry.Kind)) == registry.OURS.keys()
