"""Everything that only a GPU can tell, in six parts of less than eight minutes each.

Every part goes on where it was stopped, adds to one file, and says when it is done::

    python -m studies.gpu --part 1    # and so on; docs/gpu.md says what to install before
    python -m studies.summarise       # makes tables of what was found

``--device cpu --tiny`` runs the same without a GPU, as far as that goes.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from nnunet_ext import trainers
from nnunet_ext._common.files import write_json
from nnunet_ext.benchmark.environment import circumstances
from nnunet_ext.memory import limits
from nnunet_ext.memory.peaks import simulate
from nnunet_ext.memory.steps import CPU, Training, random_batch, steps
from studies import memory_check, translator_cost
from studies.timing import timed

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "studies" / "records" / "gpu.json"
STOCK = "nnUNetTrainer"
BUDGET = 400.0
"""Seconds after which a part begins nothing new."""

Job = tuple[str, Callable[[], dict[str, Any]]]
"""What is found out, and how."""


class Study:
    """What all parts share.

    Args:
        device: Where to train.
        tiny: Whether networks and numbers of steps are those of a test.
    """

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.tiny = tiny
        self.names = [STOCK, "CateNormTrainer"] if tiny else [STOCK, *trainers.__all__]
        self.dims = [2] if tiny else [2, 3]
        self.taken = 1 if tiny else 10  # steps that are timed

    def jobs(self, part: int) -> Iterator[Job]:
        """The jobs of a part, in their order."""
        yield from {
            1: self._trains,
            2: self._times,
            3: self._memory,
            4: self._step_a,
            5: self._marked_tests,
            6: self._real_trainings,
        }[part]()

    def _large(self, name: str, dim: int) -> Training:
        """A training of the size that nnU-Net plans for a GPU of 8 GB."""
        if self.tiny:
            return memory_check.small(name, dim, residual=False)
        return limits.reference(memory_check.find(name), dim)

    # -------------------------------------------------------------------------- 1: does it train

    def _trains(self) -> Iterator[Job]:
        for dim, name, compiled in itertools.product(self.dims, self.names, (False, True)):
            if self.on_gpu or not compiled:  # nnU-Net compiles nothing on a CPU
                how = "compiled" if compiled else "eager"
                yield f"{name}, {dim}D, {how}", partial(self._train, name, dim, compiled)

    def _train(self, name: str, dim: int, compiled: bool) -> dict[str, Any]:
        training = memory_check.small(name, dim, residual=False)
        os.environ["nnUNet_compile"] = str(compiled)
        torch._dynamo.reset()
        counters = torch._dynamo.utils.counters
        counters.clear()
        losses, graphs = [], []
        for loss in self._losses(training, self.device, 2 if self.tiny else 5):
            losses.append(loss)
            graphs.append(counters["stats"]["unique_graphs"])
        first = next(self._losses(training, CPU, 1))
        breaks = sum(counters["graph_break"].values())
        return {
            "finite": all(map(torch.isfinite, map(torch.tensor, losses))),
            "graph breaks": breaks,
            "graphs after the first steps": graphs[-1] - graphs[0],
            "first loss": round(losses[0], 4),
            "on the CPU": round(first, 4),
        }

    @staticmethod
    def _losses(training: Training, device: torch.device, taken: int) -> Iterator[float]:
        """Losses of so many steps of the last phase, from weights and data that are the same."""
        torch.manual_seed(0)
        with training.trainer_without_data(device) as trainer:
            *_, (_, take) = steps(trainer, random_batch(trainer))
            for _ in range(taken):
                yield float(take()["loss"])

    # -------------------------------------------------------------------------------- 2: how fast

    def _times(self) -> Iterator[Job]:
        for dim, name in itertools.product(self.dims, self.names):
            yield f"{name}, {dim}D", partial(self._time, name, dim)

    def _time(self, name: str, dim: int) -> dict[str, Any]:
        """Times of a step in turns with stock's, and what takes them."""
        with (
            self._large(STOCK, dim).trainer_without_data(self.device) as stock,
            self._large(name, dim).trainer_without_data(self.device) as trainer,
        ):
            *_, (_, take_stock) = steps(stock, random_batch(stock))
            *_, (_, take) = steps(trainer, random_batch(trainer))
            for _ in range(1 if self.tiny else 5):  # compiles, and chooses algorithms
                take_stock(), take()
            pairs = [
                (timed(self.device, take_stock), timed(self.device, take))
                for _ in range(self.taken)
            ]
            shares = self._shares(take)
        ratios = sorted(mine / theirs for theirs, mine in pairs)
        return {
            "seconds": round(sorted(mine for _, mine in pairs)[len(pairs) // 2], 4),
            "over stock": round(ratios[len(ratios) // 2], 2),
            **shares,
        }

    def _shares(self, take: Callable[[], Any]) -> dict[str, str]:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        with profile(activities=activities) as profiled:
            take()
        found = dict.fromkeys(("forward and loss", "backward", "optimiser"), 0.0)
        for event in profiled.key_averages():
            name = event.key
            taken = event.self_device_time_total if self.on_gpu else event.self_cpu_time_total
            found["forward and loss"] += taken
            if name.startswith(("autograd::engine::evaluate_function", "Optimizer.step")):
                inside = event.device_time_total if self.on_gpu else event.cpu_time_total
                found["optimiser" if name.startswith("Optimizer") else "backward"] += inside
        total = found["forward and loss"]
        found["forward and loss"] -= found["backward"] + found["optimiser"]
        return {part: f"{share / total:.0%}" for part, share in found.items()}

    # ----------------------------------------------------------------------------- 3: how much

    def _memory(self) -> Iterator[Job]:
        for dim, name in itertools.product(self.dims, self.names):
            yield f"{name}, {dim}D", partial(self._held, name, dim)

    def _held(self, name: str, dim: int) -> dict[str, Any]:
        """Peak of the phase that holds most, simulated and real, beside what 8 GB should hold."""
        training = self._large(name, dim)
        os.environ["nnUNet_compile"] = "False"  # as it is simulated
        simulated = max(
            peak.total for peak in simulate(training, self.on_gpu, steps_only=True).values()
        )
        found = {"simulated, GB": simulated, "8 GB hold, GB": limits.capacity(dim, 8)}
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with training.trainer_without_data(self.device) as trainer:
                for _, take in steps(trainer, random_batch(trainer)):
                    take(), take()
                found["allocated, GB"] = torch.cuda.max_memory_allocated()
                found["reserved, GB"] = torch.cuda.max_memory_reserved()
        else:
            found["allocated, GB"] = max(memory_check.allocated(training).values())
        ratio = simulated / found["allocated, GB"]
        return {key: round(value / limits.GB, 3) for key, value in found.items()} | {
            "simulated over allocated": round(ratio, 3)
        }

    # ------------------------------------------------------------------------------- 4 to 6

    def _step_a(self) -> Iterator[Job]:
        size = ["32", "32"] if self.tiny else ["256", "256"]
        few = '{"translator_filters": 2, "translator_blocks": 1, "translator_batch": 1}'
        arguments = translator_cost.parser().parse_args(
            ["--size", *size, "--steps", str(self.taken), "--device", self.device.type]
        )
        for setting in [few] if self.tiny else ["{}", '{"translator_batch": 4}']:
            arguments.setting = [setting]
            yield setting, lambda: next(iter(translator_cost.measure(arguments).values()))

    def _marked_tests(self) -> Iterator[Job]:
        yield "tests marked gpu", self._test

    def _test(self) -> dict[str, Any]:
        where = ["tests/memory/test_gpu.py"] if self.tiny else ["tests"]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        done = subprocess.run([*command, *where], cwd=ROOT, capture_output=True, text=True)
        *_, last = done.stdout.strip().splitlines() or [done.stderr.strip()]
        return {"exit code": done.returncode, "summary": last.strip("= ")}

    def _real_trainings(self) -> Iterator[Job]:
        for name in ("CateNormTrainer", *(() if self.tiny else ("ExtensionTrainer",))):
            yield f"{name}, demo", partial(self._demo, name)

    def _demo(self, name: str) -> dict[str, Any]:
        few = ["--cases", "5", "--epochs", "1", "--iterations", "1"] if self.tiny else []
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "nnunet_ext", "demo", "--out", folder]
            options = ["--trainer", name, "--device", self.device.type, *few]
            began = time.perf_counter()
            subprocess.run([*command, *options], check=True, capture_output=True, cwd=ROOT)
            seconds = time.perf_counter() - began
            lines = Path(folder, "summary.txt").read_text(encoding="utf-8").splitlines()
        (dice,) = (float(line.split()[-1]) for line in lines if line.startswith("all "))
        return {"Dice": dice, "seconds": round(seconds)}


def run(study: Study, part: int, file: Path) -> bool:
    """Do what a part has left to do; tells whether nothing is left any more."""
    began = time.perf_counter()
    content = json.loads(file.read_text()) if file.exists() else {}
    done = content.setdefault("gpu_parts", {}).setdefault(str(part), {})
    for name, find_out in study.jobs(part):
        if name in done:
            continue
        if time.perf_counter() - began > BUDGET:
            return False
        done[name] = find_out()
        print(name, done[name], flush=True)
        write_json(file, circumstances() | content)
    return True


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", type=int, required=True, choices=range(1, 7))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small networks, few steps")
    parser.add_argument("--record", type=Path, default=RECORD, help="file to add to")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU that torch can use; see nnunet-ext doctor.")
    study = Study(torch.device(arguments.device), arguments.tiny)
    finished = run(study, arguments.part, arguments.record)
    print(f"Part {arguments.part} is done." if finished else "Not done yet: run this part again.")


if __name__ == "__main__":
    main()
