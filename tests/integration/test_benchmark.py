"""A whole benchmark with nnU-Net's real commands, killed twice in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nnunet_ext.benchmark.layout import Cell, Layout
from nnunet_ext.nnunet.commands import epochs_begun
from tests.tiny import BASE, DATASET, PLANS, World

EXPERIMENT: dict[str, Any] = {
    "dataset": DATASET,
    "plans": PLANS,
    "configurations": [BASE],
    "folds": [0],
    "settings": {
        "num_epochs": 30,
        "num_iterations_per_epoch": 1,
        "num_val_iterations_per_epoch": 1,
        "save_every": 1,
    },
    "degradations": {"noise": {"noise": 1.0}},
    "arms": {
        "stock": {"trainer": "nnUNetTrainer"},
        "broken": {"trainer": "CateNromTrainer"},
        "again": {"trainer": "nnUNetTrainer", "weights_of": "stock"},
    },
}
STOCK = Cell("stock", BASE, 0, 0)
SECONDS = 120


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nnunet_ext", "benchmark", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_benchmark_killed_twice_ends_as_if_nothing_had_happened(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.write_raw(test=True)
    file = world.root / "experiment.json"
    file.write_text(json.dumps(EXPERIMENT))
    folder = world.root / "benchmark"
    command = ("run", str(file), "--out", str(folder), "--device", "cpu")

    def epoch() -> int:
        return epochs_begun(Layout(folder).log(STOCK)) if folder.is_dir() else 0

    first = start(*command)
    wait_for(lambda: epoch() >= 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(SECONDS) == 130
    assert "Run the same command again" in first.communicate()[1]
    layout = Layout(folder)
    assert not layout.is_worked_on(STOCK)
    assert layout.state(STOCK).status == "missing"

    reached = epoch()
    second = start(*command)
    wait_for(lambda: epoch() > reached)
    second.kill()  # what it has started goes on
    second.wait()
    assert layout.is_worked_on(STOCK)
    refused = start("run", str(folder.parent), "--out", str(folder))
    assert refused.wait(SECONDS) == 1

    third = start(*command)
    output, errors = third.communicate(timeout=4 * SECONDS)
    assert third.returncode == 1, errors  # because of the arm that cannot be trained
    assert "broken, tiny_base, seed 0, fold 0: failed: There is no trainer called" in output
    assert "It needs broken" in output
    assert "4 of 6 done, 0 running, 0 waiting, 2 failed" in output
    log = layout.log(STOCK).read_text()
    assert log.count("$ nnUNetv2_train") == 2
    assert "--c" in log
    epochs = [row["epoch"] for row in _rows(layout.folder(STOCK) / "curves.csv")]
    assert epochs == list(range(30))

    _assert_numbers_are_nnunets(layout)
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "There is no trainer called CateNromTrainer" in page

    fourth = start("run", str(folder), "--device", "cpu")
    output, errors = fourth.communicate(timeout=SECONDS)
    assert output.count("done already") == 4
    assert layout.log(STOCK).read_text() == log


def _assert_numbers_are_nnunets(layout: Layout) -> None:
    """Every Dice of the report is that of the summary.json that its row names."""
    scores = pd.read_csv(layout.report / "scores.csv", keep_default_na=False)
    assert {
        (arm, each) for arm in ("stock", "again") for each in ("clean", "noise", "test")
    } == set(zip(scores["arm"], scores["evaluation"], strict=True))
    for _, row in scores.iterrows():
        summary = json.loads((layout.root / row["summary"]).read_text())
        (case,) = (
            case
            for case in summary["metric_per_case"]
            if Path(case["prediction_file"]).name == f"{row['case']}.nii.gz"
        )
        expected = case["metrics"][str(row["label"])]["Dice"]
        assert float(row["dice"]) == pytest.approx(expected, abs=1e-9)
    measures = ["evaluation", "case", "label", "dice", "nsd", "hd95", "assd"]
    stock, again = (
        scores[scores["arm"] == arm][measures].reset_index(drop=True) for arm in ("stock", "again")
    )
    pd.testing.assert_frame_equal(stock, again)  # the same weights


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records")
    return rows
