"""``nnunet-ext memory``: what a training will hold, before it is begun."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_ext.memory.steps import Training


def memory(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="Number or name of a planned data set, or a model's folder."
        ),
    ],
    configuration: Annotated[
        str, typer.Option("-c", "--configuration", help="Configuration in the plans.")
    ],
    plans: Annotated[str, typer.Option("-p", "--plans", help="Name of the plans.")] = "nnUNetPlans",
    trainer: Annotated[
        str, typer.Option("-tr", "--trainer", help="Any trainer that nnUNetv2_train knows.")
    ] = "nnUNetTrainer",
    gpu: Annotated[
        float | None,
        typer.Option("--gpu", metavar="GB", min=0.1, help="Say what fits a GPU of so many GB."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell how much memory training and prediction take, without data and without a GPU.

    Runs one step of every phase of the training on tensors without values, as on a GPU in mixed
    precision. Needs nothing but the plans and dataset.json.

    \b
    Examples:
      nnunet-ext memory 4 -c 3d_fullres -tr CateNormTrainer --gpu 8
      nnunet-ext memory nnUNet_results/Dataset004_X/nnUNetTrainer__nnUNetPlans__2d -c 2d
    """
    training = _training(dataset, configuration, plans, trainer)
    report = _report(training, trainer, gpu)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _training(dataset: str, configuration: str, plans: str, trainer: str) -> "Training":
    from nnunet_ext._common.files import read_object
    from nnunet_ext.nnunet.datasets import DATASET_JSON
    from nnunet_ext.nnunet.plans import PlansFile, open_plans

    folder = Path(dataset)
    file = (
        PlansFile(folder / "plans.json")
        if (folder / "plans.json").is_file()
        else open_plans(dataset, plans)
    )
    file.resolve(configuration)  # which names what there is instead
    described = read_object(file.path.parent / DATASET_JSON)
    found = _find_trainer(trainer)

    from nnunet_ext.memory.steps import Training

    return Training(found, file.content, configuration, described)


def _find_trainer(name: str) -> Any:
    from nnunet_ext.nnunet import discovery

    discovery.activate(force=True)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


def _report(training: "Training", name: str, gpu: float | None) -> dict[str, Any]:
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


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    from nnunet_ext._common.console import print_plain, print_table
    from nnunet_ext.memory.limits import GB
    from nnunet_ext.memory.simulation import KINDS

    console = Console(highlight=False)
    patch = "x".join(map(str, report["patch_size"]))
    plan = f"{report['configuration']} of {report['plans']}"
    print_plain(
        console,
        f"{report['trainer']}, {plan}: patch {patch}, batch {report['batch_size']}. "
        "Held at most, simulated, in GB:",
    )
    peaks = report["peaks"]
    rows = [
        (kind, *(f"{peak.get(kind, 0) / GB:.2f}" for peak in peaks.values()))
        for kind in (*KINDS, "bytes")
    ]
    print_table(console, ("", *peaks), [*rows[:-1], ("all", *rows[-1][1:])])
    needed = report["gpu_gb_needed"]
    print_plain(console, f"By nnU-Net's reckoning, training takes a GPU of {needed:.1f} GB.")
    if "gpu" in report:
        _print_limits(console, report["gpu"], patch, report["batch_size"])


def _print_limits(console: "Console", gpu: dict[str, Any], patch: str, batch: int) -> None:
    from nnunet_ext._common.console import print_plain
    from nnunet_ext.memory.limits import GB

    fits = "fits" if gpu["training_fits"] else "DOES NOT FIT"
    print_plain(
        console,
        f"It {fits} {gpu['gb']:g} GB, which hold {gpu['bytes'] / GB:.2f} GB of what is simulated; "
        "CUDA, its libraries and gaps take the rest.",
        "green" if gpu["training_fits"] else "red",
    )
    if not gpu["prediction_fits"]:
        print_plain(console, "In prediction nnU-Net will have to keep logits on the CPU.", "yellow")
    largest = "x".join(map(str, gpu["largest_patch"] or ("none",)))
    print_plain(
        console,
        f"Largest batch of patches of {patch}: {gpu['largest_batch'] or 'none'}. "
        f"Largest patch of its shape in batches of {batch}: {largest}.",
    )
