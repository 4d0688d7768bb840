"""Time of one training step of Mind the Gap's translator (Step A), and images per second.

Every ``--setting`` is measured in turns with the others, the first without any being the default::

    python -m studies.translator_cost --size 256 256 --setting '{"translator_batch": 1}' \
        --setting '{"translator_batch": 1, "translator_filters": 16, "translator_blocks": 2}' \
        --record studies/records/translator_cost_cpu.json

Images are noise, already in memory: what is read from disk in a training is read meanwhile.
"""

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.settings.mind_the_gap import TranslatorSettings
from nnunet_ext.translation.training import TranslatorTraining
from studies import record
from studies.timing import timed


class Noise:
    """A data set of one case (C, 1, *S) or (C, *S), as nnU-Net's would give it."""

    identifiers = ("noise",)

    def __init__(self, channels: int, size: tuple[int, ...]) -> None:
        shape = (channels, *[1] * (3 - len(size)), *size)
        self.voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def load_case(self, _case: str) -> tuple[Any, ...]:
        """Voxels, and neither labels nor properties."""
        return self.voxels, None, None, {}


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Let the settings take turns; medians of each."""
    device = torch.device(arguments.device)
    size = tuple(arguments.size)
    datasets = [Noise(arguments.channels, size) for _ in range(2)]
    times: dict[str, list[float]] = {setting: [] for setting in arguments.setting}
    with tempfile.TemporaryDirectory() as folder:
        competitors = {}
        for setting in arguments.setting:
            changes = {"translator_dim": len(size), **json.loads(setting)}
            settings = TranslatorSettings(**changes)
            training = TranslatorTraining(datasets, settings, Path(folder), device)
            competitors[setting] = training, training.batches[0].to(device)
        for step in range(arguments.warm_up + arguments.steps):
            for setting, (training, images) in competitors.items():
                seconds = timed(device, partial(training.step, images))
                if step >= arguments.warm_up:
                    times[setting].append(seconds)
    rows = {}
    for setting, (_, images) in competitors.items():
        seconds = statistics.median(times[setting])
        rows[setting] = {
            "images per step": len(images),
            "seconds per step": float(f"{seconds:.3g}"),
            "images per second": float(f"{len(images) / seconds:.3g}"),
        }
    return rows


def parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--size", type=int, nargs="+", default=[256, 256], help="two or three")
    parser.add_argument(
        "--setting", action="append", metavar="JSON", help="may be repeated; default {}"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on the CPU")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="of each setting")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    return parser


def main() -> None:
    """Measure, print, and record if asked to."""
    arguments = parser().parse_args()
    arguments.setting = arguments.setting or ["{}"]
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments)
    for setting, row in rows.items():
        print(setting, row)
    if arguments.record:
        not_kept = ("record", "setting")
        kept = {key: value for key, value in vars(arguments).items() if key not in not_kept}
        record.save(arguments.record, {"arguments": kept, "translators": rows})


if __name__ == "__main__":
    main()
