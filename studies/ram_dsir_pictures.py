"""Draw what RAM-DSIR does: original, partner, mixed and restored images of a trained model.

Takes patches of training cases, without augmentation, from the preprocessed data set that the model
was trained on (``nnUNet_preprocessed``), and the restoration decoder from its checkpoint::

    python -m studies.ram_dsir_pictures \
        $nnUNet_results/Dataset004_X/RAMDSIRTrainer__nnUNetPlans__2d --out docs/ram_dsir_2d.png

All pictures share one grey scale, that of the restored images, so that styles can be compared.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_ext.augmentation import amplitude_mixup
from nnunet_ext.losses import RestorationLoss
from nnunet_ext.settings.ram_dsir import RAMDSIRSettings
from nnunet_ext.trainers.distributed import unwrap
from nnunet_ext.trainers.ram_dsir import RESTORATION
from studies import models

COLUMNS = ("original", "partner", "mixed", "restored")
WIDTH = 2.4
"""Of one picture, in inches."""


def draw_pairs(trainer: Any, number: int, seed: int) -> list[tuple[str, str]]:
    """Draw pairs of training cases of two domains, each domain first in turn."""
    rng = np.random.default_rng(seed)
    training, _ = trainer.do_split()
    by_domain: dict[str, list[str]] = {}
    for case in sorted(training):
        by_domain.setdefault(trainer.domains[case], []).append(case)
    names = sorted(by_domain)
    pairs = []
    for i in range(number):
        source = names[i % len(names)]
        partner = rng.choice([name for name in names if name != source])
        pairs.append((str(rng.choice(by_domain[source])), str(rng.choice(by_domain[partner]))))
    return pairs


@torch.no_grad()
def four_images(trainer: Any, pair: tuple[str, str], ratio: float) -> tuple[list[Tensor], Any]:
    """Return the four images (C, *S) of a pair of cases, in [0, 1], and the source's labels."""
    settings = trainer.settings.of(RAMDSIRSettings)
    (source, labels), (partner, _) = (models.patch_of(trainer, case) for case in pair)
    mixed = amplitude_mixup(
        source[None], partner[None], ratio, settings.band, slicewise=trainer.has_thick_slices
    )
    network: Any = unwrap(trainer.network)
    decoder: Any = unwrap(trainer.auxiliary[RESTORATION])
    domain = torch.tensor([trainer.domain_names.index(trainer.domains[pair[0]])])
    restored = decoder(network.encoder(mixed)[decoder.stage], domain, mixed.shape[2:])[0]
    mode = "bilinear" if restored.ndim == 3 else "trilinear"
    restored = F.interpolate(restored[None], mixed.shape[2:], mode=mode)[0]
    scale = RestorationLoss(settings.intensity_range).target
    images = [scale(source), scale(partner), scale(mixed[0]), restored]
    return [(image + 1) / 2 for image in images], labels


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a trained model of RAMDSIRTrainer")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.9, help="weight of the partner")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of cases")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        trainer = models.load(arguments.model, arguments.fold, arguments.checkpoint)
        restores = RESTORATION in trainer.auxiliary
        if not restores or trainer.num_input_channels != trainer.image_channels:
            parser.error("only models that restore images, and no second stages, can be drawn")
        pairs = draw_pairs(trainer, arguments.pairs, arguments.seed)
        rows = [four_images(trainer, pair, arguments.ratio) for pair in pairs]

    figure = Figure(figsize=(WIDTH * len(COLUMNS), WIDTH * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for axes_row, (images, labels), pair in zip(grid, rows, pairs, strict=True):
        domains = [trainer.domains[case] for case in pair]
        axis, index, aspect = models.slice_to_show(trainer, labels)
        notes = (domains[0], domains[1], " + ".join(domains), f"as {domains[0]}")
        for axes, image, column, note in zip(axes_row, images, COLUMNS, notes, strict=True):
            picture = models.flat(image.numpy(), axis, index)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=aspect)
            axes.set_axis_off()
            axes.set_title(f"{column}\n{note}", fontsize="small")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
