"""Draw what RAM-DSIR does: original, partner, mixed and restored images of a trained model.

Takes patches of training cases, without augmentation, from the preprocessed data set that the model
was trained on (``nnUNet_preprocessed``), and the restoration decoder from its checkpoint::

    python benchmarks/ram_dsir_pictures.py \
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
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext import pictures, trainers
from nnunet_ext.augmentation import amplitude_mixup
from nnunet_ext.losses import RestorationLoss
from nnunet_ext.trainers import checkpoint as checkpoints
from nnunet_ext.trainers.base import unwrap
from nnunet_ext.trainers.ram_dsir import RESTORATION

COLUMNS = ("original", "partner", "mixed", "restored")
WIDTH = 2.4
"""Of one picture, in inches."""


def load(model: Path, fold: str, checkpoint_name: str) -> Any:
    """Rebuild the trainer of a model, on the CPU, without writing into its folder."""
    path = model / f"fold_{fold}" / checkpoint_name
    checkpoint = checkpoints.read(path)
    arguments = checkpoint["init_args"] | {"device": torch.device("cpu")}
    # nnU-Net takes this key out of the plans, but wants it there
    arguments["plans"] = arguments["plans"] | {"continue_training": False}
    trainer = getattr(trainers, checkpoint["trainer_name"])(**arguments)
    trainer.initialize()
    trainer.load_checkpoint(str(path))
    if RESTORATION not in trainer.auxiliary or trainer.num_input_channels != trainer.image_channels:
        raise SystemExit("Only models that restore images, and no second stages, can be drawn.")
    trainer.network.eval()
    trainer.auxiliary.eval()
    return trainer


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


def patch_of(trainer: Any, case: str) -> tuple[Tensor, NDArray[Any]]:
    """Cut a patch (C, *S) out of a case where its labels are, and these (*S)."""
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case])
    data, seg, *_ = dataset.load_case(case)
    data, labels = np.asarray(data[:]), np.asarray(seg[:])[0]
    size = trainer.configuration_manager.patch_size
    if len(size) == 2:
        index = int((labels > 0).sum((1, 2)).argmax())
        data, labels = data[:, index], labels[index]
    places = np.argwhere(labels > 0)
    center = places.mean(0) if len(places) else np.array(labels.shape) / 2
    box = [[round(c) - n // 2, round(c) - n // 2 + n] for c, n in zip(center, size, strict=True)]
    return torch.from_numpy(crop_and_pad_nd(data, box)).float(), crop_and_pad_nd(labels, box)


@torch.no_grad()
def four_images(trainer: Any, pair: tuple[str, str], ratio: float) -> tuple[list[Tensor], Any]:
    """Return the four images (C, *S) of a pair of cases, in [0, 1], and the source's labels."""
    settings = trainer.ram_dsir
    (source, labels), (partner, _) = (patch_of(trainer, case) for case in pair)
    mixed = amplitude_mixup(
        source[None], partner[None], ratio, settings.band, slicewise=trainer.slicewise
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


def flat(image: Tensor, axis: int, index: int) -> NDArray[Any]:
    """Take a slice of an image (C, *S): in colour if it has three channels, else of the first."""
    picture = image.numpy() if image.ndim == 3 else np.take(image.numpy(), index, axis + 1)
    return np.moveaxis(picture, 0, -1) if len(picture) == 3 else picture[0]


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
        trainer = load(arguments.model, arguments.fold, arguments.checkpoint)
        pairs = draw_pairs(trainer, arguments.pairs, arguments.seed)
        rows = [four_images(trainer, pair, arguments.ratio) for pair in pairs]

    spacing = tuple(trainer.configuration_manager.spacing)
    figure = Figure(figsize=(WIDTH * len(COLUMNS), WIDTH * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for axes_row, (images, labels), pair in zip(grid, rows, pairs, strict=True):
        domains = [trainer.domains[case] for case in pair]
        axis, index, aspect = 0, 0, spacing[-2] / spacing[-1]
        if labels.ndim == 3:
            axis, index = pictures.telling_slice(labels, labels, spacing)
            aspect = pictures.aspect_of(spacing, axis)
        notes = (domains[0], domains[1], " + ".join(domains), f"as {domains[0]}")
        for axes, image, column, note in zip(axes_row, images, COLUMNS, notes, strict=True):
            picture = flat(image, axis, index)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=aspect)
            axes.set_axis_off()
            axes.set_title(f"{column}\n{note}", fontsize="small")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
