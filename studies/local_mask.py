"""Does the local feature mask of Mind the Gap find what looks foreign?

Takes models, for example those of an experiment in which only one class looks different in the
target (``python -m studies.cross_modality local``), and a test set with its labels::

    nnunet-ext benchmark run studies/experiments/mind_the_gap_local.json --out local
    python -m studies.local_mask local/nnUNet_results/Dataset116_HippocampusLocal/*full* \
        --images $nnUNet_raw/Dataset116_HippocampusLocal/imagesTs \
        --labels $nnUNet_raw/Dataset116_HippocampusLocal/labelsTs \
        --label 2 --record studies/records/local_mask.json

Reports, over test cases, the mean of :math:`a = |tanh(score)|` within the class and outside of it,
and how well a tells them apart voxel by voxel (area under the ROC curve, 0.5 is chance). With
``imagesTr`` and ``labelsTr`` instead it tells what the same tissue gets in labelled images, which
are never masked.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from nnunet_ext.networks.operations import resize
from studies import record


def gaps(network: Any, image: NDArray[Any], divisors: NDArray[Any]) -> NDArray[Any]:
    """The mask's a (*S) for a preprocessed image (C, *S); a 2D network sees slice by slice."""
    data = torch.from_numpy(image).float()
    is_2d = len(divisors) == 2
    data = data.transpose(0, 1) if is_2d else data[None]  # slices are a batch
    size = data.shape[2:]
    padding = [(-n % int(d)) for n, d in zip(size, divisors, strict=True)]
    padded = torch.nn.functional.pad(data, [p for n in reversed(padding) for p in (0, n)])
    features = network.encoder(padded)[network.stage]
    found = resize(network.score(features).tanh().abs(), padded.shape[2:])
    original: tuple[Any, ...] = (..., *map(slice, size))
    found = found[original]
    return (found[:, 0] if is_2d else found[0, 0]).numpy()


def predictor_of(model: Path, fold: str) -> Any:
    """Take nnU-Net's predictor of a trained model's fold, on the CPU."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (fold,), "checkpoint_final.pth")
    predictor.network.eval()
    return predictor


def preprocessed(
    predictor: Any, images: Path, labels: Path, label: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Images (C, *S) of a folder as the model sees them, and where (*S) they show a class.

    Nowhere, in cases of which ``labels`` holds none.
    """
    configuration, ending = predictor.configuration_manager, predictor.dataset_json["file_ending"]
    preprocessor = configuration.preprocessor_class(verbose=False)
    for first in sorted(images.glob(f"*_0000{ending}")):
        case = first.name.removesuffix(f"_0000{ending}")
        truth = labels / f"{case}{ending}"
        data, seg, _ = preprocessor.run_case(
            sorted(map(str, images.glob(f"{case}_*{ending}"))),
            str(truth) if truth.is_file() else None,
            predictor.plans_manager,
            configuration,
            predictor.dataset_json,
        )
        yield data, np.zeros(data.shape[1:], bool) if seg is None else seg[0] == label


def roc_area(values: NDArray[Any], inside: NDArray[np.bool_]) -> float:
    """Area under the curve of values that are to be higher inside than outside."""
    within, outside = values[inside], values[~inside]
    return float(mannwhitneyu(within, outside).statistic / (within.size * outside.size))


@torch.no_grad()
def measure(model: Path, fold: str, images: Path, labels: Path, label: int) -> dict[str, float]:
    """Means of a model over the test cases that have the label."""
    predictor = predictor_of(model, fold)
    divisors = np.prod(predictor.network.encoder.strides, axis=0)
    rows = []
    for data, inside in preprocessed(predictor, images, labels, label):
        if inside.any():
            a = gaps(predictor.network, data, divisors)
            rows.append((a[inside].mean(), a[~inside].mean(), roc_area(a, inside)))
    names = ("a within", "a outside", "area under the curve")
    means = zip(names, np.mean(rows, axis=0), strict=True)
    return {name: round(float(value), 3) for name, value in means}


def main() -> None:
    """Measure, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="folders of trained models")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--images", type=Path, required=True, help="folder of the test set")
    parser.add_argument("--labels", type=Path, required=True, help="folder of its labels")
    parser.add_argument("--label", type=int, required=True, help="the class that looks different")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for model in arguments.models:
        test = (arguments.images, arguments.labels, arguments.label)
        rows[model.name] = measure(model, arguments.fold, *test)
        print(model.name, rows[model.name])
    if arguments.record:
        images = arguments.images.resolve()
        described = {
            "data set": images.parent.name,
            "images": images.name,
            "label": arguments.label,
        }
        record.save(arguments.record, {"arguments": described, "models": rows})


if __name__ == "__main__":
    main()
