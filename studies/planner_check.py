"""What each planner's plans hold in training, simulated, over what stock nnU-Net may hold.

Data sets are described by the fingerprints of large images, of which none exists::

    python -m studies.planner_check --record studies/records/planner_check.json

Also puts the table into ``docs/memory.md``.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)

from nnunet_ext import planners
from nnunet_ext.memory.peaks import simulate
from nnunet_ext.memory.steps import Training
from nnunet_ext.nnunet import lookup
from nnunet_ext.registry import PLANNERS
from studies import record
from studies.memory_check import PAGE, write_between
from studies.summarise import table

MARK = "<!-- planners: written by studies/planner_check.py -->"
NUMBER = 999
CASES = 100
IMAGES = {
    "CT": ([300, 512, 512], [1.5, 0.8, 0.8]),
    "brain MR": ([155, 240, 240], [1.0, 1.0, 1.0]),
    "thick slices": ([20, 320, 320], [5.0, 0.7, 0.7]),
}
"""Kind of images -> their shape and spacing."""


@contextmanager
def described(shape: list[int], spacing: list[float]) -> Iterator[dict[str, Any]]:
    """Within it, nnU-Net finds the fingerprint of a data set; gives its dataset.json."""
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    fingerprint = {
        "spacings": [spacing] * CASES,
        "shapes_after_crop": [shape] * CASES,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(Path(folder, variable))
            Path(folder, variable, f"Dataset{NUMBER}_Described").mkdir(parents=True)
        raw = Path(folder, "nnUNet_raw", f"Dataset{NUMBER}_Described")
        (raw / "dataset.json").write_text(json.dumps(content))
        for name in ("imagesTr/case_0000.nii.gz", "labelsTr/case.nii.gz"):
            (raw / name).parent.mkdir()
            sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8)), raw / name)
        preprocessed = Path(folder, "nnUNet_preprocessed", raw.name)
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        yield content


def plan(planner: Any) -> tuple[Any, dict[str, Any], float]:
    """Let a planner plan: itself, its plans and the seconds of processor time that it took."""
    began = time.process_time()
    with redirect_stdout(io.StringIO()):
        made = planner(NUMBER)
        plans = made.plan_experiment()
    return made, json.loads(json.dumps(plans, default=int)), time.process_time() - began


def check(
    made: Any, plans: dict[str, Any], dataset_json: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Compare what each configuration of a planner's plans holds with its target."""
    trainer = lookup.load("trainers", made.trainer_name)
    for configuration, content in plans["configurations"].items():
        target = made._targets.get(len(content.get("patch_size", ())))
        if target is not None:
            training = Training(trainer, plans, configuration, dataset_json)
            held = max(peak.total for peak in simulate(training, steps_only=True).values())
            patch = "x".join(map(str, content["patch_size"]))
            yield {
                "planner": type(made).__name__,
                "configuration": configuration,
                "patch": patch,
                "batch": content["batch_size"],
                "held, GB": round(held / 2**30, 2),
                "target, GB": round(target.total / 2**30, 2),
                "held over target": round(held / target.total, 3),
            }


def main() -> None:
    """Check all planners on all kinds of images, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--planner", action="append", help="may be repeated; default all")
    parser.add_argument("--images", action="append", choices=IMAGES, help="default all kinds")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    names = arguments.planner or [each.name for each in PLANNERS.values() if each.method]
    rows, seconds = [], {}
    for kind in arguments.images or IMAGES:
        with described(*IMAGES[kind]) as dataset_json:
            for stock in (ExperimentPlanner, nnUNetPlannerResEncM):
                os.environ["nnUNet_n_proc_DA"] = "1"  # 0 stops stock planners
                seconds[f"{kind}, {stock.__name__}"] = round(plan(stock)[2], 1)
            for name in names:
                made, plans, taken = plan(getattr(planners, name))
                seconds[f"{kind}, {name}"] = round(taken, 1)
                for row in check(made, plans, dataset_json):
                    rows.append({"images": kind, **row})
                    print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(seconds, indent=2))
    write_between(MARK, arguments.page, table(list(rows[0]), [list(row.values()) for row in rows]))
    if arguments.record:
        record.save(arguments.record, {"seconds": seconds, "peaks": rows})


if __name__ == "__main__":
    main()
