"""Settings of CateNorm."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import NEUTRAL, STRICT


@dataclass(frozen=True, config=STRICT)
class CateNormSettings:
    """Settings of CateNorm. Defaults follow the authors' implementation."""

    retired: ClassVar[Mapping[str, Any]] = {
        "follow_stage_kernel": False,
        "initialisation": "default",  # goes with the updates
    }

    prior: Annotated[
        Literal["first_pass", "previous_stage"],
        Field(
            description="class map that a pass is conditioned on: of a first pass over the same "
            "image, or of the previous stage of nnU-Net's cascade"
        ),
    ] = "first_pass"
    stages: Annotated[
        Literal["high", "low"],
        Field(
            description="layers to modify: of the first four encoder stages (the authors'), or of "
            "those from 2 on and of the decoder"
        ),
    ] = "high"
    encoder_stages: Annotated[
        tuple[int, ...] | None,
        Field(description="encoder stages to modify, 0 is full resolution; default by stages"),
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
        Field(
            description="two updates per batch, new layers random (the authors'), or one on the "
            "sum of losses, new layers as the old ones, learning rate anew"
        ),
    ] = "alternating"
    plain_fraction: Annotated[
        float, Field(ge=0, lt=1, description="share of epochs trained plainly at first")
    ] = 0.5
    prior_augmentation: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="how often a first pass's prior is disturbed in training; 1 is as often as "
            "in nnU-Net's cascade",
        ),
    ] = 0.0
    predict: Annotated[
        Literal["second", "first"],
        Field(
            description="pass that answers in validation and prediction; the first costs what "
            "stock nnU-Net does",
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

    def __post_init__(self) -> None:
        if self.stages == "low" and (self.encoder_stages is not None or self.decoder_stages):
            raise ValueError(
                'stages "low" says which stages are modified; leave out encoder_stages and '
                "decoder_stages"
            )
        if self.prior == "previous_stage" and self.predict == "first":
            raise ValueError(
                'predict "first" needs two passes, but prior "previous_stage" takes only one; '
                "leave out either"
            )
        if self.prior == "previous_stage" and self.prior_augmentation > 0:
            raise ValueError(
                'prior_augmentation is for prior "first_pass"; nnU-Net itself disturbs the '
                "segmentations of its previous stage"
            )

    @property
    def continues(self) -> bool:
        """Whether what is conditioned starts as a copy of the plain network, and with its schedule.

        Otherwise new layers are random, and the learning rate goes on to fall.
        """
        return self.updates == "joint" or self.prior == "previous_stage"
