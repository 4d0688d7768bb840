"""Models of ours where only nnU-Net is installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import contract, tiny

PREDICT = """
import sys
sys.modules["nnunet_ext"] = None  # any import of it fails
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, images, logits = sys.argv[1:]
predictor = nnUNetPredictor(
    perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
)
predictor.initialize_from_trained_model_folder(model, None)  # finds the folds itself
with torch.no_grad():
    torch.save(predictor.network.eval()(torch.load(images)), logits)
"""


@pytest.fixture
def trained(
    make_world: Callable[..., tiny.World], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """Train a tiny model and return the trainer."""
    contract.without_progress_plot(monkeypatch)
    world = make_world(dim=2, domains=tiny.TWO_SITES)

    def train(name: str) -> Any:
        trainer = world.trainer(name, {"num_epochs": 1})
        trainer.run_training()
        return trainer

    return train


@pytest.mark.parametrize(
    "name",
    [
        "RAMDSIRTrainer",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("TopKSigmaTrainer", "ExtensionTrainer_1epoch")
        ),
    ],
)
def test_nnunet_alone_predicts_the_same(
    name: str, trained: Callable[[str], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = trained(name)
    model = Path(trainer.output_folder_base)
    before = {file: file.stat().st_mtime_ns for file in model.rglob("*")}
    outcome = cli("export-stock", str(model), "-o", str(tmp_path / "exported"))
    assert outcome.code == 0, outcome.err
    assert {file: file.stat().st_mtime_ns for file in model.rglob("*")} == before

    copy = tmp_path / "exported" / f"nnUNetTrainer__{tiny.PLANS}__{tiny.CONFIGURATION}"
    assert list(copy.parent.iterdir()) == [copy]
    assert str(copy) in outcome.out
    for file in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert json.loads((copy / file).read_text()) == json.loads((model / file).read_text())
    images = tiny.Task(dim=2).images()
    torch.save(images, tmp_path / "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, copy, tmp_path / "images.pt", tmp_path / "logits.pt"],
        env={**os.environ, "NNUNET_EXT_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = contract.evaluate(trainer, images)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_a_network_of_our_own_is_refused(
    trained: Callable[[str], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    model = trained("CateNormTrainer").output_folder_base
    outcome = cli("export-stock", model, "-o", str(tmp_path / "exported"))
    assert outcome.code == 1
    assert "The network of CateNormTrainer is not a plain nnU-Net" in outcome.err
    assert not (tmp_path / "exported").exists()


def make_model(folder: Path, trainer: str) -> Path:
    """The folder of a model whose checkpoint is none."""
    model = folder / f"{trainer}__Plans__2d"
    (model / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text("{}")
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"damaged")
    return model


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ("RAMDSIRTrainer", "Cannot read the checkpoint"),
        ("nnUNetTrainerDA5", "nnUNetTrainerDA5 is nnU-Net's own"),
        ("RAMDSIRTraner", 'no trainer "RAMDSIRTraner". Did you mean RAMDSIRTrainer'),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_stays_behind(
    trainer: str, message: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model(tmp_path, trainer)
    out = tmp_path / "exported"
    outcome = cli("export-stock", str(model), "-o", str(out))
    assert outcome.code == 1
    assert message in outcome.err
    assert not out.exists() or not list(out.iterdir())


def test_incomplete_models_and_existing_copies_are_refused(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    for model, message in (
        (tmp_path / "somewhere", "its name must be TRAINER__PLANS__CONFIGURATION"),
        (tmp_path / "RAMDSIRTrainer__Plans__3d", "there is no plans.json"),
    ):
        outcome = cli("export-stock", str(model), "-o", str(out))
        assert outcome.code == 1
        assert message in outcome.err
    model = make_model(tmp_path, "RAMDSIRTrainer")
    (out / "nnUNetTrainer__Plans__2d").mkdir(parents=True)
    assert "exists already" in cli("export-stock", str(model), "-o", str(out)).err
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    assert (
        "there is no fold_*/checkpoint_*.pth" in cli("export-stock", str(model), "-o", str(out)).err
    )
