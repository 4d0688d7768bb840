"""Settings of RAM-DSIR."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import STRICT

ADAM_ENCODER_LR = 0.5
"""The authors train the encoder at half the rate where images are restored; they use Adam."""


@dataclass(frozen=True, config=STRICT)
class RAMDSIRSettings:
    """Settings of RAM-DSIR. Defaults follow the authors' implementation where it has them.

    All but one: ``restoration`` is off, because what we measured did not repay its time.
    """

    retired: ClassVar[Mapping[str, Any]] = {
        "ram": True,
        "probability": 1.0,
        "slicewise": None,
        "bank_size": 64,
        "complete_regions": True,
        "full_resolution": False,
        "average_views": None,
    }

    view: Annotated[
        Literal["ram", "gin", "ram+gin", "none"],
        Field(
            description="second view of each image: mixed with another domain's style, passed "
            "through random convolutions, one after the other, or none"
        ),
    ] = "ram"
    original: Annotated[
        bool,
        Field(
            description="train with the image as it is, too; without, the view is augmentation, at "
            "the cost of stock nnU-Net"
        ),
    ] = True
    consistency: Annotated[
        bool, Field(description="both views are to be segmented alike; needs two")
    ] = True
    restoration: Annotated[
        bool, Field(description="the image is to be restored from its last view's deep features")
    ] = False
    band: Annotated[
        float, Field(ge=0, le=0.5, description="half-width of the mixed window, share of each axis")
    ] = 0.1
    max_ratio: Annotated[
        float, Field(ge=0, le=1, description="highest weight of the partner's amplitudes")
    ] = 0.9
    consistency_weight: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="weight of the consistency")
    ] = 0.5
    restoration_weight: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="weight of the restoration, per domain")
    ] = 0.1
    intensity_range: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="preprocessed values restored without loss"),
    ] = 3.0
    max_stride: Annotated[
        int | None,
        Field(ge=1, description="restore from features at most so much smaller; default deepest"),
    ] = None
    encoder_lr_factor: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="learning rate of the encoder over that of the rest; default 1, with adam "
            f"and restoration {ADAM_ENCODER_LR}",
        ),
    ] = None
    style_augmentation: Annotated[
        bool, Field(description="keep nnU-Net's own random brightness, contrast and gamma")
    ] = True

    def __post_init__(self) -> None:
        if self.view == "none" and not self.original:
            raise ValueError('without "view" and "original" nothing is left to train with')
        if self.consistency and (self.view == "none" or not self.original):
            raise ValueError(
                '"consistency" compares the "original" with a "view" of it: set it to false as well'
            )
