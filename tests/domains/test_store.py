"""Both copies of dataset.json are kept in step."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.domains.store import case_names, dataset_json_paths, save_domains
from tests.tiny import CASES, DATASET, TWO_SITES, World

DOMAINS = dict(zip(CASES, TWO_SITES, strict=True))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    world = make_world()
    world.write_raw()
    return world


def copies(world: World) -> list[Path]:
    return [world.root / name / DATASET / "dataset.json" for name in ("raw", "preprocessed")]


def test_domains_are_written_into_both_copies_and_nothing_else_changes(world: World) -> None:
    before = json.loads(copies(world)[0].read_text())
    os.chmod(copies(world)[0], 0o640)
    assert save_domains(DATASET, DOMAINS) == copies(world)
    for path in copies(world):
        assert json.loads(path.read_text()) == before | {"domains": DOMAINS}
        assert [each.name for each in path.parent.glob("*dataset.json*")] == ["dataset.json"]
    assert copies(world)[0].stat().st_mode & 0o777 == 0o640


def test_a_copy_that_has_the_domains_already_is_left_alone(world: World) -> None:
    raw, preprocessed = copies(world)
    save_domains(DATASET, DOMAINS)
    preprocessed.write_text(json.dumps(json.loads(preprocessed.read_text()) | {"domains": {}}))
    before = raw.stat()
    assert save_domains(DATASET, DOMAINS) == [preprocessed]
    assert raw.stat() == before
    assert save_domains(DATASET, DOMAINS) == []


def test_a_link_to_dataset_json_stays_a_link(world: World, tmp_path: Path) -> None:
    path = copies(world)[0]
    target = path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(target)
    save_domains(DATASET, DOMAINS)
    assert path.is_symlink()
    assert json.loads(target.read_text())["domains"] == DOMAINS


@pytest.mark.parametrize("number", [1, 2])
def test_a_copy_that_cannot_be_written_is_named_and_no_partial_file_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = [path.read_bytes() for path in copies(world)]
    replace, calls = os.replace, []

    def fail(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == number:
            raise PermissionError(13, "Permission denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"Cannot write .*dataset\.json: Permission denied"):
        save_domains(DATASET, DOMAINS)
    after = [path.read_bytes() for path in copies(world)]
    assert after[0] == before[0]
    assert (after == before) == (number == 1)
    assert not list(world.root.rglob("*.partial"))


@pytest.mark.parametrize("missing", ["raw", "preprocessed"])
def test_one_copy_is_enough(world: World, missing: str) -> None:
    rmtree(world.root / missing / DATASET)
    assert case_names(DATASET) == list(CASES)
    (path,) = dataset_json_paths(DATASET)
    save_domains(DATASET, DOMAINS)
    assert json.loads(path.read_text())["domains"] == DOMAINS


def test_no_copy_at_all_is_an_error_that_names_both(world: World) -> None:
    for path in copies(world):
        path.unlink()
    with pytest.raises(UserError, match=r"neither .*raw.* nor .*preprocessed"):
        dataset_json_paths(DATASET)
