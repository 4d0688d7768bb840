"""Settings of Mind the Gap."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext.settings import NEUTRAL, STRICT


@dataclass(frozen=True, config=STRICT)
class TranslatorSettings:
    """Settings of the translator. Defaults follow AD-GAN; the paper's length is not known."""

    retired: ClassVar[Mapping[str, Any]] = {
        "translator_lr": 2e-4,
        "translator_reconstruction": 20.0,
        "translator_cycle": 20.0,
        "translator_content": 1.0,
        "translator_pool": 50,
        "translator_variant": "v1",
    }

    translator_iterations: Annotated[
        int,
        Field(
            ge=0,
            description="training steps, with a rate that decays in the second half",
        ),
    ] = 20_000
    translator_starts: Annotated[
        int,
        Field(
            ge=1,
            description="trials of a few hundred steps, each from other weights; the one that "
            "the discriminator finds most real goes on",
        ),
    ] = 4
    translator_batch: Annotated[
        int, Field(ge=1, description="slices of either domain in a training step")
    ] = 8
    translator_crop: Annotated[
        int,
        Field(ge=24, description="longest side of a training crop; less than 3/4 of a slice hurts"),
    ] = 256
    translator_dim: Annotated[
        Literal[2, 3], Field(description="2 translates slice by slice, 3 small isotropic volumes")
    ] = 2
    translator_filters: Annotated[int, Field(ge=1, description="of the first convolution")] = 64
    translator_blocks: Annotated[int, Field(ge=1, description="residual blocks, each side")] = 4
    translator_seed: Annotated[
        int, Field(ge=0, lt=2**31, description="of initial weights and of what is drawn")
    ] = 0


@dataclass(frozen=True, config=STRICT)
class MindTheGapSettings(TranslatorSettings):
    """Settings of Mind the Gap: those of Step A (``translator_...``), then those of Step B."""

    retired: ClassVar[Mapping[str, Any]] = {**TranslatorSettings.retired, "mask_detach": False}

    translator: Annotated[
        Literal["adgan", "none"],
        Field(description="whether there is a Step A, or labelled images are taken as they are"),
    ] = "adgan"
    lambda_adv: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="weight of aligning features and outputs; the paper's 0.01 is for a "
            "segmentation loss of half nnU-Net's",
        ),
    ] = 0.02
    critic_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate of the critics' Adam")
    ] = 1e-4
    mask_stride: Annotated[
        int | None,
        Field(
            ge=1,
            description="the mask stands where the encoder first reaches this stride; default: "
            "where its shorter side still has 16 cells",
        ),
    ] = None
    mask_scope: Annotated[
        Literal["all", "deep", "stage", "off"],
        Field(description="stages that it multiplies: all, deep (from its own), its own"),
    ] = "all"
    mask_renorm: Annotated[
        bool, Field(description="only the mask's spatial variation counts; not in the paper")
    ] = True
    mask_at_inference: Annotated[
        bool, Field(description="mask in prediction, too", json_schema_extra=NEUTRAL)
    ] = True
    self_training: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of the epochs, the last ones, that also learn from what an average "
            "of the network is sure of in images without labels",
        ),
    ] = 0.0

    @property
    def translates(self) -> bool:
        """Whether there is a Step A; plans of our first edition say so by its length."""
        return self.translator != "none" and self.translator_iterations > 0
