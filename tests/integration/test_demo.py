"""The whole demo, tiny, with nnU-Net's real commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def demo(out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    tiny = ("--cases", "5", "--epochs", "1", "--iterations", "2", "--device", "cpu")
    return subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "demo", "--out", str(out), *tiny, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_demo_makes_scores_and_picture_and_does_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = demo(out)
    assert first.returncode == 0, first.stdout + first.stderr
    configuration = "3d_fullres_CateNormTrainer_seed0"
    command = f"$ nnUNetv2_train Dataset999_Phantom {configuration} 0 -tr CateNormTrainer"
    assert command in first.stdout
    table = (out / "summary.txt").read_text(encoding="utf-8")
    for part in ("3 test cases of Phantom", "organ", "lesion", "siteB, 1 case", "worst case"):
        assert part in table
        assert part in first.stdout
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    model = f"CateNormTrainer__CompactPlans__{configuration}"
    predictions = out / "nnUNet_results" / "Dataset999_Phantom" / model / "test"
    assert len(list(predictions.glob("*.nii.gz"))) == 3
    settings = json.loads((out / "benchmark.json").read_text())["settings"]
    assert (settings["num_epochs"], settings["num_iterations_per_epoch"]) == (1, 2)

    again = demo(out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("done already") == 2
    assert "$ nnUNetv2" not in again.stdout
    assert "siteB, 1 case" in again.stdout

    other = demo(out, "--epochs", "7")
    assert other.returncode == 1
    assert '"num_epochs": 1' in other.stderr
    assert "Traceback" not in other.stderr
