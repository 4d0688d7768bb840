"""Do ConDSeg's three regions show what they should? Measures it over models and draws the first.

Takes patches of held-out cases from the preprocessed data set that the models were trained on
(``nnUNet_preprocessed``), for example of an experiment::

    nnunet-ext benchmark run studies/experiments/condseg_skin.json --out skin
    nnUNet_preprocessed=skin/nnUNet_preprocessed python -m studies.condseg_regions \
        skin/nnUNet_results/Dataset103_SkinLesion/ConDSegTrainer__*_full_* \
        --out regions.png --record studies/records/condseg_regions_skin.json

Reports, over held-out cases, the mean probability of the uncertain region within three voxels of
the border of the foreground and elsewhere, the ratio of both, and the Dice of the foreground in a
patch as it is and with the guides of foreground and background exchanged.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from nnunet_ext._common import pictures
from nnunet_ext.losses.condseg import region_probabilities
from nnunet_ext.networks.condseg.network import DecoupledLogits
from nnunet_ext.networks.condseg.recomputed import resize
from nnunet_ext.trainers.distributed import unwrap
from studies import models, record

REGIONS = ("foreground", "background", "uncertain")
SHARE = "uncertain_share"
BORDER = 3
"""Voxels from the border of the foreground."""
WIDTH = 2.4
"""Of one picture, in inches."""


def shares_of(trainer: Any) -> list[tuple[int, float]]:
    """Epochs of the second phase and the mean probability of the uncertain region in them."""
    return [(row["epoch"], row[SHARE]) for row in trainer.history.rows if SHARE in row]


def regions_of(answer: DecoupledLogits) -> NDArray[Any]:
    """Probabilities of the three regions (3, *S) of the only image of a batch."""
    size = answer.logits.shape[2:]
    return resize(region_probabilities(answer.maps), size)[0].numpy()


def dice(trainer: Any, logits: Tensor, truth: NDArray[Any]) -> float:
    """Dice of any foreground; 1 where there is none and none is found."""
    labels = trainer.label_manager.convert_logits_to_segmentation(logits[0])
    found = np.asarray(labels) > 0
    total = int(found.sum() + truth.sum())
    return 2 * float((found & truth).sum()) / total if total else 1.0


def near_border(foreground: NDArray[Any]) -> NDArray[Any]:
    """Voxels at most ``BORDER`` away from one of the other kind (*S)."""
    inside, outside = distance_transform_edt(foreground), distance_transform_edt(~foreground)
    within: NDArray[Any] = np.maximum(inside, outside) <= BORDER
    return within


@torch.no_grad()
def measure(trainer: Any, cases: Sequence[str]) -> dict[str, float]:
    """Means of a model over patches of cases whose border lies within."""
    network: Any = unwrap(trainer.network)
    decoupling = network.decoder["seg_layers"].decoupling
    rows = []
    for case in cases:
        image, labels = models.patch_of(trainer, case)
        foreground = labels > 0
        border = near_border(foreground) if foreground.any() else foreground
        if not border.any() or border.all():
            continue
        answer = network(image[None], answer="decoupled")
        uncertain = regions_of(answer)[2]
        exchange = decoupling.register_forward_hook(
            lambda _module, _inputs, guides: guides._replace(
                foreground=guides.background, background=guides.foreground
            )
        )
        exchanged = network(image[None])
        exchange.remove()
        scores = (dice(trainer, logits, foreground) for logits in (answer.logits, exchanged))
        rows.append((uncertain[border].mean(), uncertain[~border].mean(), *scores))
    if not rows:
        raise SystemExit("No held-out case has a border of the foreground in its patch.")
    near, far, own, exchanged = np.mean(rows, axis=0)
    figures = {
        "uncertain near the border": near,
        "elsewhere": far,
        "ratio": near / far,
        "Dice": own,
        "Dice, guides exchanged": exchanged,
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


@torch.no_grad()
def draw(trainer: Any, cases: Sequence[str], out: Path) -> None:
    """Draw the regions of some cases, and how the share of the uncertain one has changed."""
    columns, rows = 1 + len(REGIONS), len(cases) + 1
    figure = Figure(figsize=(WIDTH * columns, WIDTH * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    patches = [models.patch_of(trainer, case) for case in cases]
    network: Any = unwrap(trainer.network)
    found = [regions_of(network(image[None], answer="decoupled")) for image, _ in patches]
    brightest = 1.0, 1.0, max(float(regions[2].max()) for regions in found)
    for i, ((image, labels), regions) in enumerate(zip(patches, found, strict=True)):
        axis, index, aspect = models.slice_to_show(trainer, labels)
        truth = models.flat(labels[None], axis, index)
        names = dict(zip(range(1, int(labels.max()) + 1), pictures.COLOURS, strict=False))
        axes = figure.add_subplot(grid[i, 0])
        pictures.draw_slice(axes, models.flat(image.numpy(), axis, index), aspect)
        pictures.draw_labels(axes, 0 * truth, truth, names)
        if i == 0:
            axes.set_title("image, truth", fontsize="small")
        for j, (name, region, white) in enumerate(zip(REGIONS, regions, brightest, strict=True), 1):
            axes = figure.add_subplot(grid[i, j])
            slice_shown = models.flat(region[None], axis, index)
            axes.imshow(slice_shown, cmap="magma", vmin=0, vmax=white, aspect=aspect)
            axes.set_axis_off()
            if i == 0:
                axes.set_title(f"{name}, 0 to {white:.2g}", fontsize="small")
    axes = figure.add_subplot(grid[-1, :])
    axes.plot(*zip(*shares_of(trainer), strict=True), marker=".")
    axes.set(xlabel="epoch", ylabel="uncertain share", ylim=(0, None))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Measure and print; draw and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="folders of trained models")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth")
    parser.add_argument("--cases", type=int, default=3, help="drawn cases")
    parser.add_argument("--out", type=Path, help="picture to write")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as results:
            os.environ["nnUNet_results"] = results
            trainer = models.load(model, arguments.fold, arguments.checkpoint)
            if not shares_of(trainer):
                parser.error(f"{model} has no regions: only the method's own decoder has")
            cases = sorted(trainer.do_split()[1])
            rows[model.name] = measure(trainer, cases)
            print(model.name, rows[model.name])
            if arguments.out and len(rows) == 1:
                draw(trainer, cases[: arguments.cases], arguments.out)
    if arguments.record:
        data_set = trainer.plans_manager.dataset_name
        described = {"data set": data_set, "border": BORDER, "cases": len(cases)}
        record.save(arguments.record, {"arguments": described, "models": rows})


if __name__ == "__main__":
    main()
