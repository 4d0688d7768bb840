"""Pictures of what a translator has learned."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nnunet_ext._common.files import replacing


def draw_sheet(columns: Mapping[str, Tensor], file: Path) -> None:
    """Draw images (N, C, *S) under their title, one in a row; of volumes the middle slice."""
    from matplotlib.figure import Figure

    from nnunet_ext._common.pictures import draw_slice

    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(2 * len(columns), 2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, shown) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for row, image in enumerate(shown[:, 0].cpu().numpy()):
            draw_slice(axes[row, column], image if image.ndim == 2 else image[len(image) // 2], 1)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=100)
