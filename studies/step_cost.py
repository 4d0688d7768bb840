"""Time and memory of one training step and one prediction, trainers side by side.

Every arm is a trainer, with settings if it takes any, and runs in a process of its own; the
arms take turns, step by step, so that a drift of the machine's speed hits all alike. Needs a
data set that nnU-Net has planned (``nnUNet_preprocessed``); the batches are random numbers::

    python -m studies.step_cost --dataset 4 --plans CompactPlans --configuration 3d_fullres \
        --arm nnUNetTrainer --arm 'CateNormTrainer={"catenorm": {"plain_fraction": 0}}'

The first arm is what the others are compared with. What the arithmetic alone demands, that is the
operations of convolutions and matrix products, is counted beside the time. ``--part _mix`` also
takes the time that a method of the trainers takes within a training step.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing as mp
import os
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from studies import record
from studies.timing import timed


class Arm:
    """A trainer in a process of its own that does on demand what it is asked for."""

    def __init__(self, spec: str, arguments: argparse.Namespace) -> None:
        self.trainer, _, settings = spec.partition("=")
        self.settings = json.loads(settings or "{}")
        self.name = spec
        context = mp.get_context("spawn")
        self._connection, theirs = context.Pipe()
        worker = (theirs, self.trainer, self.settings, vars(arguments))
        self._process = context.Process(target=serve, args=worker, daemon=True)
        self._process.start()

    def close(self) -> None:
        """Let the process end."""
        self._connection.close()
        self._process.join()

    def ask(self, what: str) -> float:
        """Let the process do one thing and return what it measured."""
        self._connection.send(what)
        return float(self._connection.recv())


def serve(
    connection: Connection, trainer_name: str, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Answer requests in the process of one arm."""
    import torch

    from nnunet_ext.memory.steps import random_batch

    torch.set_num_threads(arguments["threads"])
    device = torch.device(arguments["device"])
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        trainer = build_trainer(trainer_name, settings, arguments, device)
        batch = random_batch(trainer)
        if hasattr(trainer, "_unlabelled"):  # images of the other domain come from a loader
            trainer._unlabelled = itertools.repeat(batch)
        part = Part(trainer, arguments["part"], device)
        memory = PeakMemory(device)
        answers = {
            "train": lambda: timed(device, lambda: trainer.train_step(batch)),
            "part": part.since_last,
            "predict": lambda: predict(trainer, batch["data"][:1].to(device)),
            "memory": memory.since_start,
            "train_operations": lambda: operations(lambda: trainer.train_step(batch)),
            "predict_operations": lambda: operations(
                lambda: predict(trainer, batch["data"][:1].to(device))
            ),
        }
        with contextlib.suppress(EOFError):  # the measurement is over
            while True:
                connection.send(answers[connection.recv()]())


def build_trainer(
    name: str, settings: dict[str, Any], arguments: dict[str, Any], device: Any
) -> Any:
    """Construct a trainer as nnU-Net's command does, ready for its first step."""
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder = Path(nnUNet_preprocessed, maybe_convert_to_dataset_name(arguments["dataset"]))
    plans = json.loads((folder / f"{arguments['plans']}.json").read_text())
    dataset_json = json.loads((folder / "dataset.json").read_text())
    plans["continue_training"] = False
    configuration = arguments["configuration"]
    plans["configurations"]["step_cost"] = {
        "inherits_from": configuration,
        "nnunet_ext": settings,
        **({"batch_size": arguments["batch_size"]} if arguments["batch_size"] else {}),
        **({"patch_size": arguments["patch_size"]} if arguments["patch_size"] else {}),
    }
    trainer_class = recursive_find_trainer_class_by_name(name)
    trainer = trainer_class(plans, "step_cost", 0, dataset_json, device)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    return trainer


def predict(trainer: Any, data: Any) -> float:
    """Time one forward pass as the predictor runs it."""
    import torch

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    with torch.inference_mode(), torch.autocast(data.device.type, enabled=data.is_cuda):
        seconds = timed(data.device, lambda: trainer.network(data))
    trainer.network.train()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return seconds


def operations(act: Callable[[], object]) -> float:
    """Count the floating-point operations of convolutions and matrix products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    direct: dict[Any, Any] = {
        torch.ops.aten.mkldnn_convolution: lambda x, weight, *_, out_shape, **__: conv_flop_count(
            x, weight, out_shape
        )
    }
    with FlopCounterMode(display=False, custom_mapping=direct) as counter:
        act()
    return counter.get_total_flops()


class Part:
    """Takes the time that a method of an object takes, if it has such a method.

    On a GPU this adds two synchronisations to every call.
    """

    def __init__(self, owner: Any, name: str | None, device: Any) -> None:
        self.seconds = 0.0
        method = getattr(owner, name, None) if name else None
        if method is not None:
            setattr(owner, str(name), lambda *args: self._call(device, method, args))

    def _call(self, device: Any, method: Any, arguments: tuple[Any, ...]) -> Any:
        answers: list[Any] = []
        self.seconds += timed(device, lambda: answers.append(method(*arguments)))
        return answers[0]

    def since_last(self) -> float:
        """Seconds in the method since this was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class PeakMemory:
    """Peak memory in MiB: allocated on the GPU, or resident in the process on the CPU.

    On the CPU what the process held before the first step is subtracted, so that
    libraries do not count, but neither do weights.
    """

    def __init__(self, device: Any) -> None:
        import torch

        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.before = self._status("VmRSS")

    def since_start(self) -> float:
        """Peak since this object was made."""
        import torch

        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return self._status("VmHWM") - self.before

    @staticmethod
    def _status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(field))
        return int(line.split()[1]) / 1024


def measure(arms: list[Arm], warm_up: int, steps: int) -> list[dict[str, Any]]:
    """Let the arms take turns; medians of each."""
    times: dict[tuple[str, str], list[float]] = {}
    peaks = {}
    for what in ("train", "predict"):
        for step in range(warm_up + steps):
            for arm in arms:
                taken = {what: arm.ask(what)}
                if what == "train":
                    taken["part"] = arm.ask("part")
                if step >= warm_up:
                    for name, seconds in taken.items():
                        times.setdefault((arm.name, name), []).append(seconds)
        if what == "train":
            peaks = {arm.name: arm.ask("memory") for arm in arms}
    kinds = ("train", "predict")
    counts = {arm.name: {kind: arm.ask(f"{kind}_operations") for kind in kinds} for arm in arms}
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"arm": arm.name, "peak_MiB": round(peaks[arm.name])}
        row["peak_ratio"] = round(peaks[arm.name] / peaks[arms[0].name], 2)
        for what in kinds:
            ratios = [
                mine / first
                for mine, first in zip(
                    times[arm.name, what], times[arms[0].name, what], strict=True
                )
            ]
            row[f"{what}_s"] = round(statistics.median(times[arm.name, what]), 4)
            row[f"{what}_ratio"] = round(statistics.median(ratios), 2)
            arithmetic = counts[arm.name][what] / counts[arms[0].name][what]
            row[f"{what}_operations_ratio"] = round(arithmetic, 2)
        shares = zip(times[arm.name, "part"], times[arm.name, "train"], strict=True)
        row["part_share"] = round(statistics.median(part / step for part, step in shares), 3)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="id or name")
    parser.add_argument("--plans", default="nnUNetPlans")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--arm", action="append", required=True, metavar="TRAINER[=SETTINGS]")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on the CPU")
    parser.add_argument("--batch-size", type=int, help="instead of the planned one")
    parser.add_argument("--patch-size", type=int, nargs="+", help="instead of the planned one")
    parser.add_argument("--part", metavar="METHOD", help="of the trainers, to be timed in a step")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    arms = [Arm(spec, arguments) for spec in arguments.arm]
    rows = measure(arms, arguments.warm_up, arguments.steps)
    for arm in arms:
        arm.close()
    if not arguments.part:
        for row in rows:
            del row["part_share"]
    columns = list(rows[0])
    print("  ".join(f"{column:>13}" for column in columns[1:]))
    for row in rows:
        print("  ".join(f"{row[column]:>13}" for column in columns[1:]), row["arm"])
    if arguments.record:
        kept = {k: v for k, v in vars(arguments).items() if k not in ("record", "arm")}
        record.save(arguments.record, {"arguments": kept, "arms": rows})


if __name__ == "__main__":
    main()
