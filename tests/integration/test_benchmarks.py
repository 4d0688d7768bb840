"""The benchmark scripts run and record what they promise."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.pyplot import imread

from nnunet_ext.benchmark import spec
from tests import contract, tiny

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> str:
    outcome = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return outcome.stdout


def test_step_cost_compares_arms_with_settings_and_names_its_circumstances(
    make_world: Callable[..., tiny.World], tmp_path: Path
) -> None:
    make_world(regions=True, ignore=True, domains=tiny.TWO_SITES)
    record = tmp_path / "record.json"
    catenorm = 'CateNormTrainer={"catenorm": {"plain_fraction": 0.0}}'
    data = ["--dataset", "777", "--plans", tiny.PLANS, "--configuration", tiny.BASE]
    few = ["--warm-up", "1", "--steps", "2", "--record", record]
    arms = [x for arm in ("ExtensionTrainer", catenorm, "RAMDSIRTrainer") for x in ("--arm", arm)]
    run("step_cost.py", *data, *arms, *few)
    result = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions", "arguments"} <= result.keys()
    first, second, third = result["arms"]
    assert (first["train_ratio"], first["predict_ratio"], first["peak_ratio"]) == (1, 1, 1)
    assert second["arm"] == catenorm
    assert second["train_s"] > 0
    assert third["train_s"] > 0


def test_loss_cost_compares_losses_and_names_its_circumstances(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    few = ["--patch-size", "8", "8", "8", "--runs", "2", "--record", record]
    assert "sigma 0.02" in run("loss_cost.py", *few)
    result = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions", "arguments"} <= result.keys()
    assert result["losses"]["DC_and_CE_loss"]["ratio"] == 1
    assert result["losses"]["sigma 0.02"]["milliseconds"] > 0


def test_amplitude_mixup_cost_compares_both_ways_and_names_its_circumstances(
    tmp_path: Path,
) -> None:
    record = tmp_path / "record.json"
    shapes = ["--shape", "1", "32", "32", "--shape", "1", "8", "8", "8"]
    run("amplitude_mixup_cost.py", *shapes, "--runs", "2", "--record", record)
    result = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions", "arguments"} <= result.keys()
    images = list(result["images"].values())
    assert [row["times as fast"] for row in images[::3]] == [1, 1]
    assert all(row["milliseconds"] > 0 for row in images)


@pytest.mark.parametrize("kind", [{"dim": 2, "channels": 2}, {"dim": 3, "anisotropic": True}])
def test_ram_dsir_pictures_are_drawn_from_a_model_that_stays_as_it_is(
    kind: dict[str, Any],
    make_world: Callable[..., tiny.World],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    contract.without_progress_plot(monkeypatch)
    trainer = make_world(**kind, domains=tiny.TWO_SITES).trainer("RAMDSIRTrainer")
    trainer.run_training()
    model = Path(trainer.output_folder_base)
    before = {file: file.stat().st_mtime_ns for file in model.rglob("*")}
    run("ram_dsir_pictures.py", model, "--out", tmp_path / "docs" / "picture.png")
    height, width, _ = imread(tmp_path / "docs" / "picture.png").shape
    assert (height, width) == (3 * 288, 4 * 288)
    assert {file: file.stat().st_mtime_ns for file in model.rglob("*")} == before


def test_startup_cost_prints_the_difference_to_a_bare_interpreter() -> None:
    output = run("startup_cost.py", "--runs", "3")
    assert "without nnunet_ext" in output
    assert "with nnunet_ext" in output
    assert "budget of 3 ms" in output


RECORDED = sorted(path.parent for path in (BENCHMARKS / "results").glob("*/scores.csv"))


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_every_recorded_experiment_can_be_repeated_and_is_reported(folder: Path) -> None:
    assert spec.read(folder) == spec.read(BENCHMARKS / "experiments" / f"{folder.name}.json")
    environment = json.loads((folder / "environment.json").read_text())
    assert {"date", "processor", "versions"} <= environment.keys()
    page = (BENCHMARKS.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert f"## {folder.name}" in page
