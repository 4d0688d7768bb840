"""nnU-Net's own commands with our trainers and planners, on five tiny images."""

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext._common.errors import CheckpointError

pytestmark = pytest.mark.slow

DATASET = "Dataset778_Balls"
PLANS = "CompactPlans"
SHAPE = (20, 24, 22)
QUICK = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "seed": 0,
}
CONFIGURATIONS = {
    "3d_quick": {"inherits_from": "3d_fullres", "nnunet_ext": QUICK},
    "2d_quick": {"inherits_from": "2d", "nnunet_ext": QUICK | {"num_epochs": 9}},
    "2d_long": {"inherits_from": "2d", "nnunet_ext": QUICK | {"num_epochs": 5, "save_every": 2}},
    "2d_stopped": {"inherits_from": "2d", "nnunet_ext": QUICK | {"num_epochs": 3}},
    "2d_wrong": {"inherits_from": "2d", "nnunet_ext": {"catenorm": {"reductoin": 2}}},
}
TIMEOUT = 300


@dataclass(frozen=True)
class Site:
    """nnU-Net's three folders and its commands."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        folders = {f"nnUNet_{n}": str(self.root / n) for n in ("raw", "preprocessed", "results")}
        return folders | {"nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}

    def model(self, configuration: str, trainer: str = "CateNormTrainer") -> Path:
        return self.root / "results" / DATASET / f"{trainer}__{PLANS}__{configuration}"

    def start(self, command: str, *arguments: str | Path) -> subprocess.Popen[str]:
        program = shutil.which(command, path=sysconfig.get_path("scripts"))
        assert program is not None, f"{command} is not installed"
        # planning takes this number for one of threads, training for one of worker processes
        workers = "0" if command == "nnUNetv2_train" else "1"
        return subprocess.Popen(
            [program, *map(str, arguments)],
            env=os.environ | self.environment | {"nnUNet_n_proc_DA": workers},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, *arguments: str | Path, fails: bool = False) -> str:
        """Run a command to its end and return what it printed."""
        process = self.start(command, *arguments)
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        assert (process.returncode != 0) == fails, output[-3000:]
        return output

    def train(self, configuration: str, *more: str | Path, **kwargs: Any) -> str:
        return self.run("nnUNetv2_train", *self.training(configuration, *more), **kwargs)

    @staticmethod
    def training(configuration: str, *more: str | Path) -> list[str | Path]:
        trainer = [] if "-tr" in more else ["-tr", "CateNormTrainer"]
        return [DATASET, configuration, "0", "-p", PLANS, "-device", "cpu", *trainer, *more]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A raw data set, planned and preprocessed by the commands."""
    site = Site(tmp_path_factory.mktemp("nnunet"))
    raw = site.root / "raw" / DATASET
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    for number in range(5):
        image, seg = draw(number)
        write(image, raw / "imagesTr" / f"ball_{number}_0000.nii.gz")
        write(seg, raw / "labelsTr" / f"ball_{number}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    arguments = ["-d", "778", "-pl", "CompactPlanner", "-c", "2d", "3d_fullres", "-np", "1"]
    site.run("nnUNetv2_plan_and_preprocess", *arguments, "-npfp", "1")

    preprocessed = site.root / "preprocessed" / DATASET
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text())
    plans["configurations"] |= CONFIGURATIONS
    (preprocessed / f"{PLANS}.json").write_text(json.dumps(plans))
    return site


@pytest.fixture(scope="session")
def trained(site: Site) -> Path:
    """The model folder of a finished 3D training."""
    site.train("3d_quick")
    return site.model("3d_quick")


@pytest.fixture(scope="session")
def killed(site: Site) -> Path:
    """The fold of a training that was killed after its first checkpoint."""
    fold = site.model("2d_long") / "fold_0"
    process = site.start("nnUNetv2_train", *site.training("2d_long"))
    try:
        wait_for(fold / "checkpoint_latest.pth", process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (fold / "checkpoint_final.pth").exists()
    return fold


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball with a brighter core."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    distance = np.linalg.norm(grid - rng.uniform(9, 12, (3, 1, 1, 1)), axis=0)
    seg = (distance < 7).astype(np.uint8) + (distance < 4)
    return (100 * seg + rng.normal(50, 10, SHAPE)).astype(np.float32), seg


def write(array: np.ndarray, path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array), path)


def voxels(path: Path) -> np.ndarray:
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(path))
    return array


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Return as soon as the file exists."""
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} was not written in time"
        time.sleep(0.01)


def rows(fold: Path) -> list[dict[str, str]]:
    with (fold / "losses.csv").open() as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------ planning


def test_our_planners_answer_to_nnunets_command(site: Site) -> None:
    site.run("nnUNetv2_plan_experiment", "-d", "778", "-pl", "CateNormPlanner")
    folder = site.root / "preprocessed" / DATASET
    plans = json.loads((folder / "CateNormPlans.json").read_text())
    assert plans["experiment_planner_used"] == "CateNormPlanner"
    assert {"2d", "3d_fullres"} <= plans["configurations"].keys()


# ------------------------------------------------------------------------------------ training


def test_a_3d_training_leaves_what_nnunet_leaves(trained: Path) -> None:
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json"} <= names(trained)
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "losses.csv"} <= names(
        trained / "fold_0"
    )
    summary = json.loads((trained / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    assert len(rows(trained / "fold_0")) == 2


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_a_2d_training_takes_its_length_from_the_name_of_the_trainer(site: Site) -> None:
    trainer = "CateNormTrainer_2epochs"
    site.train("2d_quick", "-tr", trainer)
    fold = site.model("2d_quick", trainer) / "fold_0"
    assert [row["epoch"] for row in rows(fold)] == ["0", "1"]
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == trainer


def test_a_misspelt_trainer_gets_the_name_that_was_meant(site: Site) -> None:
    output = site.train("3d_quick", "-tr", "CateNormTrainr", fails=True)
    assert "CateNormTrainer" in output.splitlines()[-1]


def test_refused_settings_name_the_key_and_leave_no_folder(site: Site) -> None:
    output = site.train("2d_wrong", fails=True)
    last = output.strip().splitlines()[-1]
    assert all(word in last for word in ("2d_wrong", PLANS, '"reductoin"', "reduction"))
    assert not site.model("2d_wrong").exists()


def test_weights_of_a_stock_network_start_a_training(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = site.root / "preprocessed" / DATASET
    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False}
    description = json.loads((folder / "dataset.json").read_text())
    stock = nnUNetTrainer(plans, "2d", 0, description, torch.device("cpu"))
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "stock.pth"))
    expected = copy.deepcopy(stock.network.state_dict())

    more = ["-pretrained_weights", tmp_path / "stock.pth"]
    output = site.train("2d_quick", "-tr", "CateNormTrainer_1epoch", *more)
    transferred = [key for key in expected if f"{key} shape" in output]
    assert set(transferred) == {key for key in expected if ".seg_layers." not in key}


# ---------------------------------------------------------------------------- kill and continue


def test_a_truncated_checkpoint_gets_a_message_that_helps(site: Site, killed: Path) -> None:
    latest = killed / "checkpoint_latest.pth"
    intact = latest.read_bytes()
    latest.write_bytes(intact[: len(intact) // 2])
    try:
        output = site.train("2d_long", "--c", fails=True)
    finally:
        latest.write_bytes(intact)
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"{CheckpointError.__module__}.{CheckpointError.__name__}: ")
    assert str(latest) in last
    assert "checkpoint_best.pth" in last


def test_a_killed_training_continues_from_its_last_checkpoint(site: Site, killed: Path) -> None:
    completed = torch.load(killed / "checkpoint_latest.pth", weights_only=False)["current_epoch"]
    assert completed in (2, 4)
    output = site.train("2d_long", "--c")
    epochs = [line.split()[-1] for line in output.splitlines() if ": Epoch " in line] or [
        line.split()[-1] for line in output.splitlines() if line.startswith("Epoch ")
    ]
    assert epochs[0] == str(completed)
    assert [row["epoch"] for row in rows(killed)] == ["0", "1", "2", "3", "4"]
    assert (killed / "checkpoint_final.pth").exists()


def test_a_file_ends_a_training_as_a_success_and_it_goes_on_later(site: Site) -> None:
    fold = site.model("2d_stopped") / "fold_0"
    fold.mkdir(parents=True)
    (fold / "stop").touch()
    output = site.train("2d_stopped")  # which asks for exit code 0
    assert "Stopped after 1 of 3 epochs" in output.strip().splitlines()[-1]
    assert not {"stop", "checkpoint_final.pth", "validation"} & names(fold)
    assert torch.load(fold / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1
    assert [row["epoch"] for row in rows(fold)] == ["0"]
    site.train("2d_stopped", "--c")
    assert [row["epoch"] for row in rows(fold)] == ["0", "1", "2"]
    assert {"checkpoint_final.pth", "validation"} <= names(fold)


# ---------------------------------------------------------------------------- using the model


def predict(site: Site, case: Path, target: Path) -> np.ndarray:
    """Predict one case with the trained model of this site."""
    source = target / "in"
    source.mkdir(parents=True)
    shutil.copy(case, source)
    model = ["-d", "778", "-c", "3d_quick", "-f", "0", "-tr", "CateNormTrainer", "-p", PLANS]
    few = ["-device", "cpu", "-npp", "1", "-nps", "1"]
    site.run("nnUNetv2_predict", *model, *few, "-i", source, "-o", target / "out")
    return voxels(target / "out" / case.name.replace("_0000", ""))


@pytest.fixture(scope="session")
def predicted(site: Site, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The segmentation of the validation case by nnUNetv2_predict."""
    return predict(site, image_of(site, trained), tmp_path_factory.mktemp("prediction"))


def image_of(site: Site, model: Path) -> Path:
    """The image of the validation case."""
    (validated,) = (model / "fold_0" / "validation").glob("*.nii.gz")
    name = validated.name.replace(".nii.gz", "_0000.nii.gz")
    return site.root / "raw" / DATASET / "imagesTr" / name


def test_prediction_equals_the_validation_of_the_training(
    trained: Path, predicted: np.ndarray
) -> None:
    (validated,) = (trained / "fold_0" / "validation").glob("*.nii.gz")
    assert np.array_equal(predicted, voxels(validated))


def test_a_model_survives_export_to_zip_and_installation_elsewhere(
    site: Site, trained: Path, predicted: np.ndarray, tmp_path: Path
) -> None:
    model = ["-d", "778", "-c", "3d_quick", "-f", "0", "-tr", "CateNormTrainer", "-p", PLANS]
    archive = tmp_path / "model.zip"
    site.run("nnUNetv2_export_model_to_zip", *model, "-o", archive)
    elsewhere = Site(tmp_path / "elsewhere")
    elsewhere.root.mkdir()
    for name in ("raw", "preprocessed", "results"):
        (elsewhere.root / name).mkdir()
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", archive)
    again = predict(elsewhere, image_of(site, trained), tmp_path / "prediction")
    assert np.array_equal(again, predicted)


def test_find_best_configuration_reads_our_folders(site: Site, trained: Path) -> None:
    model = ["-c", "3d_quick", "-f", "0", "-tr", "CateNormTrainer", "-p", PLANS]
    output = site.run("nnUNetv2_find_best_configuration", DATASET, *model, "-np", "1")
    assert "CateNormTrainer" in output
    assert (trained.parent / "inference_instructions.txt").exists()
