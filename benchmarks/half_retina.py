"""Make Dataset131_RetinaHalf of Dataset101_RetinaVessels, both in ``nnUNet_raw``.

Half the resolution, so that a patch which a CPU can afford shows more than a few vessels. Images
are averaged over blocks of 2 x 2 pixels; a label is vessel where half of its block is. Takes no
arguments: ``python benchmarks/half_retina.py``.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.io import imread, imsave
from skimage.transform import downscale_local_mean

from nnunet_ext.datasets import DATASET_JSON, RAW, nnunet_folder
from nnunet_ext.files import read_json

SOURCE, TARGET = "Dataset101_RetinaVessels", "Dataset131_RetinaHalf"


def halved(file: Path) -> NDArray[np.float64]:
    """Means of the blocks of a picture (rows, columns) or (rows, columns, 3)."""
    picture = imread(file)
    rows, columns = (n // 2 * 2 for n in picture.shape[:2])
    blocks = (2, 2, *[1] * (picture.ndim - 2))
    means: NDArray[np.float64] = downscale_local_mean(picture[:rows, :columns], blocks)
    return means


def main() -> None:
    """Write the data set."""
    source, target = (nnunet_folder(RAW) / name for name in (SOURCE, TARGET))
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
        for file in sorted((source / part).glob("*.png")):
            picture = halved(file)
            small = np.rint(picture) if part == "imagesTr" else picture >= 0.5
            imsave(target / part / file.name, small.astype(np.uint8), check_contrast=False)
    described = read_json(source / DATASET_JSON) | {"name": TARGET}
    (target / DATASET_JSON).write_text(json.dumps(described, indent=2) + "\n")
    print(f"{target}: {described['numTraining']} cases")


if __name__ == "__main__":
    main()
