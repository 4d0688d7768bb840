"""Make half-resolution copies of data sets of photographs, in ``nnUNet_raw``.

``python -m studies.half_resolution retina`` makes Dataset131_RetinaHalf of
Dataset101_RetinaVessels, ``... skin`` Dataset132_SkinHalf of Dataset103_SkinLesion, so that a patch
which a CPU can afford shows more than a few vessels, or a whole lesion. Images are averaged over
blocks of 2 x 2 pixels; a label is foreground where half of its block is.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.io import imread, imsave
from skimage.transform import downscale_local_mean

from nnunet_ext._common.files import read_json
from nnunet_ext.nnunet.datasets import DATASET_JSON, RAW, nnunet_folder

TASKS = {
    "retina": ("Dataset101_RetinaVessels", "Dataset131_RetinaHalf"),
    "skin": ("Dataset103_SkinLesion", "Dataset132_SkinHalf"),
}
"""Data set, and its copy."""


def halved(file: Path) -> NDArray[np.float64]:
    """Means of the blocks of a picture (rows, columns) or (rows, columns, 3)."""
    picture = imread(file)
    rows, columns = (n // 2 * 2 for n in picture.shape[:2])
    blocks = (2, 2, *[1] * (picture.ndim - 2))
    means: NDArray[np.float64] = downscale_local_mean(picture[:rows, :columns], blocks)
    return means


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    source, target = (nnunet_folder(RAW) / name for name in TASKS[parser.parse_args().task])
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
        for file in sorted((source / part).glob("*.png")):
            picture = halved(file)
            small = np.rint(picture) if part == "imagesTr" else picture >= 0.5
            imsave(target / part / file.name, small.astype(np.uint8), check_contrast=False)
    described = read_json(source / DATASET_JSON) | {"name": target.name}
    (target / DATASET_JSON).write_text(json.dumps(described, indent=2) + "\n")
    print(f"{target}: {described['numTraining']} cases")


if __name__ == "__main__":
    main()
