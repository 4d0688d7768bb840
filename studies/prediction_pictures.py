"""Draw predictions of several models on the same images, over the truth.

Labels of the truth are lines, predicted ones areas::

    python -m studies.prediction_pictures predicted_source predicted \
        --images target --labels target_labels --out docs/mind_the_gap_predictions.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunet_ext._common import pictures

WIDTH = 2.4
"""Of one picture, in inches."""


def draw(case: str, images: Path, labels: Path, folders: list[Path], grid: np.ndarray) -> None:
    """Draw a row: the image and the truth, then each folder's prediction.

    Args:
        case: File name of the labels.
        images: Folder with the first channel of the case.
        labels: Folder with the truth.
        folders: With predictions.
        grid: Axes, one for each folder and one for the truth.
    """
    name, ending = case.split(".", 1)
    image, spacing = pictures.read_voxels(images / f"{name}_0000.{ending}")
    truth, *predictions = (pictures.read_voxels(folder / case)[0] for folder in (labels, *folders))
    axis, index = pictures.telling_slice(truth, truth, spacing)
    colours = dict(zip(np.unique(truth[truth > 0]), pictures.COLOURS, strict=False))
    outlines = np.take(truth, index, axis)
    for axes, prediction in zip(grid, (0 * truth, *predictions), strict=True):
        picture = np.take(image, index, axis)
        pictures.draw_slice(axes, picture, pictures.aspect_of(spacing, axis))
        pictures.draw_labels(axes, np.take(prediction, index, axis), outlines, colours)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path, nargs="+", help="folders of nnUNetv2_predict")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--titles", nargs="+", help="one for each folder; default their names")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    cases = sorted(path.name for path in arguments.labels.iterdir() if path.suffix != ".json")
    cases = cases[: arguments.cases]
    titles = ["truth", *(arguments.titles or [folder.name for folder in arguments.predictions])]
    size = (WIDTH * len(titles), WIDTH * len(cases))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(cases), len(titles), squeeze=False)
    for case, row in zip(cases, grid, strict=True):
        draw(case, arguments.images, arguments.labels, arguments.predictions, row)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="small")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
