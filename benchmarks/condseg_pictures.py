"""Draw what ConDSeg takes for object, background and uncertain, and how that changes in training.

Takes patches of held-out cases from the preprocessed data set that the model was trained on
(``nnUNet_preprocessed``) and the network from its checkpoint::

    python benchmarks/condseg_pictures.py \
        $nnUNet_results/Dataset004_X/ConDSegTrainer__nnUNetPlans__3d_fullres --out docs/condseg.png
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import models
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunet_ext import pictures
from nnunet_ext.networks.condseg_parts import resize
from nnunet_ext.trainers.base import unwrap

COLUMNS = ("image, truth", "foreground", "background", "uncertain")
SHARE = "uncertain_share"
WIDTH = 2.4
"""Of one picture, in inches."""


@torch.no_grad()
def maps_of(trainer: Any, case: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Image (C, *S), labels (*S) and probabilities of the three regions (3, *S) of a patch."""
    image, labels = models.patch_of(trainer, case)
    network: Any = unwrap(trainer.network)
    maps = network(image[None], answer="decoupled").maps.softmax(dim=1)
    return image.numpy(), labels, resize(maps, image.shape[1:])[0].numpy()


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a trained model of ConDSegTrainer")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        trainer = models.load(arguments.model, arguments.fold, arguments.checkpoint)
        shares = [(row["epoch"], row[SHARE]) for row in trainer.history.rows if SHARE in row]
        if not shares:
            parser.error("only models with the method's own decoder can be drawn")
        _, held_out = trainer.do_split()
        rows = [maps_of(trainer, case) for case in sorted(held_out)[: arguments.cases]]

    height = WIDTH * (len(rows) + 1)
    figure = Figure(figsize=(WIDTH * len(COLUMNS), height), layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, len(COLUMNS))
    for i, (image, labels, maps) in enumerate(rows):
        axis, index, aspect = models.slice_to_show(trainer, labels)
        truth = models.flat(labels[None], axis, index)
        names = dict(zip(range(1, int(labels.max()) + 1), pictures.COLOURS, strict=False))
        for j, column in enumerate(COLUMNS):
            axes = figure.add_subplot(grid[i, j])
            if j:
                region = models.flat(maps[j - 1 : j], axis, index)
                axes.imshow(region, cmap="magma", vmin=0, vmax=1, aspect=aspect)
                axes.set_axis_off()
            else:
                pictures.draw_slice(axes, models.flat(image, axis, index), aspect)
                pictures.draw_labels(axes, 0 * truth, truth, names)
            if i == 0:
                axes.set_title(column, fontsize="small")
    axes = figure.add_subplot(grid[-1, :])
    axes.plot(*zip(*shares, strict=True), marker=".")
    axes.set(xlabel="epoch", ylabel="uncertain share", ylim=(0, None))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
