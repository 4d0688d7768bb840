"""Settings of ConDSeg."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class ConDSegSettings:
    """Settings of ConDSeg. The two halves of the method can be switched on and off apart."""

    retired: ClassVar[Mapping[str, Any]] = {
        "full_resolution_skip": True,
        "max_area_weight": 10.0,
        "recompute": False,
    }

    consistency: Annotated[
        Literal["on", "views", "off"],
        Field(
            description="first phase on the encoder: two views that must agree, two views without "
            "that demand, or no first phase"
        ),
    ] = "on"
    decoder: Annotated[
        Literal["condseg", "alone", "head", "plan"],
        Field(
            description="the method's decoder on top of the light head, that decoder alone, the "
            "light head alone, or the planned U-Net's decoder with deep supervision"
        ),
    ] = "condseg"
    first_phase: Annotated[
        float, Field(ge=0, lt=1, description="share of epochs that train the encoder alone")
    ] = 0.2
    encoder_lr_factor: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="share of the learning rate for the encoder after the first phase; default "
            "0.1 after -pretrained_weights, otherwise 1",
        ),
    ] = None
    maps: Annotated[
        Literal["classes", "merged"],
        Field(description="maps of foreground: one for each class, or one for all together"),
    ] = "merged"
    width: Annotated[
        int | None,
        Field(ge=1, description="channels of the decoder; default those of the first stage"),
    ] = None
    attention_budget: Annotated[
        int | None,
        Field(
            ge=0,
            description="attention values per guide, image and level; default 32 for each voxel "
            "of the patch, 0 is no attention",
        ),
    ] = None
