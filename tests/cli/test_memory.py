import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import Outcome

CLI = Callable[..., Outcome]


@pytest.fixture
def world(make_world: Callable[..., tiny.World]) -> tiny.World:
    return make_world()


@pytest.mark.usefixtures("world")
def test_a_table_shows_each_phase_and_what_fits(cli: CLI) -> None:
    options = ("-c", tiny.BASE, "-p", tiny.PLANS, "-tr", "CateNormTrainer", "--gpu", "8")
    outcome = cli("memory", "777", *options)
    assert outcome.code == 0, outcome.err
    assert "CateNormTrainer, tiny_base of TinyPlans: patch 16x16x16, batch 2" in outcome.out
    for word in (
        "prediction",
        "activations",
        "training fits 8 GB",
        "Largest batch",
        "Largest patch",
    ):
        assert word in outcome.out
    assert max(map(len, outcome.out.splitlines()[1:9])) <= 80


@pytest.mark.usefixtures("world")
def test_json_holds_bytes_of_every_kind(cli: CLI) -> None:
    options = ("-c", tiny.BASE, "-p", tiny.PLANS, "--json", "--gpu", "0.1")
    report = json.loads(cli("memory", "777", *options).out)
    assert report["trainer"] == "nnUNetTrainer"
    for peak in report["peaks"].values():
        assert peak.pop("bytes") == sum(peak.values())
    assert report["gpu"]["training_fits"] is True
    assert report["gpu"]["bytes"] < 0.1 * 2**30


def test_a_models_folder_is_enough(cli: CLI, world: tiny.World, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "plans.json").write_text(json.dumps(world.plans()))
    (model / "dataset.json").write_text(json.dumps(world.task.dataset_json))
    outcome = cli("memory", str(model), "-c", tiny.CONFIGURATION)
    assert outcome.code == 0, outcome.err
    assert "training needs a GPU of" in outcome.out


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("777", "-c", "3d", "-p", tiny.PLANS), "There are: tiny_base, tiny_lowres, tiny."),
        (("777", "-c", tiny.BASE, "-p", "None"), "There are: TinyPlans."),
        (("778", "-c", tiny.BASE), "There are: Dataset777_Tiny."),
        (("777", "-c", tiny.BASE, "-p", tiny.PLANS, "-tr", "CatNormTrainer"), "CateNormTrainer"),
    ],
)
def test_what_does_not_exist_gets_what_there_is(
    cli: CLI, options: tuple[str, ...], message: str
) -> None:
    outcome = cli("memory", *options)
    assert outcome.code == 1
    assert message in outcome.err.replace("\n", " ")
