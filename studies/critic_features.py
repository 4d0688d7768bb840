"""Which features and which learning rate let Mind the Gap's feature critic find what looks foreign?

A critic alone learns to tell target from source slices by the features of a 2D network that is
trained on the source and stays as it is. Where only one class looks different in the target
(``python -m studies.cross_modality local``), the area under the ROC curve of its answers, inside of
that class against outside, says whether it has found the place::

    python -m studies.critic_features MODEL --dataset Dataset116_HippocampusLocal --label 2 \
        --record studies/records/critic_features.json

MODEL is the folder of a trained nnU-Net. Critics learn from ``imagesTr`` and ``imagesUn`` and are
judged on ``imagesTs``. Features are a stage's answer ("after") or what its last convolution gives,
before normalisation takes its mean and variance away ("before").
"""

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext._common.errors import UserError
from nnunet_ext.losses import critic_loss
from nnunet_ext.networks import FeatureCritic
from nnunet_ext.networks.operations import resize
from nnunet_ext.nnunet.datasets import RAW, nnunet_folder
from nnunet_ext.trainers.mind_the_gap import CRITIC_BETAS
from studies import record
from studies.local_mask import predictor_of, preprocessed, roc_area

BATCH = 16
"""Slices of either domain in a step."""
Slices = list[tuple[Tensor, NDArray[np.bool_]]]
"""Images (C, H, W) and, for each voxel, whether it is of the class that looks different."""


def slices(predictor: Any, folder: Path, part: str, label: int) -> Slices:
    """Preprocessed slices of a part of a raw data set, such as "Tr", labelled or not."""
    images, labels = (folder / f"{kind}{part}" for kind in ("images", "labels"))
    cases = preprocessed(predictor, images, labels, label)
    found = [
        each
        for data, inside in cases
        for each in zip(torch.from_numpy(data).float().transpose(0, 1), inside, strict=True)
    ]
    if not found:
        raise UserError(f"{images} holds no images.")
    return found


def features_of(network: Any, stage: int, *, after: bool) -> Callable[[Tensor], Tensor]:
    """What gives the features of an encoder's stage for images (B, C, H, W)."""
    *_, last = (
        m for m in network.encoder.stages[stage].modules() if isinstance(m, torch.nn.Conv2d)
    )

    @torch.no_grad()
    def ask(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = last.register_forward_hook(lambda *call: seen.append(call[-1].clone()))
        answer: Tensor = network.encoder(images)[stage]
        hook.remove()
        return answer if after else seen[-1]

    return ask


def padded(images: list[Tensor], divisor: int) -> Tensor:
    """Stack images of any size, with zeros around them up to a multiple of ``divisor``."""
    size = [-(-max(i.shape[axis] for i in images) // divisor) * divisor for axis in (1, 2)]
    stacked = torch.zeros(len(images), len(images[0]), *size)
    for number, image in enumerate(images):
        stacked[number, :, : image.shape[1], : image.shape[2]] = image
    return stacked


def trained(
    ask: Callable[[Tensor], Tensor], domains: list[Slices], divisor: int, rate: float, steps: int
) -> FeatureCritic:
    """Let a critic learn to tell the first domain (0) from the second (1)."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    draw = [
        lambda slices=slices: ask(
            padded([slices[i][0] for i in random.integers(len(slices), size=BATCH)], divisor)
        )
        for slices in domains
    ]
    critic = FeatureCritic(draw[0]().shape[1], dim=2)
    optimizer = torch.optim.Adam(critic.parameters(), rate, betas=CRITIC_BETAS)
    for _ in range(steps):
        optimizer.zero_grad()
        low, high = (critic(of()) for of in draw)
        critic_loss(low, high).backward()
        optimizer.step()
    return critic


@torch.no_grad()
def area(
    ask: Callable[[Tensor], Tensor], critic: FeatureCritic, test: Slices, divisor: int
) -> float:
    """Mean area under the curve over the slices that show both kinds of tissue."""
    areas = []
    for image, inside in test:
        if inside.any() and not inside.all():
            whole = padded([image], divisor)
            scores = resize(critic(ask(whole)), whole.shape[2:])[0, 0].numpy()
            areas.append(roc_area(scores[: inside.shape[0], : inside.shape[1]], inside))
    return round(float(np.mean(areas)), 3)


def main() -> None:
    """Measure all combinations, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--dataset", required=True, help="name of the raw data set")
    parser.add_argument("--label", type=int, required=True, help="the class that looks different")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    predictor = predictor_of(arguments.model, arguments.fold)
    network = predictor.network
    raw = nnunet_folder(RAW) / arguments.dataset
    source, target, test = (
        slices(predictor, raw, part, arguments.label) for part in ("Tr", "Un", "Ts")
    )
    strides = np.prod(np.array(network.encoder.strides), axis=0)
    divisor = int(strides.max())
    rows = {}
    for stage, after, rate in product(arguments.stages, (True, False), arguments.rates):
        ask = features_of(network, stage, after=after)
        critic = trained(ask, [source, target], divisor, rate, arguments.steps)
        which = f"stage {stage}, {'after' if after else 'before'} normalisation, critic_lr {rate}"
        rows[which] = {"area under the curve": area(ask, critic, test, divisor)}
        print(which, rows[which], flush=True)
    if arguments.record:
        kept = {key: getattr(arguments, key) for key in ("dataset", "label", "steps")}
        record.save(arguments.record, {"arguments": kept, "critics": rows})


if __name__ == "__main__":
    main()
