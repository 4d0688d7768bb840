"""The package on the page about own trainers, installed into a fresh environment and trained."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import PROJECT, Environment

if TYPE_CHECKING:
    from tests.tiny import World

PAGE = PROJECT / "docs" / "own_trainer.md"
NAME = "ConfidencePenaltyTrainer"

TRAIN = f"""
from multiprocessing import get_context

from nnunetv2.run.run_training import run_training_entry
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(find, ("{NAME}_1epochs",)) is find("{NAME}_1epochs")
    run_training_entry()
"""


@pytest.fixture(scope="module")
def package(wheel: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with what the page shows."""
    folder = tmp_path_factory.mktemp("package")
    files = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)
    assert [name for name, _ in files] == ["pyproject.toml", "confidence_penalty.py"]
    for name, content in files:
        (folder / name).write_text(content, encoding="utf-8")
    wheel.pip("install", "--no-deps", "--no-build-isolation", "--no-index", str(folder))
    return wheel


def test_commands_of_the_page_are_those_that_are_tested_here() -> None:
    (_, *commands) = re.findall(r"^(?:pip|nnunet-ext|nnUNetv2_\w+) .+$", PAGE.read_text(), re.M)
    assert commands == [
        f"nnunet-ext list {NAME}",
        f"nnUNetv2_train 4 3d_fullres 0 -tr {NAME}",
        "nnunet-ext configure 4 -c 3d_fullres --name 3d_unsure --set confidence_penalty.weight=0.3",
        f"nnUNetv2_train 4 3d_unsure 0 -tr {NAME}_50epochs",
    ]


def test_trainer_of_the_page_is_listed(package: Environment) -> None:
    said = " ".join(package.run("-m", "nnunet_ext", "list", NAME).stdout.split())
    for text in (
        "Rewards entropy, so that the network is less sure of itself. (from confidence-penalty)",
        "arXiv 1701.06548",
        "confidence_penalty.weight 0.1",
        f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {NAME}",
    ):
        assert text in said


@pytest.mark.slow
def test_trainer_of_the_page_is_configured_found_and_trained(
    package: Environment, make_world: Callable[..., World]
) -> None:
    from tests.tiny import CONFIGURATION, DATASET, PLANS

    world = make_world(dim=2)
    data, options = DATASET[7:10], ("-p", PLANS)
    setting = ("--set", "confidence_penalty.weight=0.3")
    new = ("-c", CONFIGURATION, "--name", "unsure", *setting)
    configured = package.run("-m", "nnunet_ext", "configure", data, *options, *new).stdout
    assert f"nnUNetv2_train {data} unsure FOLD -tr {NAME} -p {PLANS}" in configured
    trainer = f"{NAME}_1epochs"
    # each worker of the validation would take seconds to start
    package.run(
        *("-c", TRAIN, data, "unsure", "0", "-tr", trainer, *options, "-device", "cpu"),
        nnUNet_def_n_proc="1",
    )
    (model,) = world.results.glob(f"{trainer}__*__unsure/fold_0")
    with (model / "losses.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)  # one epoch
    assert float(row["confidence"]) < 0
    assert (model / "checkpoint_final.pth").is_file()
    assert json.loads((model / "validation" / "summary.json").read_text())["foreground_mean"]
    (log,) = model.glob("training_log_*.txt")
    assert "'confidence_penalty': {'weight': 0.3}" in log.read_text()
