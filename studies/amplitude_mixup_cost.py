"""Time of amplitude mixup per image, ours and the plain way with NumPy side by side.

The plain way transforms whole images there and back with complex numbers. Ours takes batches and
comes in two forms: with partners as images, and as training uses it, with partners whose low
frequencies are known already. The arms take turns in one process, so that a drift of the machine's
speed hits all alike::

    python -m studies.amplitude_mixup_cost --record studies/records/amplitude_mixup_cost.json

The first arm is what the others are compared with; it always runs on the CPU, in one thread.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext.augmentation import amplitude_mixup
from nnunet_ext.augmentation.amplitude_mixup import low_frequencies, mix
from studies import record
from studies.timing import timed

SHAPES = ((3, 256, 256), (1, 128, 128, 128))
"""Channels and size of the images of the two settings: a fundus photograph and a volume."""

BAND = 0.1
RATIO = 0.5
PLAIN = "plain NumPy"


def plain_way(source: NDArray[Any], partner: NDArray[Any]) -> NDArray[Any]:
    """Mix amplitudes of one image (C, *S) as the formula reads."""
    axes = tuple(range(1, source.ndim))
    ours, theirs = (np.fft.fftshift(np.fft.fftn(x, axes=axes), axes) for x in (source, partner))
    amplitude, phase = np.abs(ours), np.angle(ours)
    window = (
        slice(None),
        *(slice(n // 2 - int(BAND * n), n // 2 + int(BAND * n) + 1) for n in source.shape[1:]),
    )
    amplitude[window] = (1 - RATIO) * amplitude[window] + RATIO * np.abs(theirs[window])
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * phase), axes)
    return np.fft.ifftn(mixed, axes=axes).real.clip(
        min(source.min(), partner.min()), max(source.max(), partner.max())
    )


def arms(source: Tensor, partner: Tensor) -> dict[str, Callable[[], Any]]:
    """Build what is to be compared, by name, for batches on the device."""
    pairs = list(zip(source.cpu().numpy(), partner.cpu().numpy(), strict=True))
    style = low_frequencies(partner, BAND).style
    return {
        PLAIN: lambda: [plain_way(*pair) for pair in pairs],
        "amplitude_mixup": lambda: amplitude_mixup(source, partner, RATIO, BAND),
        "with a known partner": lambda: mix(source, low_frequencies(source, BAND), style, RATIO),
    }


def measure(shape: tuple[int, ...], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Let the arms take turns on images of one shape; medians per image of each."""
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    source, partner = (
        # not negative, so that all arms compute the same
        torch.rand(arguments.batch_size, *shape, generator=generator).to(device)
        for _ in range(2)
    )
    competitors = arms(source, partner)
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for run in range(arguments.runs + 2):
        for name, work in competitors.items():
            seconds = timed(device, work) / len(source)
            if run >= 2:  # the first runs fill caches
                times[name].append(seconds)
    rows = {}
    for name, mine in times.items():
        ratios = [a / b for a, b in zip(times[PLAIN], mine, strict=True)]
        median = statistics.median(mine)
        rows[f"{name}, {'x'.join(map(str, shape))}"] = {
            "milliseconds": round(1000 * median, 3),
            "images per s": round(1 / median, 1),
            "times as fast": round(statistics.median(ratios), 1),
        }
    return rows


def main() -> None:
    """Measure, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        action="append",
        metavar="N",
        help="channels and size of an image, may be repeated; default 3 256 256 and 1 128 128 128",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on the CPU")
    parser.add_argument("--runs", type=int, default=9, help="of each arm")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: dict[str, dict[str, float]] = {}
    for shape in arguments.shape or SHAPES:
        rows |= measure(tuple(shape), arguments)
    columns = next(iter(rows.values()))
    print("  ".join(f"{column:>13}" for column in columns))
    for name, row in rows.items():
        print("  ".join(f"{figure:>13}" for figure in row.values()), name)
    if arguments.record:
        kept = {key: value for key, value in vars(arguments).items() if key != "record"}
        record.save(arguments.record, {"arguments": kept, "images": rows})


if __name__ == "__main__":
    main()
