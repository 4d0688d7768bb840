"""Settings of ConDSeg."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import NEUTRAL, STRICT


@dataclass(frozen=True, config=STRICT)
class ConDSegSettings:
    """Settings of ConDSeg. The two halves of the method can be switched on and off apart."""

    retired: ClassVar[Mapping[str, Any]] = {
        "heads": 4,
        "full_resolution_skip": True,
        "max_area_weight": 10.0,
    }

    consistency: Annotated[
        Literal["on", "views", "off"],
        Field(
            description="first phase on the encoder: two views that must agree, two views without "
            "that demand, or no first phase"
        ),
    ] = "on"
    decoder: Annotated[
        Literal["condseg", "plan"],
        Field(description="the method's decoder, or the planned U-Net's with deep supervision"),
    ] = "condseg"
    first_phase: Annotated[
        float, Field(ge=0, lt=1, description="share of epochs that train the encoder alone")
    ] = 0.2
    encoder_lr_factor: Annotated[
        float,
        Field(gt=0, le=1, description="share of the learning rate that a trained encoder keeps"),
    ] = 0.1
    width: Annotated[
        int | None,
        Field(ge=1, description="channels of the decoder; default those of the first stage"),
    ] = None
    attention_budget: Annotated[
        int | None,
        Field(
            ge=0,
            description="attention values per guide, image and level; default the size of one "
            "feature map at full resolution, 0 is no attention",
        ),
    ] = None
    recompute: Annotated[
        bool,
        Field(
            description="recompute attention in the backward pass to save memory",
            json_schema_extra=NEUTRAL,
        ),
    ] = True
