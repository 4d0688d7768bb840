"""What estimators of the share of wrong labels say where that share is known.

Takes the models of an experiment and the cases that were held out from them, with the labels as
they are for training, corrupted or not, and the clean ones. For example, with the same data set
preprocessed in ``nnUNet_preprocessed``, where the clean labels are::

    nnunet-ext benchmark run studies/experiments/topk_sigma_hippocampus_missing.json --out noisy
    python -m studies.sigma_estimators noisy --record studies/records/sigma_missing.json

Three estimators see the same voxels:

- anchors: the rate is the highest of all classes, see :mod:`nnunet_ext.losses.topk_sigma.noise`;
  its sigma is what ``sigma="auto"`` takes;
- mixture: weight of the component of high losses where two beta distributions are fitted to the
  losses of the voxels (Arazo et al., ICML 2019);
- agreement: share of voxels for which the model and the average of the models of all seeds agree
  on another class than the label.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor

from nnunet_ext.benchmark.layout import Cell, Layout
from nnunet_ext.benchmark.prepare import read_prepared
from nnunet_ext.losses.topk_sigma.noise import NoiseEstimator, estimate_noise, log_odds
from nnunet_ext.nnunet.datasets import PREPROCESSED, nnunet_folder
from studies import record

SAMPLE = 100_000
ITERATIONS = 100
EDGE = 1e-3
"""Losses are mapped to the open interval of this distance to 0 and 1."""


def held_out_logits(layout: Layout, cell: Cell, trainer: str) -> list[Tensor]:
    """Logits (K, N) of a model for all voxels of each of its held-out cases."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(layout.model(cell, trainer)), (cell.fold,), "checkpoint_final.pth"
    )
    data = preprocessed(layout, layout.preprocessed, cell)
    return [
        predictor.predict_logits_from_preprocessed_data(torch.from_numpy(images)).flatten(1).float()
        for images, _ in data.values()
    ]


def preprocessed(
    layout: Layout, root: Path, cell: Cell
) -> Mapping[str, tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """Case -> preprocessed images and labels, of the cases held out from a cell."""
    dataset_folder = root / layout.benchmark.dataset
    plans = PlansManager(str(dataset_folder / f"{layout.benchmark.plans}.json"))
    folder = dataset_folder / plans.get_configuration(cell.configuration).data_identifier
    held_out = read_prepared(layout).folds[cell.fold or 0]
    dataset = infer_dataset_class(str(folder))(str(folder), held_out)
    loaded = {case: dataset.load_case(case) for case in held_out}
    return {case: (images[:], labels[:]) for case, (images, labels, *_) in loaded.items()}


def held_out_labels(layout: Layout, root: Path, cell: Cell) -> list[Tensor]:
    """Labels (N,) of all voxels of each held-out case; outside of the body is background."""
    cases = preprocessed(layout, root, cell).values()
    return [torch.from_numpy(labels.ravel()).long().clamp_min(0) for _, labels in cases]


def mixture(losses: NDArray[np.float64]) -> float:
    """Weight of the component of high losses among two beta distributions, fitted by moments."""
    chosen = np.random.default_rng(0).choice(losses, min(SAMPLE, losses.size), replace=False)
    scaled = (chosen - chosen.min()) / (np.quantile(chosen, 1 - EDGE) - chosen.min())
    scaled = scaled.clip(EDGE, 1 - EDGE)
    shapes, weights = [(1.0, 5.0), (5.0, 1.0)], np.array([0.9, 0.1])
    for _ in range(ITERATIONS):
        density = np.stack([beta.pdf(scaled, *shape) for shape in shapes]) * weights[:, None]
        belonging = density / density.sum(0).clip(np.finfo(float).tiny)
        weights = belonging.mean(1)
        means = (belonging * scaled).sum(1) / belonging.sum(1)
        variances = (belonging * (scaled - means[:, None]) ** 2).sum(1) / belonging.sum(1)
        sizes = (means * (1 - means) / variances.clip(EDGE**2) - 1).clip(EDGE)
        shapes = list(zip(means * sizes, (1 - means) * sizes, strict=True))
    return float(weights[1])


def anchors(logits: list[Tensor], given: list[Tensor]) -> tuple[float, float]:
    """Highest rate of all classes, and sigma."""
    estimator = NoiseEstimator(len(logits[0]))
    for scores, labels in zip(logits, given, strict=True):
        members = torch.nn.functional.one_hot(labels, len(scores)).T.bool()
        losses = torch.nn.functional.cross_entropy(scores.T, labels, reduction="none")
        estimator.observe(log_odds(scores[None]), members[None], losses[None])
    found = estimate_noise(estimator.pop_counts())
    return float(found.rates.max()), found.sigma


def main() -> None:
    """Compare, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a finished benchmark")
    parser.add_argument("--arm", default="stock")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    layout = Layout(arguments.folder)
    benchmark = layout.benchmark
    trainer = read_prepared(layout).trainings[arguments.arm].trainer
    clean_root = layout.preprocessed
    if benchmark.label_noise is not None:
        clean_root = nnunet_folder(PREPROCESSED)
    cells = [
        Cell(arguments.arm, benchmark.configurations[0], seed, benchmark.folds[0])
        for seed in range(benchmark.seeds)
    ]
    given, true = (
        held_out_labels(layout, root, cells[0]) for root in (layout.preprocessed, clean_root)
    )
    labels = torch.cat(given)
    models = [held_out_logits(layout, cell, trainer) for cell in cells]
    together = [torch.cat(logits, 1) for logits in models]
    average = torch.stack([logits.softmax(0) for logits in together]).mean(0).argmax(0)
    rows = {}
    for cell, logits, all_logits in zip(cells, models, together, strict=True):
        losses = torch.nn.functional.cross_entropy(all_logits.T, labels, reduction="none")
        rate, sigma = anchors(logits, given)
        agreed = all_logits.argmax(0) == average
        rows[f"seed {cell.seed}"] = {
            "wrong labels": float((labels != torch.cat(true)).float().mean()),
            "anchors, rate": rate,
            "anchors, sigma": sigma,
            "mixture": mixture(losses.double().numpy()),
            "agreement": float((agreed & (average != labels)).float().mean()),
        }
    rounded = {model: {k: round(v, 4) for k, v in row.items()} for model, row in rows.items()}
    for model, row in rounded.items():
        print(model, row)
    if arguments.record:
        described = {"experiment": arguments.folder.resolve().name, "arm": arguments.arm}
        record.save(arguments.record, {"arguments": described, "estimators": rounded})


if __name__ == "__main__":
    main()
