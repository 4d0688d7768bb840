"""Settings of CateNorm."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import NEUTRAL, STRICT


@dataclass(frozen=True, config=STRICT)
class CateNormSettings:
    """Settings of CateNorm. Defaults follow the authors' implementation."""

    retired: ClassVar[Mapping[str, Any]] = {"follow_stage_kernel": False}

    encoder_stages: Annotated[
        tuple[int, ...] | None,
        Field(description="encoder stages to modify, 0 is full resolution; default the first 4"),
    ] = None
    decoder_stages: Annotated[
        tuple[int, ...], Field(description="decoder stages to modify, 0 is full resolution")
    ] = ()
    reduction: Annotated[
        int, Field(ge=1, description="channels over hidden channels of the modulation")
    ] = 2
    norm: Annotated[
        Literal["plan", "batch", "instance"],
        Field(description="normalisation of the whole network; the paper argues for batch"),
    ] = "plan"
    updates: Annotated[
        Literal["alternating", "joint"],
        Field(description="two updates per batch (the authors') or one on the sum of losses"),
    ] = "alternating"
    plain_fraction: Annotated[
        float, Field(ge=0, lt=1, description="share of epochs trained plainly at first")
    ] = 0.5
    initialisation: Annotated[
        Literal["default", "inherit"],
        Field(description="random, or the second pass starts as a copy of the first"),
    ] = "default"
    predict: Annotated[
        Literal["second", "first"],
        Field(
            description="pass that answers in validation and prediction",
            json_schema_extra=NEUTRAL,
        ),
    ] = "second"
    recompute: Annotated[
        bool,
        Field(
            description="recompute modulations in the backward pass to save memory",
            json_schema_extra=NEUTRAL,
        ),
    ] = False
