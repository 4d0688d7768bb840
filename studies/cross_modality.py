"""Make the data sets of the experiments with Mind the Gap, in ``nnUNet_raw``.

``python -m studies.cross_modality cardiac`` takes Dataset102_CardiacMR (bSSFP and LGE of the
same patients, MS-CMRSeg 2019), halves the in-plane resolution to 1.5 mm and writes

- Dataset111_CardiacToLGE: bSSFP with labels, LGE 6 to 35 without; all LGE as the labelled test set,
  of which 1 to 5 have never been seen;
- Dataset114_CardiacLGE: all LGE with labels, for the oracle, which holds each of them out once.

``python -m studies.cross_modality hippocampus`` takes Dataset004_Hippocampus (Medical
Decathlon), deals its cases into a source half, unlabelled and test ones, and writes

- Dataset112_HippocampusToPseudo: source with labels; the others inverted, gamma-warped, with a
  smooth bias field and noise: the pseudo-modality;
- Dataset113_HippocampusPseudo: the unlabelled ones with labels, for the oracle, and the same test
  set.

``python -m studies.cross_modality local`` deals the same cases and writes

- Dataset116_HippocampusLocal: in the target only the posterior part looks different, inverted and
  with a coarse texture.

``python -m studies.cross_modality example`` makes the data of the worked example in
docs/mind_the_gap.md, the same cases as in 112:

- Dataset011_MR: source with labels;
- Dataset012_Pseudo: unlabelled ones and the test set.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy.ndimage import zoom

from nnunet_ext._common.files import read_json
from nnunet_ext.nnunet.datasets import DATASET_JSON, RAW, nnunet_folder, training_cases
from nnunet_ext.nnunet.images import copy_image, read_image

GAMMA, BIAS, NOISE = 1.6, 0.25, 0.05
"""Of the pseudo-modality, for intensities in [0, 1]."""
BIAS_POINTS = 3
"""Values of the bias field along each axis, before they are smoothly interpolated."""
UNLABELLED, TEST = 60, 41
"""Cases of the hippocampus in the pseudo-modality; the rest is source."""

LOCAL_LABEL = 2
TEXTURE = 0.15
"""Of the class that looks different, over the range of intensities."""

Cases = Mapping[str, Mapping[str, Any]]
Write = Callable[[Path, Path], None]


def pseudo_modality(voxels: NDArray[Any], seed: int) -> NDArray[Any]:
    """Invert an image (C, *S), bend its intensities, shade it and add noise."""
    random = np.random.default_rng(seed)
    image = voxels.astype(np.float64)
    low, high = image.min(), image.max()
    image = (1 - (image - low) / max(high - low, 1e-8)) ** GAMMA
    points = random.uniform(1 - BIAS, 1 + BIAS, [BIAS_POINTS] * (image.ndim - 1))
    size = np.array(image.shape[1:])
    field = zoom(points, size / BIAS_POINTS, order=3, mode="nearest", grid_mode=True)
    image = image * field + random.normal(0, NOISE, image.shape)
    return of_type(low + (high - low) * image, voxels.dtype)


def write_pseudo(source: Path, target: Path) -> None:
    """Write an image in the pseudo-modality."""
    image = read_image(source)
    image.save(pseudo_modality(image.voxels, seed_of(source)), target)


def local_gap(voxels: NDArray[Any], inside: NDArray[np.bool_], seed: int) -> NDArray[Any]:
    """Invert the voxels (C, *S) of one class (*S) within its own range and roughen them."""
    random = np.random.default_rng(seed)
    low, high = np.percentile(voxels, [0.5, 99.5])
    noise = random.normal(0, TEXTURE * (high - low), voxels.shape)
    return of_type(np.where(inside, low + high - voxels + noise, voxels), voxels.dtype)


def of_type(voxels: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round and clip to what an integer type holds."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        voxels = np.clip(np.rint(voxels), limits.min, limits.max)
    return voxels.astype(dtype)


def write_local(source: Path, target: Path) -> None:
    """Write an image with another look of one class; labels lie where nnU-Net has them."""
    image = read_image(source)
    name = source.name.replace("_0000.", ".")
    inside = read_image(source.parents[1] / "labelsTr" / name).voxels[0] == LOCAL_LABEL
    image.save(local_gap(image.voxels, inside, seed_of(source)), target)


def seed_of(file: Path) -> int:
    """A seed that depends on the name of the file alone."""
    return int.from_bytes(sha256(file.name.encode()).digest()[:8], "big")


def write_halved(source: Path, target: Path) -> None:
    """Write an image with half the in-plane resolution."""
    sitk.WriteImage(_halved(sitk.ReadImage(source)), target, useCompression=True)


def write_halved_label(source: Path, target: Path) -> None:
    """Write a label map with half the in-plane resolution."""
    label = sitk.ReadImage(source)
    halved = sitk.Resample(label, _halved(label), sitk.Transform(), sitk.sitkNearestNeighbor)
    sitk.WriteImage(halved, target, useCompression=True)


def _halved(image: sitk.Image) -> sitk.Image:
    return sitk.BinShrink(image, [2, 2, 1])


def write(
    name: str,
    like: Path,
    training: Cases,
    unlabelled: Cases,
    test: Cases,
    *,
    look: Write = copy_image,
    own: Write = copy_image,
    label: Write = copy_image,
) -> None:
    """Write a raw data set.

    Args:
        name: Full name, Dataset111_X.
        like: Raw data set whose dataset.json it takes over.
        training: Labelled cases.
        unlabelled: Cases for ``imagesUn``.
        test: Cases for ``imagesTs`` and ``labelsTs``.
        look: Writes images of the target.
        own: Writes images of the training cases.
        label: Writes label maps.
    """
    described = read_json(like / DATASET_JSON)
    for key in ("domains", "dataset"):
        described.pop(key, None)
    ending = described["file_ending"]
    folder = nnunet_folder(RAW) / name
    for part, cases, how in (("Tr", training, own), ("Un", unlabelled, look), ("Ts", test, look)):
        if not cases:
            continue
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        images.mkdir(parents=True)
        for case, files in cases.items():
            for channel, image in enumerate(files["images"]):
                how(Path(image), images / f"{case}_{channel:04d}{ending}")
        if part == "Un":
            continue
        labels.mkdir()
        for case, files in cases.items():
            label(Path(str(files["label"])), labels / f"{case}{ending}")
    described |= {"name": name, "numTraining": len(training)}
    (folder / DATASET_JSON).write_text(json.dumps(described, indent=2) + "\n")
    print(
        f"{folder}: {len(training)} labelled, {len(unlabelled)} unlabelled, {len(test)} test cases"
    )


def chosen(cases: Cases, pattern: str) -> Cases:
    """Cases whose whole name matches."""
    return {case: files for case, files in cases.items() if re.fullmatch(pattern, case)}


def cardiac() -> None:
    """Hearts: from bSSFP to LGE."""
    raw = nnunet_folder(RAW) / "Dataset102_CardiacMR"
    cases = training_cases(raw)
    target = chosen(cases, r"LGE_\d+")
    seen = chosen(target, r"LGE_(0[6-9]|[1-3]\d)")
    source = chosen(cases, r"bSSFP_\d+")
    halved = {"look": write_halved, "own": write_halved, "label": write_halved_label}
    write("Dataset111_CardiacToLGE", raw, source, seen, target, **halved)
    write("Dataset114_CardiacLGE", raw, target, {}, {}, **halved)


def deal() -> tuple[Path, Cases, Cases, Cases]:
    """Raw data set of the hippocampus, and its cases as source, unlabelled and test."""
    raw = nnunet_folder(RAW) / "Dataset004_Hippocampus"
    cases = training_cases(raw)
    dealt = np.random.default_rng(0).permutation(sorted(cases))
    test, unlabelled, source = (
        {str(case): cases[str(case)] for case in part}
        for part in np.split(dealt, [TEST, TEST + UNLABELLED])
    )
    return raw, source, unlabelled, test


def hippocampus() -> None:
    """Hippocampus: from the images as they are to a pseudo-modality of other subjects."""
    raw, source, unlabelled, test = deal()
    write("Dataset112_HippocampusToPseudo", raw, source, unlabelled, test, look=write_pseudo)
    pseudo = {"look": write_pseudo, "own": write_pseudo}
    write("Dataset113_HippocampusPseudo", raw, unlabelled, {}, test, **pseudo)


def local() -> None:
    """Hippocampus: one class looks different."""
    raw, source, unlabelled, test = deal()
    write("Dataset116_HippocampusLocal", raw, source, unlabelled, test, look=write_local)


def example() -> None:
    """Hippocampus: each modality in a data set of its own."""
    raw, source, unlabelled, test = deal()
    write("Dataset011_MR", raw, source, {}, {})
    write("Dataset012_Pseudo", raw, {}, unlabelled, test, look=write_pseudo)


def main() -> None:
    """Make the data sets of a task."""
    tasks = {task.__name__: task for task in (cardiac, hippocampus, local, example)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tasks)
    tasks[parser.parse_args().task]()


if __name__ == "__main__":
    main()
