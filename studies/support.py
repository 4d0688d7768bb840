"""What works with which trainer: nnU-Net's own commands on tiny data, cell by cell.

Every cell is a row (a trainer with settings) and a column (a kind of data, of plans, or a thing to
do with a model). A cell leaves one JSON file, and is not run again while that exists, in FOLDER or
among the records::

    python -m studies.support run FOLDER                        # all cells that are missing
    python -m studies.support run FOLDER --only CateNormTrainer/zip
    python -m studies.support write FOLDER                      # records and docs/support.md

A cell *works* if all its commands end well and leave what they promise; it is *refused* if one
ends in a message of this package's; everything else *fails*.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import tifffile
import torch
from numpy.typing import NDArray
from skimage.io import imsave

from nnunet_ext import registry
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object, replacing, write_json
from nnunet_ext.nnunet import commands, discovery

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support.md"
RECORDS = ROOT / "studies" / "records" / "support"
DATASET = "Dataset780_Support"
CASES = [f"{site}_{number}" for number in range(3) for site in ("a", "b")]
UNLABELLED = ["u_0", "u_1"]
SHAPE = (32, 36, 34)
"""Deep enough for the four stages that ConDSeg needs."""
REFUSAL = re.compile(
    r"nnunet_ext\._common\.errors\.\w+: (?P<ours>.+)|AssertionError: (?P<nnunets>.+pretrained.+)"
)
"""Last line of a traceback that explains itself: ours, and nnU-Net's of weights that do not fit."""
WORKS, REFUSED, FAILS = "works", "refused", "fails"
QUICK: dict[str, Any] = {
    "num_epochs": 4,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "seed": 0,
    "mind_the_gap": {
        "translator_iterations": 2,
        "translator_batch": 1,
        "translator_filters": 2,
        "translator_blocks": 1,
    },
}

# ------------------------------------------------------------------------------------------- rows

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{trainer: (trainer, {}) for trainer in registry.TRAINERS},
    "CateNorm, joint": ("CateNormTrainer", {"catenorm": {"updates": "joint"}}),
    "CateNorm, low stages": ("CateNormTrainer", {"catenorm": {"stages": "low"}}),
    "ConDSeg, planned decoder": ("ConDSegTrainer", {"condseg": {"decoder": "plan"}}),
    "ConDSeg, decoder alone": ("ConDSegTrainer", {"condseg": {"consistency": "off"}}),
    "RAM-DSIR, restoration": ("RAMDSIRTrainer", {"ram_dsir": {"restoration": True}}),
    "Mind the Gap, no Step A": (
        "MindTheGapTrainer",
        {"mind_the_gap": {"translator": "none"}},
    ),
    "Extension, strong+gin": ("ExtensionTrainer", {"augmentation": "strong+gin"}),
}
"""Name -> trainer, and settings beside the quick ones: all trainers, then ablations."""


@dataclass(frozen=True)
class Data:
    """A kind of raw data set, with domains and with images without labels."""

    labels: str = "classes"  # or regions, ignore, both
    channels: int = 1
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the axes of SHAPE
    ending: str = ".nii.gz"
    classes: int = 2

    @property
    def description(self) -> dict[str, Any]:
        """What dataset.json holds."""
        labels: dict[str, Any] = {"background": 0, "organ": 1, "lesion": 2}
        more: dict[str, Any] = {}
        if self.labels in ("regions", "both"):
            labels = {"background": 0, "whole": [1, 2], "core": [2]}
            more["regions_class_order"] = [1, 2]
        if self.classes == 1:
            labels = {"background": 0, "organ": 1}
        if self.labels in ("ignore", "both"):
            labels["ignore"] = 3
        return {
            "channel_names": {str(channel): f"image{channel}" for channel in range(self.channels)},
            "labels": labels,
            "numTraining": len(CASES),
            "file_ending": self.ending,
            "domains": {case: case[0] for case in CASES},
            **more,
        }

    def write(self, raw: Path) -> None:
        """Write images and labels in nnU-Net's raw format."""
        for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        for number, case in enumerate([*CASES, *UNLABELLED, "test"]):
            image, seg = self._draw(number)
            kind = "Un" if case in UNLABELLED else "Ts" if case == "test" else "Tr"
            if self.ending == ".png":
                self._save(np.moveaxis(image, 0, -1), raw / f"images{kind}" / f"{case}_0000")
            else:
                for channel, voxels in enumerate(image):
                    self._save(voxels, raw / f"images{kind}" / f"{case}_{channel:04d}")
            if kind == "Tr":
                self._save(seg, raw / "labelsTr" / case)
        write_json(raw / "dataset.json", self.description)

    def _draw(self, number: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """A bright ball with a brighter core; images (C, *S) and labels."""
        rng = np.random.default_rng(number)
        shape = SHAPE[1:] if self.ending == ".png" else SHAPE
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        centre = rng.uniform(13, 18, (len(shape), *[1] * len(shape)))
        distance = np.linalg.norm(grid - centre, axis=0)
        seg = (distance < 10).astype(np.uint8) + (distance < 5)
        images = 60.0 * seg + rng.normal(60, 10, (self.channels, *shape))
        if self.classes == 1:
            seg = seg.clip(max=1)
        if self.labels in ("ignore", "both"):
            seg[..., -6:] = 3
        stored: Any = np.uint8 if self.ending == ".png" else np.float32
        return images.clip(0, 255).astype(stored), seg

    def _save(self, array: NDArray[Any], path: Path) -> None:
        target = Path(f"{path}{self.ending}")
        if self.ending == ".png":
            imsave(target, array.squeeze(), check_contrast=False)
        elif self.ending == ".tif":
            tifffile.imwrite(target, array, photometric="minisblack")
            spacing = json.dumps({"spacing": self.spacing})
            target.with_name(re.sub(r"(_\d{4})?\.tif$", ".json", target.name)).write_text(spacing)
        else:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(self.spacing[::-1])
            sitk.WriteImage(image, str(target))


# ------------------------------------------------------------------------------------------- cells


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


@dataclass
class Cell:
    """A row under a column, with nnU-Net's folders of the column's data."""

    row: str
    column: str
    work: Path  # shared by all cells
    data: Data = field(default_factory=Data)
    planner: str = "CompactPlanner"
    configuration: str = "2d"

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.row}/{self.column}"

    @property
    def record(self) -> Path:
        """The JSON file of the cell."""
        return self.work / "cells" / f"{_slug(self.name)}.json"

    @property
    def trainer(self) -> str:
        """Name of the trainer."""
        return ROWS[self.row][0]

    @property
    def site(self) -> Path:
        """Where nnU-Net's folders are, for all rows."""
        parts = (self.planner, *map(str, vars(self.data).values()))
        return self.work / "sites" / _slug("-".join(parts))

    @property
    def own(self) -> Path:
        """A folder in it for what this row makes of predictions."""
        folder = self.site / _slug(self.row)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return self.site / "nnUNet_raw" / DATASET

    @property
    def planned(self) -> str:
        """Name of the plans as they come from the planner."""
        stock = {"ExperimentPlanner": "nnUNetPlans"}
        stock["nnUNetPlannerResEncM"] = "nnUNetResEncUNetMPlans"
        return stock.get(self.planner) or registry.PLANNERS[self.planner].plans

    @property
    def plans(self) -> str:
        """Name of the plans with the settings of this row."""
        return f"{self.planned}_{_slug(self.row)}"

    def model(self, configuration: str | None = None, trainer: str | None = None) -> Path:
        """The folder of a trained model."""
        name = f"{trainer or self.trainer}__{self.plans}__{configuration or self.configuration}"
        return self.site / "nnUNet_results" / DATASET / name

    # ---------------------------------------------------------------------------------- commands

    @property
    def log(self) -> Path:
        """What the cell's commands print."""
        return self.record.with_suffix(".log")

    def run(self, command: str, *arguments: str | Path, **variables: str) -> None:
        """Run a command of nnU-Net's; raises UserError with its last words if it fails."""
        line = [command, *map(str, arguments)]
        if not hasattr(os, "fork"):
            commands.run_command(line, self.log, self.environment | variables)
        elif code := _forked(line, self.log, _environment(self, **variables)):
            raise _failure(command, commands.tail(self.log), code)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of nnU-Net's."""
        folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        for folder in folders:
            (self.site / folder).mkdir(parents=True, exist_ok=True)
        paths = {folder: str(self.site / folder) for folder in folders}
        return paths | {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}

    def prepare(self) -> None:
        """Write, plan and preprocess the data, once."""
        if not (self.raw / "dataset.json").exists():
            self.data.write(self.raw)
        folder, number = self.site / "nnUNet_preprocessed" / DATASET, DATASET[7:10]
        planned = folder / f"{self.planned}.json"
        if not planned.exists():
            self.run("nnUNetv2_extract_fingerprint", "-d", number, "-np", "1")
            one = {"nnUNet_n_proc_DA": "1"}  # 0 stops stock planners
            self.run("nnUNetv2_plan_experiment", "-d", number, "-pl", self.planner, **one)
        plans = _with_quick_settings(read_object(planned), ROWS[self.row][1])
        write_json(folder / f"{self.plans}.json", plans | {"plans_name": self.plans})
        wanted = [self.configuration]
        if self.configuration == "3d_cascade_fullres":
            wanted = ["3d_lowres", "3d_fullres"]
        for name in wanted:
            data = folder / plans["configurations"][name]["data_identifier"]
            if len(list(data.glob("*.pkl"))) < len(CASES):
                more: list[str | Path] = ["-plans_name", self.plans, "-c", name, "-np", "1"]
                self.run("nnUNetv2_preprocess", "-d", number, *more)

    def arguments(self, fold: str = "0", configuration: str | None = None) -> list[str]:
        """What nnUNetv2_train is called with."""
        tail = [fold, "-tr", self.trainer, "-p", self.plans, "-device", "cpu"]
        return [DATASET, configuration or self.configuration, *tail]

    def train(self, *more: str | Path, fold: str = "0", anew: bool = False) -> Path:
        """Train a fold, unless that has been done; returns its folder."""
        self.prepare()
        folder = self.model() / f"fold_{fold}"
        if anew or not (folder / "validation" / "summary.json").exists():
            if self.configuration == "3d_cascade_fullres":
                first = self.model("3d_lowres") / "fold_all"  # which segments every case
                if not (first / "validation" / "summary.json").exists():
                    self.run("nnUNetv2_train", *self.arguments("all", "3d_lowres"))
            self.run("nnUNetv2_train", *self.arguments(fold), *more)
        _demand(folder / "checkpoint_final.pth", folder / "validation" / "summary.json")
        return folder

    def predict(self, target: Path, *more: str | Path, **variables: str) -> NDArray[Any]:
        """Predict the test image with nnU-Net's command; returns the labels."""
        shutil.rmtree(target, ignore_errors=True)
        which = ["-d", DATASET, "-c", self.configuration, "-f", "0", "-tr", self.trainer]
        few = ["-p", self.plans, "-device", "cpu", "-npp", "1", "-nps", "1"]
        place: list[str | Path] = ["-i", self.raw / "imagesTs", "-o", target]
        if self.configuration == "3d_cascade_fullres":
            first = target.with_name("first")
            low = ["-d", DATASET, "-c", "3d_lowres", "-f", "all", "-tr", self.trainer, *few]
            self.run("nnUNetv2_predict", *low, "-i", self.raw / "imagesTs", "-o", first)
            more = (*more, "-prev_stage_predictions", first)
        self.run("nnUNetv2_predict", *which, *few, *place, *more, **variables)
        return _labels(target / f"test{self.data.ending}")


def _failure(command: str, output: str, code: int) -> UserError:
    last = (output.strip().splitlines() or ["nothing was said"])[-1]
    refusal = REFUSAL.match(last)
    if refusal is None:
        return UserError(f"{command} ended with exit code {code}: {last}")
    return UserError(f"{command} failed: {refusal['ours'] or refusal['nnunets']}")


def _forked(line: Sequence[str], log: Path, environment: dict[str, str]) -> int:
    """Run a command in a copy of this process, which has imported what takes seconds already."""
    import nnunetv2.inference.predict_from_raw_data
    import nnunetv2.run.run_training  # noqa: F401

    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [*line]
        discovery.activate(force=True)
        commands.nnunet_commands()[line[0]].load()()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _with_quick_settings(plans: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Give all configurations our settings, and add a cascade; the images are too small for one."""
    configurations = plans["configurations"]
    merged = QUICK | {
        key: {**QUICK.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in settings.items()
    }
    if "3d_fullres" in configurations:
        full = configurations["3d_fullres"]
        configurations["3d_lowres"] = {
            **full,
            "data_identifier": f"{plans['plans_name']}_3d_lowres",
            "spacing": [1.25 * edge for edge in full["spacing"]],
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_cascade_fullres"] = {
            "inherits_from": "3d_fullres",
            "previous_stage": "3d_lowres",
        }
    for configuration in configurations.values():
        configuration["nnunet_ext"] = merged
    return plans


def _demand(*files: Path) -> None:
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} was not written")


def _labels(path: Path) -> NDArray[Any]:
    _demand(path)
    if path.suffix == ".png":
        from skimage.io import imread

        return np.asarray(imread(path))
    return np.asarray(
        tifffile.imread(path)
        if path.suffix == ".tif"
        else sitk.GetArrayFromImage(sitk.ReadImage(path))
    )


# ------------------------------------------------------------------------------ what a cell does


def trained(cell: Cell) -> None:
    """Train, validate, predict."""
    cell.train()
    assert cell.predict(cell.own / "predicted").max() <= 3


def killed(cell: Cell) -> None:
    """SIGKILL in every epoch, then --c; the four epochs lie in all phases."""
    cell.prepare()
    fold = cell.model() / "fold_0"
    shutil.rmtree(fold, ignore_errors=True)
    for epoch in (1, 2, 3):
        again = ["--c"] if (fold / "checkpoint_latest.pth").exists() else []
        log = cell.log.with_suffix(f".{epoch}.log")
        command = [*commands.LAUNCHER, "nnUNetv2_train", *cell.arguments(), *again]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=_environment(cell), stdout=output, stderr=subprocess.STDOUT
            )
            while process.poll() is None and commands.epochs_begun(log) <= epoch:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(commands.tail(log))
    cell.train("--c", anew=True)
    epochs = (fold / "losses.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in epochs] == ["0", "1", "2", "3"]


def _environment(cell: Cell, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        **commands.environment("cpu"),
        **cell.environment,
        **more,
    }


def validated(cell: Cell) -> None:
    """--val gives the scores of the training once more."""
    summary = cell.train() / "validation" / "summary.json"
    before = read_object(summary)["foreground_mean"]
    summary.unlink()
    cell.run("nnUNetv2_train", *cell.arguments(), "--val")
    assert read_object(summary)["foreground_mean"] == before


def validated_with_best(cell: Cell) -> None:
    """--val_best, with probabilities."""
    fold = cell.train()
    cell.run("nnUNetv2_train", *cell.arguments(), "--val", "--val_best", "--npz")
    assert list((fold / "validation").glob("*.npz"))


def pretrained(source: str) -> Callable[[Cell], None]:
    """-pretrained_weights of a stock network, of this row, of another method, of other classes."""

    def run(cell: Cell) -> None:
        cell.prepare()
        donor = {
            "stock": Cell("ExtensionTrainer", "", cell.work),  # whose network is a stock one
            "itself": Cell(cell.row, "", cell.work),
            "CateNorm": Cell("CateNormTrainer", "", cell.work),
            "ConDSeg": Cell("ConDSegTrainer", "", cell.work),
            "one class": Cell(cell.row, "", cell.work, data=Data(classes=1)),
        }[source]
        donor.column = cell.column
        weights = donor.train() / "checkpoint_final.pth"
        cell.train("-pretrained_weights", weights, fold="2", anew=True)

    return run


def all_cases(cell: Cell) -> None:
    """Fold all."""
    cell.train(fold="all")


def best_configuration(cell: Cell) -> None:
    """find_best_configuration over two configurations, their ensemble, postprocessing."""
    for configuration in ("2d", "3d_fullres"):
        one = Cell(cell.row, cell.column, cell.work, configuration=configuration)
        folder = one.train("--npz")
        if not list((folder / "validation").glob("*.npz")):
            cell.run("nnUNetv2_train", *one.arguments(), "--val", "--npz")
        one.predict(cell.own / f"best_{configuration}", "--save_probabilities")
    which = ["-c", "2d", "3d_fullres", "-f", "0", "-tr", cell.trainer, "-p", cell.plans, "-np", "1"]
    cell.run("nnUNetv2_find_best_configuration", DATASET, *which)
    both, final = cell.own / "ensemble", cell.own / "postprocessed"
    parts = [cell.own / f"best_{name}" for name in ("2d", "3d_fullres")]
    cell.run("nnUNetv2_ensemble", "-i", *parts, "-o", both, "-np", "1")
    _demand(both / f"test{cell.data.ending}")
    results = cell.model().parent
    found = read_object(results / "inference_information.json")["best_model_or_ensemble"]
    files = ["-pp_pkl_file", found["postprocessing_file"], "-plans_json", found["some_plans_file"]]
    described: list[str | Path] = ["-dataset_json", cell.model("2d") / "dataset.json", "-np", "1"]
    cell.run("nnUNetv2_apply_postprocessing", "-i", both, "-o", final, *files, *described)
    _demand(final / f"test{cell.data.ending}")


def zipped(cell: Cell) -> None:
    """Export to zip, install elsewhere, predict the same."""
    cell.train()
    before = cell.predict(cell.own / "predicted")
    archive = cell.own / "model.zip"
    which = ["-d", DATASET, "-c", cell.configuration, "-f", "0", "-tr", cell.trainer]
    cell.run("nnUNetv2_export_model_to_zip", *which, "-p", cell.plans, "-o", archive)
    elsewhere = cell.own / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    elsewhere.mkdir()
    variable = {"nnUNet_results": str(elsewhere)}
    cell.run("nnUNetv2_install_pretrained_model_from_zip", archive, **variable)
    assert np.array_equal(cell.predict(cell.own / "again", **variable), before)


def predicted_elsewise(cell: Cell) -> None:
    """From the model's folder, by the Python API, without mirroring."""
    cell.train()
    before = cell.predict(cell.own / "predicted")
    folder, source = cell.own / "from_folder", cell.raw / "imagesTs"
    few = ["-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    place: list[str | Path] = ["-i", source, "-o", folder, "-m", cell.model()]
    cell.run("nnUNetv2_predict_from_modelfolder", *place, *few)
    assert np.array_equal(_labels(folder / f"test{cell.data.ending}"), before)
    cell.predict(cell.own / "unmirrored", "--disable_tta")
    target = cell.own / "from_python"
    code = (
        "import sys, torch\n"
        "from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor\n"
        "p = nnUNetPredictor(device=torch.device('cpu'), perform_everything_on_device=False)\n"
        "p.initialize_from_trained_model_folder(sys.argv[1], (0,))\n"
        "p.predict_from_files_sequential(sys.argv[2], sys.argv[3])\n"
    )
    _python(cell, code, cell.model(), source, target)
    assert np.array_equal(_labels(target / f"test{cell.data.ending}"), before)


def started(method: str) -> Callable[[Cell], None]:
    """Train with a worker that is started in this way."""

    def run(cell: Cell) -> None:
        cell.prepare()
        code = (
            "import multiprocessing, sys\n"
            f"if __name__ == '__main__':\n    multiprocessing.set_start_method('{method}')\n"
            "    from nnunetv2.run.run_training import run_training_entry\n"
            "    run_training_entry()\n"
        )
        fold = cell.model() / "fold_1"
        _python(cell, code, *cell.arguments("1"), nnUNet_n_proc_DA="1")
        _demand(fold / "checkpoint_final.pth")

    return run


def _python(cell: Cell, code: str, *arguments: str | Path, **variables: str) -> None:
    """Run code in an interpreter that has our start-up file, as users' do."""
    script = cell.own / "script.py"
    script.write_text("from nnunet_ext.nnunet import discovery\ndiscovery.activate()\n" + code)
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = _environment(cell, **variables)
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    with cell.log.open("a") as log:
        log.write(done.stdout + done.stderr)
    if done.returncode:
        raise _failure("python", done.stderr, done.returncode)


# ---------------------------------------------------------------------------------------- columns

Column = tuple[Callable[[Cell], None], dict[str, Any]]

COLUMNS: dict[str, Column] = {
    "2d": (trained, {}),
    "3d_fullres": (trained, {"configuration": "3d_fullres"}),
    "3d_lowres": (trained, {"configuration": "3d_lowres"}),
    "3d_cascade_fullres": (trained, {"configuration": "3d_cascade_fullres"}),
    "regions": (trained, {"data": Data("regions")}),
    "ignore label": (trained, {"data": Data("ignore")}),
    "regions and ignore label": (trained, {"data": Data("both"), "configuration": "3d_fullres"}),
    "2 channels": (trained, {"data": Data(channels=2)}),
    "3 channels": (trained, {"data": Data(channels=3), "configuration": "3d_fullres"}),
    "anisotropic": (
        trained,
        {"data": Data(spacing=(4.0, 1.0, 1.0)), "configuration": "3d_fullres"},
    ),
    "PNG in colours": (trained, {"data": Data(ending=".png", channels=3)}),
    "TIFF in 3D": (trained, {"data": Data(ending=".tif"), "configuration": "3d_fullres"}),
    "nrrd": (trained, {"data": Data(ending=".nrrd")}),
    "stock plans": (trained, {"planner": "ExperimentPlanner"}),
    "residual plans": (trained, {"planner": "nnUNetPlannerResEncM"}),
    "own plans": (trained, {"planner": "own"}),
    "--c after SIGKILL in every phase": (killed, {}),
    "--val": (validated, {}),
    "--val_best --npz": (validated_with_best, {}),
    "weights of a stock network": (pretrained("stock"), {}),
    "weights of its own": (pretrained("itself"), {}),
    "weights of CateNorm": (pretrained("CateNorm"), {}),
    "weights of ConDSeg": (pretrained("ConDSeg"), {}),
    "weights of another number of classes": (pretrained("one class"), {}),
    "fold all": (all_cases, {}),
    "find_best_configuration, ensemble, postprocessing": (best_configuration, {}),
    "zip out and in": (zipped, {}),
    "prediction from folder, Python, without mirroring": (predicted_elsewise, {}),
    "spawned workers": (started("spawn"), {}),
    "workers of a forkserver": (started("forkserver"), {}),
}
"""Name -> what is done, and what of a cell differs."""


def cells(work: Path, only: Sequence[str] = ()) -> Iterator[Cell]:
    """All cells whose name, or whose row or column, matches one of these patterns."""
    for column, (_, options) in COLUMNS.items():
        for row in ROWS:
            options = dict(options)
            if options.get("planner") == "own" or column == "own plans":
                planners = registry.TRAINERS[ROWS[row][0]].planners
                if not planners:
                    continue  # stock plans are its own
                options["planner"] = planners[0].name
            cell = Cell(row, column, work, **options)
            names = (cell.name, row, column)
            if not only or any(fnmatch.fnmatch(name, each) for name in names for each in only):
                yield cell


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell and write its record."""
    cell.record.parent.mkdir(parents=True, exist_ok=True)
    cell.log.write_text("")
    began, state, why = time.perf_counter(), WORKS, ""
    try:
        COLUMNS[cell.column][0](cell)
    except UserError as error:
        said = str(error).partition("\nIts output is in")[0]
        _, refused, words = said.partition(" failed: ")
        state, why = (REFUSED, words) if refused else (FAILS, said)
    except Exception as error:  # whatever it is, the next cell is to be run
        state, why = FAILS, f"{type(error).__name__}: {error}"
    seconds = round(time.perf_counter() - began)
    record = {
        "row": cell.row,
        "column": cell.column,
        "state": state,
        "why": why.replace(str(cell.work), "FOLDER"),
        "seconds": seconds,
        "date": datetime.now().date().isoformat(),
        "torch": torch.__version__,
    }
    write_json(cell.record, record)
    return record


# ------------------------------------------------------------------------------------------- page


def page(records: Sequence[dict[str, Any]]) -> str:
    """The table of all cells, refusals as notes under it."""
    found = {(each["row"], each["column"]): each for each in records}
    notes: dict[str, int] = {}
    lines = []
    trainers = list(registry.TRAINERS)
    for rows in (trainers, [row for row in ROWS if row not in trainers]):
        lines += ["", "| |" + "|".join(row.removesuffix("Trainer") for row in rows) + "|"]
        lines.append("|---|" + "---|" * len(rows))
        for column in COLUMNS:
            shown = [_shown(found.get((row, column)), notes) for row in rows]
            if any(shown):
                lines.append(f"| {column} | {' | '.join(shown)} |")
    told = [f"{number}. {note}" for note, number in notes.items()]
    counts = [sum(each["state"] == state for each in records) for state in (WORKS, REFUSED, FAILS)]
    return HEADING.format(*counts, sum(counts), len(list(cells(Path())))) + "\n".join(
        [*lines, "", "## Notes", "", *told, ""]
    )


HEADING = """# What works with which trainer

Written by `python -m studies.support write FOLDER` from {3} of {4} cells, which
`python -m studies.support run FOLDER` runs with nnU-Net's own commands on tiny data: {0} work, {1}
are refused in words, {2} fail. `run FOLDER --only "ROW/COLUMN"` runs one of them; those that are
empty have not been run. Trainings of several processes (DDP) are tested in
`tests/trainers`, with gloo.
"""


def _shown(record: dict[str, Any] | None, notes: dict[str, int]) -> str:
    if record is None or record["state"] == WORKS:
        return record["state"] if record else ""
    number = notes.setdefault(record["why"].strip().splitlines()[-1], len(notes) + 1)
    return f"{record['state']} ({number})"


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["run", "write", "list"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=(), help="ROW/COLUMN, row or column; with *")
    parser.add_argument("--again", action="store_true", help="those that do not work, once more")
    parser.add_argument("--anew", action="store_true", help="those that are recorded, too")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    work = arguments.folder.resolve()
    os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it once
    if arguments.action == "write":
        RECORDS.mkdir(exist_ok=True)
        for path in (work / "cells").glob("*.json"):
            shutil.copy(path, RECORDS)
        records = [read_object(path) for path in sorted(RECORDS.glob("*.json"))]
        with replacing(arguments.page) as partial:
            partial.write_text(page(records), encoding="utf-8")
        return
    for cell in cells(work, arguments.only):
        known = [cell.record, *([] if arguments.anew else [RECORDS / cell.record.name])]
        done = next((read_object(path) for path in known if path.exists()), {})
        if arguments.action == "list":
            print(f"{done.get('state', 'missing'):8}", cell.name)
        elif not done or (arguments.again and done["state"] != WORKS):
            print(cell.name, end=": ", flush=True)
            record = run_cell(cell)
            print(record["state"], f"({record['seconds']} s)", record["why"])


if __name__ == "__main__":
    main()
