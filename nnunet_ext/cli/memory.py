"""``nnunet-ext memory``: what a training will hold, before it is begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from nnunet_ext._common.console import say, say_json, show_table
from nnunet_ext._common.files import read_object
from nnunet_ext.cli.options import AsJson, Plans
from nnunet_ext.nnunet import discovery
from nnunet_ext.nnunet.datasets import DATASET_JSON
from nnunet_ext.nnunet.plans import PlansFile, open_plans

if TYPE_CHECKING:  # needs torch
    from nnunet_ext.memory.steps import Training

Planned = Annotated[
    str,
    Argument(metavar="DATASET", help="Number or name of a planned data set, or a model's folder."),
]
Configuration = Annotated[str, Option("-c", "--configuration", help="Configuration in the plans.")]
Trainer = Annotated[str, Option("-tr", "--trainer", help="Trainer, as in nnUNetv2_train.")]
Gpu = Annotated[
    float | None, Option(metavar="GB", min=0.1, help="Also show what fits a GPU of so many GB.")
]


def command(
    dataset: Planned,
    configuration: Configuration,
    plans: Plans = "nnUNetPlans",
    trainer: Trainer = "nnUNetTrainer",
    gpu: Gpu = None,
    as_json: AsJson = False,
) -> None:
    """Tell how much memory training and prediction take, without data and without a GPU.

    Runs one step of every phase of the training on tensors without values, as on a GPU in mixed
    precision. Needs nothing but the plans and dataset.json.

    \b
    Examples:
      nnunet-ext memory 4 -c 3d_fullres -tr CateNormTrainer --gpu 8
      nnunet-ext memory nnUNet_results/Dataset004_X/nnUNetTrainer__nnUNetPlans__2d -c 2d
    """
    model = Path(dataset, "plans.json")
    file = PlansFile(model) if model.is_file() else open_plans(dataset, plans)
    file.resolve(configuration)  # which names what there is instead
    described = read_object(file.path.parent / DATASET_JSON)
    discovery.activate(force=True)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_ext.memory.steps import Training

    found = recursive_find_trainer_class_by_name(trainer)
    report = _report(Training(found, file.content, configuration, described), trainer, gpu)
    if as_json:
        say_json(report)
    else:
        _show(report)


def _report(training: Training, name: str, gpu: float | None) -> dict[str, Any]:
    from nnunet_ext.memory import limits
    from nnunet_ext.memory.peaks import PREDICTION, simulate

    resolved = training.resolved
    peaks = simulate(training)
    trained = max(peak.total for phase, peak in peaks.items() if phase != PREDICTION)
    dim = len(resolved["patch_size"])
    report: dict[str, Any] = {
        "trainer": name,
        "plans": training.plans["plans_name"],
        "configuration": training.configuration,
        "batch_size": resolved["batch_size"],
        "patch_size": resolved["patch_size"],
        "peaks": {phase: {"bytes": peak.total, **peak.parts} for phase, peak in peaks.items()},
        "gpu_gb_needed": trained / limits.capacity(dim, 1),
    }
    if gpu is not None:
        limit = limits.capacity(dim, gpu)
        report["gpu"] = {
            "gb": gpu,
            "bytes": limit,
            "training_fits": trained <= limit,
            "prediction_fits": peaks[PREDICTION].total <= limit,
            "largest_batch": limits.largest_batch(training, limit),
            "largest_patch": limits.largest_patch(training, limit),
        }
    return report


def _show(report: dict[str, Any]) -> None:
    from nnunet_ext.memory.limits import GB
    from nnunet_ext.memory.simulation import KINDS

    patch = "x".join(map(str, report["patch_size"]))
    say(
        f"{report['trainer']}, {report['configuration']} of {report['plans']}: patch {patch}, "
        f"batch {report['batch_size']}. Peak memory, simulated, in GB:"
    )
    peaks = report["peaks"]
    rows = [
        (name, *(f"{peak.get(kind, 0) / GB:.2f}" for peak in peaks.values()))
        for kind, name in (*zip(KINDS, KINDS, strict=True), ("bytes", "all"))
    ]
    show_table(("", *peaks), rows)
    needed = report["gpu_gb_needed"]
    say(f"By the measure of nnU-Net's planner, training needs a GPU of {needed:.1f} GB.")
    if "gpu" not in report:
        return
    gpu = report["gpu"]
    say(
        f"The training {'fits' if gpu['training_fits'] else 'DOES NOT FIT'} {gpu['gb']:g} GB, of "
        f"which {gpu['bytes'] / GB:.2f} GB are left for what is simulated; CUDA, its libraries and "
        "fragmentation take the rest.",
        "green" if gpu["training_fits"] else "red",
    )
    if not gpu["prediction_fits"]:
        say("In prediction nnU-Net will have to keep logits on the CPU.", "yellow")
    largest = "x".join(map(str, gpu["largest_patch"] or ("none",)))
    say(
        f"Largest batch of patches of {patch}: {gpu['largest_batch'] or 'none'}. "
        f"Largest patch of its shape in batches of {report['batch_size']}: {largest}."
    )
