"""Train trainers on one fold of a Decathlon task with nnU-Net's own commands, and compare.

Uses the folders that nnU-Net's environment variables name, skips what is finished there and
continues what was interrupted. Trainers must train equally long, so name them with a suffix::

    python benchmarks/compare_trainers.py --task Task04_Hippocampus --device cpu \
        --trainers nnUNetTrainer_5epochs CateNormTrainer_5epochs \
        --record benchmarks/results/hippocampus_catenorm.json

The last trainer predicts the test images. Overlays of some of them are drawn into the results
folder, not beside the record: most data sets must not be redistributed.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import record

from nnunet_ext.demo.decathlon import TaskFolder, check_task_folder

PLANNER, PLANS, CONFIGURATION, FOLD = "CompactPlanner", "CompactPlans", "3d_fullres", "0"
CASES_TO_DRAW = 4


def run(*command: str) -> float:
    """Run a command as a user would type it; return the seconds that it took."""
    print("$", " ".join(command), flush=True)
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin


def prepare(task: TaskFolder) -> None:
    """Convert, plan and preprocess, unless it is done."""
    if not Path(os.environ["nnUNet_raw"], task.dataset_name).exists():
        run("nnUNetv2_convert_MSD_dataset", "-i", str(task.path))
    if not Path(os.environ["nnUNet_preprocessed"], task.dataset_name, f"{PLANS}.json").exists():
        options = ["-d", str(task.task_id), "-pl", PLANNER, "-c", CONFIGURATION]
        run("nnUNetv2_plan_and_preprocess", *options)


def train(trainer: str, dataset: str, device: str) -> Path:
    """Train and validate one trainer; return the folder of the fold."""
    model = Path(os.environ["nnUNet_results"], dataset, f"{trainer}__{PLANS}__{CONFIGURATION}")
    fold = model / f"fold_{FOLD}"
    if not (fold / "validation" / "summary.json").exists():
        options = ["-tr", trainer, "-p", PLANS, "-device", device]
        resume = "--val" if (fold / "checkpoint_final.pth").exists() else "--c"
        run("nnUNetv2_train", dataset, CONFIGURATION, FOLD, *options, resume)
    return fold


def measured(trainer: str, fold: Path) -> dict[str, Any]:
    """Read from nnU-Net's own files what came of a training."""
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    log = "".join(path.read_text() for path in sorted(fold.glob("training_log_*.txt")))
    result = {
        "trainer": trainer,
        "validation_cases": len(summary["metric_per_case"]),
        "mean_foreground_dice": round(summary["foreground_mean"]["Dice"], 4),
        "dice_per_label": {k: round(v["Dice"], 4) for k, v in summary["mean"].items()},
        "seconds_per_epoch": [float(s) for s in re.findall(r"Epoch time: ([\d.]+) s", log)],
    }
    losses = fold / "losses.csv"
    if losses.exists():
        with losses.open(newline="") as file:
            result["last_epoch"] = list(csv.DictReader(file))[-1]
    return result


def predict(trainer: str, dataset: str, device: str, output: Path) -> dict[str, Any]:
    """Predict the test images."""
    images = Path(os.environ["nnUNet_raw"], dataset, "imagesTs")
    options = ["-d", dataset, "-c", CONFIGURATION, "-f", FOLD, "-tr", trainer, "-p", PLANS]
    seconds = run(
        "nnUNetv2_predict", *options, "-i", str(images), "-o", str(output), "-device", device
    )
    return {"trainer": trainer, "cases": len(list(output.glob("*.nii.gz"))), "seconds": seconds}


def draw(dataset: str, predictions: Path, picture: Path) -> None:
    """Draw test images with contours of their predictions, middle slice of the foreground."""
    import numpy as np
    import SimpleITK as sitk  # noqa: N813
    from matplotlib.figure import Figure

    files = sorted(predictions.glob("*.nii.gz"))
    chosen = files[:: max(1, len(files) // CASES_TO_DRAW)][:CASES_TO_DRAW]
    figure = Figure(figsize=(3 * len(chosen), 6), layout="constrained")
    for column, (file, axes) in enumerate(
        zip(chosen, figure.subplots(2, len(chosen)).T, strict=True)
    ):
        case = file.name.removesuffix(".nii.gz")
        raw = Path(os.environ["nnUNet_raw"], dataset, "imagesTs", f"{case}_0000.nii.gz")
        image, labels = (sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in (raw, file))
        middle = int(np.median(np.nonzero(labels)[0])) if labels.any() else len(labels) // 2
        for axis in axes:
            axis.imshow(image[middle], cmap="gray")
            axis.axis("off")
        for label in np.unique(labels[labels > 0]):
            color = f"C{int(label)}"
            axes[1].contour(labels[middle] == label, [0.5], colors=color, linewidths=1.5)
        axes[0].set_title(case)
        if column == 0:
            figure.suptitle("test images and predictions")
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Run everything and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", type=Path, required=True, help="Decathlon task folder")
    parser.add_argument("--trainers", nargs="+", required=True)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    task = check_task_folder(arguments.task)
    dataset = task.dataset_name
    prepare(task)
    folds = {trainer: train(trainer, dataset, arguments.device) for trainer in arguments.trainers}
    predictions = Path(os.environ["nnUNet_results"], dataset, "test_predictions")
    result = {
        "dataset": dataset,
        "plans": f"{PLANS}, {CONFIGURATION}, fold {FOLD}",
        "device": arguments.device,
        "seeds": "none: stock nnU-Net takes none, and augmentation runs in worker processes",
        "trainings": [measured(trainer, fold) for trainer, fold in folds.items()],
        "prediction": predict(arguments.trainers[-1], dataset, arguments.device, predictions),
    }
    record.save(arguments.record, result)
    draw(dataset, predictions, predictions.with_suffix(".png"))
    print(arguments.record.read_text())


if __name__ == "__main__":
    main()
