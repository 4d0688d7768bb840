"""Simulated peaks of memory beside those of real steps, and what ``docs/memory.md`` shows of them.

``measure`` takes real steps of small networks on the CPU and asks torch's profiler what its
allocator held; ``table`` simulates the trainings of plans that nobody could train here::

    python -m studies.memory_check measure --record studies/records/memory_check_cpu.json
    python -m studies.memory_check table nnUNetPlans.json 3d_fullres --dataset-json dataset.json
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.profiler import ProfilerActivity, profile

from nnunet_ext import trainers
from nnunet_ext._common.files import read_object, replacing
from nnunet_ext.memory.limits import GB, reference
from nnunet_ext.memory.peaks import PREDICTION, simulate
from nnunet_ext.memory.steps import Training, networks_of, random_batch, steps
from studies import record
from studies.summarise import table

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURE = DOCS / "memory.md", DOCS / "memory_check.png"
BEGIN, END = "<!-- trainers: written by studies/memory_check.py -->", "<!-- until here -->"
WIDTHS = [16, 32, 64, 64]
PATCH = {2: [96, 96], 3: [32, 32, 32]}
TOLERANCE = 0.1


def find(name: str) -> Any:
    """A trainer of ours, or stock nnU-Net's."""
    return nnUNetTrainer if name == nnUNetTrainer.__name__ else getattr(trainers, name)


def small(name: str, dim: int, residual: bool) -> Training:
    """A training that takes seconds per step on a CPU."""
    training = reference(find(name), dim)
    architecture = training.resolved["architecture"]
    arguments = architecture["arch_kwargs"]
    stages = len(WIDTHS)
    arguments |= {"n_stages": stages, "features_per_stage": WIDTHS}
    for per_stage in ("kernel_sizes", "strides", "n_conv_per_stage"):
        arguments[per_stage] = arguments[per_stage][:stages]
    arguments["n_conv_per_stage_decoder"] = arguments["n_conv_per_stage_decoder"][: stages - 1]
    if residual:
        architecture["network_class_name"] = architecture["network_class_name"].replace(
            "PlainConvUNet", "ResidualEncoderUNet"
        )
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    return training.changed(architecture=architecture, patch_size=PATCH[dim], batch_size=2)


def allocated(training: Training) -> dict[str, int]:
    """Phase -> bytes that torch's allocator held at most in the second step."""
    peaks = {}
    with training.trainer_without_data() as trainer:
        batch = random_batch(trainer)
        for phase, take in steps(trainer, batch):
            take()
            gc.collect()
            before = held_between_steps(trainer, batch)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                take()
            peaks[phase] = before + highest(profiled)
    return peaks


def held_between_steps(trainer: Any, batch: dict[str, Any]) -> int:
    """Bytes of weights, buffers, what optimisers keep, and the batch."""
    networks, kept = networks_of(trainer), []
    for network in networks:
        kept += [*network.parameters(), *network.buffers()]
    optimizers = (trainer.optimizer, *getattr(trainer, "auxiliary_optimizers", {}).values())
    for state in (state for each in optimizers for state in each.state.values()):
        kept += [value for value in state.values() if isinstance(value, torch.Tensor)]
    targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
    storages = (each.untyped_storage() for each in (*kept, batch["data"], *targets))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def highest(profiled: Any) -> int:
    """The most that the allocator gave out beyond what there was."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(names: Iterable[str], kinds: Iterable[tuple[int, bool]]) -> Iterator[dict[str, Any]]:
    """Compare both for each phase of every trainer on every kind of network."""
    for dim, residual in kinds:
        for name in names:
            training = small(name, dim, residual)
            simulated = simulate(training, on_gpu=False, steps_only=True)
            for phase, held in allocated(training).items():
                yield {
                    "trainer": name,
                    "network": f"{dim}D {'residual' if residual else 'plain'}",
                    "phase": phase,
                    "simulated": simulated[phase].total,
                    "allocated": held,
                    "ratio": round(simulated[phase].total / held, 3),
                }


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw simulated over allocated memory."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    megabytes = [[row[key] / 2**20 for row in rows] for key in ("allocated", "simulated")]
    ends = [0.8 * min(map(min, megabytes)), 1.25 * max(map(max, megabytes))]
    low, high = ([end * (1 + side) for end in ends] for side in (-TOLERANCE, TOLERANCE))
    axes.fill_between(ends, low, high, color="0.9", label=f"within {TOLERANCE:.0%}")
    for network in dict.fromkeys(row["network"] for row in rows):
        chosen = [i for i, row in enumerate(rows) if row["network"] == network]
        points = ([values[i] for i in chosen] for values in megabytes)
        axes.plot(*points, "o", fillstyle="none", label=network)
    axes.set(xscale="log", yscale="log", xlabel="held by torch, MB", ylabel="simulated, MB")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=2))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=120)


def peaks_table(training: Callable[[Any], Training], names: Iterable[str]) -> str:
    """Peaks of all phases of all trainers, in GB, as a table in Markdown."""
    rows = []
    for name in names:
        peaks = {phase: peak.total / GB for phase, peak in simulate(training(find(name))).items()}
        predicted = peaks.pop(PREDICTION)
        phases = ", ".join(f"{phase} {held:.2f}" for phase, held in peaks.items())
        rows.append([f"`{name}`", f"{max(peaks.values()):.2f}", phases, f"{predicted:.2f}"])
    return table(["trainer", "training", "of which", "prediction"], rows)


def write_tables(page: Path, plans: Path, configuration: str, dataset_json: Path) -> None:
    """Replace what stands between our marks in a page."""
    content, described = read_object(plans), read_object(dataset_json)

    def planned(trainer: Any) -> Training:
        return Training(trainer, content, configuration, described)

    resolved = planned(nnUNetTrainer).resolved
    names = (nnUNetTrainer.__name__, *trainers.__all__)
    parts = []
    for title, training in (
        (f"`{configuration}` of {content['dataset_name']}", planned),
        ("nnU-Net's plan for large images", lambda trainer: reference(trainer, 3)),
    ):
        resolved = training(nnUNetTrainer).resolved
        patch = "x".join(map(str, resolved["patch_size"]))
        heading = f"{title}: patch {patch}, batch {resolved['batch_size']}"
        parts.append(f"**{heading}**\n\n{peaks_table(training, names)}")
    write_between(BEGIN, page, "\n\n".join(parts))


def write_between(mark: str, page: Path, text: str) -> None:
    """Replace what stands between a mark and the next end in a page."""
    before, rest = page.read_text(encoding="utf-8").split(mark)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{mark}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--trainer", action="append", help="may be repeated; default all")
    measuring.add_argument("--network", action="append", help='such as "3D plain"; default all')
    measuring.add_argument("--record", type=Path, help="JSON file to write")
    measuring.add_argument("--figure", type=Path, default=FIGURE)
    writing = commands.add_parser("table")
    writing.add_argument("plans", type=Path)
    writing.add_argument("configuration")
    writing.add_argument("--dataset-json", type=Path, required=True)
    writing.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    if arguments.command == "table":
        described = arguments.dataset_json
        write_tables(arguments.page, arguments.plans, arguments.configuration, described)
        return
    names = arguments.trainer or [nnUNetTrainer.__name__, *trainers.__all__]
    wanted = arguments.network or ["2D plain", "2D residual", "3D plain", "3D residual"]
    kinds = [(int(network[0]), network.endswith("residual")) for network in wanted]
    rows = []
    for row in measure(names, kinds):
        rows.append(row)
        print(json.dumps(row), flush=True)
    draw(rows, arguments.figure)
    if arguments.record:
        record.save(arguments.record, {"threads": torch.get_num_threads(), "peaks": rows})


if __name__ == "__main__":
    main()
