"""Settings of the top-k / bottom-all-but-sigma loss."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import STRICT

SMALL_BATCH = 4
"""In 3D, choosing among fewer images than this would nearly always drop the background."""


@dataclass(frozen=True, config=STRICT)
class TopKSigmaSettings:
    """Settings of the loss. The paper's values are unknown; these defaults are ours.

    Our reconstruction of the paper is ``sigma=0.02``.
    """

    retired: ClassVar[Mapping[str, Any]] = {"tau": 0.1}

    sigma: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | Literal["auto"],
        Field(description='share of voxels left out, or "auto": suspected labels that stand alone'),
    ] = "auto"
    top_fraction: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="share of the hardest images kept; default 0.5, but 1 with auto, and in "
            f"3D with batches below {SMALL_BATCH}",
        ),
    ] = None
    smoothing: Annotated[
        Literal["gate", "integral", "hard"],
        Field(description="how the choice is smoothed; hard does not"),
    ] = "gate"
    scope: Annotated[
        Literal["image", "class", "batch"],
        Field(description="sigma of each image, of each class in an image, or of the batch"),
    ] = "image"
    dice: Annotated[
        Literal["masked", "plain", "none"],
        Field(description="Dice over the kept voxels, over all, or no Dice"),
    ] = "masked"
    warm_up: Annotated[
        float, Field(ge=0, le=1, description="share of epochs with nnU-Net's own loss at first")
    ] = 0.1
    ramp: Annotated[
        float, Field(ge=0, le=1, description="share of epochs to get from there to full strength")
    ] = 0.1
