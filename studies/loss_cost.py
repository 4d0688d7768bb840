"""Time of the loss alone, forward and backward, ours and nnU-Net's side by side.

The arms take turns in one process, so that a drift of the machine's speed hits all alike::

    python -m studies.loss_cost --record studies/records/loss_cost.json

The first arm is what the others are compared with.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from nnunet_ext.losses import TopKSigmaCompoundLoss, TopKSigmaLoss
from studies import record
from studies.timing import timed

Loss = Callable[[Tensor, Tensor], Tensor]


def losses(classes: int, batch_dice: bool) -> dict[str, Loss]:
    """Build the losses to compare, by name."""
    dice_settings = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}

    def stock() -> Any:
        return DC_and_CE_loss(dice_settings, {}, dice_class=MemoryEfficientSoftDiceLoss)

    def ours(dice: Any = "masked", **settings: Any) -> Loss:
        envelope = TopKSigmaLoss(num_classes=classes, **settings)
        return TopKSigmaCompoundLoss(stock(), envelope, classes, dice)

    return {
        "DC_and_CE_loss": stock(),
        "DC_and_topk_loss": DC_and_topk_loss(dice_settings, {"k": 10}),
        "sigma 0.02": ours(sigma=0.02, top_fraction=1),
        "sigma 0.02, top 0.5": ours(sigma=0.02, top_fraction=0.5),
        "sigma 0.1": ours(sigma=0.1, top_fraction=1),
        "sigma 0.02, plain Dice": ours("plain", sigma=0.02, top_fraction=1),
        "sigma 0.02, hard": ours(sigma=0.02, top_fraction=1, smoothing="hard"),
        "sigma 0.02, integral": ours(sigma=0.02, top_fraction=1, smoothing="integral"),
        "sigma 0.02, of each class": ours(sigma=0.02, top_fraction=1, scope="class"),
    }


def backward(loss: Loss, logits: Tensor, target: Tensor) -> None:
    """Compute value and gradient."""
    logits.grad = None
    loss(logits, target).backward()


def main() -> None:
    """Measure, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--patch-size", type=int, nargs="+", default=[128, 128, 128])
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--batch-dice", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on the CPU")
    parser.add_argument("--runs", type=int, default=15, help="of each loss")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "size_average and reduce")  # by nnU-Net's TopKLoss
    torch.set_num_threads(arguments.threads)

    torch.manual_seed(0)
    shape = (arguments.batch_size, 1, *arguments.patch_size)
    target = torch.randint(arguments.classes, shape)
    # right for most voxels, as after some training: then losses have a tail to leave out
    right = torch.zeros(shape[0], arguments.classes, *shape[2:]).scatter_(1, target, 4.0)
    logits = (right + torch.randn(right.shape)).to(arguments.device).requires_grad_()
    target = target.to(arguments.device, torch.int16)

    arms = losses(arguments.classes, arguments.batch_dice)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for run in range(arguments.runs + 2):
        for name, loss in arms.items():
            seconds = timed(logits.device, partial(backward, loss, logits, target))
            if run >= 2:  # the first runs fill caches
                times[name].append(seconds)
    first = next(iter(times.values()))
    rows = {
        name: {
            "milliseconds": round(1000 * statistics.median(mine), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(mine, first, strict=True)), 2),
        }
        for name, mine in times.items()
    }
    print(f"{'ms':>10}  {'ratio':>6}")
    for name, row in rows.items():
        print(f"{row['milliseconds']:>10}  {row['ratio']:>6}  {name}")
    if arguments.record:
        kept = {key: value for key, value in vars(arguments).items() if key != "record"}
        record.save(arguments.record, {"arguments": kept, "losses": rows})


if __name__ == "__main__":
    main()
