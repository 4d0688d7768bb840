"""CateNorm: train a U-Net whose second look at an image is normalised by its first.

Paper: arXiv 2103.15858; see :mod:`nnunet_ext.networks.catenorm` for what is certain.
"""

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from pydoc import locate
from typing import Any, ClassVar, Literal

import numpy as np
from dynamic_network_architectures.building_blocks.helper import (
    get_matching_batchnorm,
    get_matching_instancenorm,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunet_ext._common.errors import SettingsError
from nnunet_ext.augmentation import disturbed
from nnunet_ext.networks import CateNormUNet
from nnunet_ext.settings import PLANS_KEY
from nnunet_ext.settings.catenorm import CateNormSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.catenorm_priors import UNIFORM, other_priors
from nnunet_ext.trainers.configured import SettingsByMethod
from nnunet_ext.trainers.distributed import gather, unwrap
from nnunet_ext.trainers.optimisation import Losses
from nnunet_ext.trainers.phases import Phase

FIRST_PASS = "first_pass"
SECOND_PASS = "second_pass"
CONDITIONED = "conditioned_pass"
"""Part of the loss where the previous stage of a cascade gives the prior, so that one pass does."""
TWO_PASSES = "two passes"
"""The phase after the plain one."""
_OWN = "own"
OF_FIRST_EDITION = (
    "WARNING: The checkpoint was made by an older nnunet_ext. It lacks running statistics of each "
    "pass for {} layers; both passes start from those that they shared, and diverge as the "
    "training continues."
)


class CateNormTrainer(ExtensionTrainer):
    """First plain epochs, then two passes over each batch, the second under the first's prior.

    Under the segmentation of a cascade's previous stage it is one pass.

    Deviations from the authors' implementation: nnU-Net's optimiser, schedule, loss and
    gradient clipping (norm 12, both passes) instead of Adam 1e-3 with plateaus and values
    clipped to 0.1 in pass 2 only; the optimiser runs on when the second pass is switched on;
    running statistics are those of one pass. By settings: joint updates, disturbed priors, other
    stages.
    """

    settings_key: ClassVar[str] = "catenorm"
    settings_class: ClassVar[type | None] = CateNormSettings
    leaves_parameters_unused: ClassVar[bool] = True

    @classmethod
    def read_settings(
        cls, configuration: Mapping[str, Any], where: str = PLANS_KEY
    ) -> SettingsByMethod:
        """Read settings, and refuse a previous stage where there is none."""
        settings = super().read_settings(configuration, where)
        wanted = settings.of(CateNormSettings).prior == "previous_stage"
        if wanted and configuration.get("previous_stage") is None:
            raise SettingsError(
                f'{where}, catenorm: "prior" is "previous_stage", but this configuration has no '
                'previous stage. Leave "prior" out, or set it in 3d_cascade_fullres or a '
                "configuration that inherits from that."
            )
        return settings

    @classmethod
    def adapt_configuration(
        cls, configuration: ConfigurationManager, settings: SettingsByMethod
    ) -> ConfigurationManager:
        """Exchange the normalisation of the planned network, if asked for."""
        return _with_norm(configuration, settings.of(CateNormSettings).norm)

    @classmethod
    def wrap_network(
        cls,
        unet: nn.Module,
        settings: SettingsByMethod,
        configuration: ConfigurationManager,
        num_output_channels: int,
    ) -> nn.Module:
        """Give the planned network a second pass, or one that reads the previous stage."""
        chosen = settings.of(CateNormSettings)
        is_cascade = chosen.prior == "previous_stage"
        return CateNormUNet(
            unet,
            num_output_channels,
            encoder_stages=chosen.encoder_stages,
            decoder_stages=chosen.decoder_stages,
            reduction=chosen.reduction,
            recompute=chosen.recompute,
            predict=chosen.predict,
            stages=chosen.stages,
            image_channels=len(configuration.normalization_schemes) if is_cascade else None,
        )

    @property
    def _chosen(self) -> CateNormSettings:
        return self.settings.of(CateNormSettings)

    @property
    def _unet(self) -> CateNormUNet:
        network = unwrap(self.network)
        assert isinstance(network, CateNormUNet)
        return network

    def initialize(self) -> None:
        """Tell the network whether its outputs are classes or regions, and what disturbs priors."""
        super().initialize()
        regions, strength = self.label_manager.has_regions, self._chosen.prior_augmentation
        self._unet.use_regions(regions)
        if strength > 0:
            self._unet.disturb = partial(disturbed, strength=strength, regions=regions)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load a checkpoint, and tell what one of the first edition lacks."""
        super().load_checkpoint(filename_or_checkpoint)
        if self._unet.lacks_statistics:
            self.print_to_log_file(OF_FIRST_EDITION.format(self._unet.lacks_statistics))

    def phases(self) -> list[Phase]:
        """Plain training first, then two passes."""
        chosen = self._chosen
        return [
            *super().phases(),
            Phase(
                TWO_PASSES,
                chosen.plain_fraction,
                fresh_schedule=chosen.continues,
                outdates_best=True,
            ),
        ]

    def on_phase_begin(self, phase: Phase) -> None:
        """Switch the second pass on."""
        super().on_phase_begin(phase)
        if phase.name == TWO_PASSES and not self._unet.active:
            self._unet.activate("inherit" if self._chosen.continues else "default")

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Iterator[Losses]:
        """One update per pass, or one on the sum of both losses (``updates: "joint"``)."""
        if not self._unet.active:
            yield {FIRST_PASS: self.loss(self.network(data, mode="first"), target)}
        elif self._chosen.prior == "previous_stage":
            yield {CONDITIONED: self.loss(self.network(data), target)}
        elif self._chosen.updates == "joint":
            first, second = self.network(data, mode="both")
            yield {FIRST_PASS: self.loss(first, target), SECOND_PASS: self.loss(second, target)}
        else:
            first = self.network(data, mode="first")
            prior = self._unet.prior_from(first)  # from the logits before the first update
            yield {FIRST_PASS: self.loss(first, target)}
            del first
            second = self.network(data, prior=prior, mode="second")
            yield {SECOND_PASS: self.loss(second, target)}

    # ------------------------------------------------------------------------------------- scores

    def on_validation_epoch_start(self) -> None:
        """Prepare for scores of the other pass and, in the last epoch, under other priors."""
        super().on_validation_epoch_start()
        self._other_scores: dict[str, list[dict[str, Any]]] = {}

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score both passes, from one run of the network; nnU-Net gets those that answer."""
        if not self._unet.active:
            scores: dict[str, Any] = super().validation_step(batch)
            return scores
        data = batch["data"].to(self.device, non_blocking=True)
        is_last = self.current_epoch == self.num_epochs - 1
        with self.autocast():
            if self._chosen.prior == "previous_stage":
                prior, answer = self._unet.previous_stage(data), self.network(data)
            else:
                first, second = self.network(data, mode="both")
                prior = self._unet.prior_from(first)
                answers = {FIRST_PASS: first, SECOND_PASS: second}
                answer = answers.pop(f"{self._chosen.predict}_pass")
                self._score_beside(answers, batch)
            if is_last:
                others = other_priors(
                    prior, batch["target"], self.label_manager, self._chosen.prior == "first_pass"
                )
                for name, other in ({_OWN: prior} | others).items():
                    # not compiled, because it is run only here
                    logits = self._unet(data, prior=other, mode="second")
                    self._score_beside({name: logits}, batch)
        with self.network_answering(answer):
            scores = super().validation_step(batch)
        return scores

    def _score_beside(self, answers: dict[str, Any], batch: dict[str, Any]) -> None:
        for name, logits in answers.items():
            self._other_scores.setdefault(name, []).append(self.scores_beside(logits, batch))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Record the Dice of either pass and, at last, what the prior does for the second."""
        super().on_validation_epoch_end(val_outputs)
        if not self._unet.active:
            return
        dice = {name: self._mean_dice(scores) for name, scores in self._other_scores.items()}
        if self._chosen.prior == "first_pass":
            answering = f"{self._chosen.predict}_pass"
            dice[answering] = float(self.logger.get_value("mean_fg_dice", step=-1))
            for name in (FIRST_PASS, SECOND_PASS):
                self.record(f"{name}_dice", dice.pop(name))
        if dice:
            own = dice.pop(_OWN)
            self.record("prior_gain", own - dice[UNIFORM])
            for kind, value in dice.items():
                self.record(f"{kind}_prior_dice", value)

    def _mean_dice(self, scores: list[dict[str, Any]]) -> float:
        """Mean foreground Dice over all voxels of these validation steps, as nnU-Net's."""
        tp, fp, fn = (
            np.sum(gather(sum(score[name] for score in scores)), axis=0)
            for name in ("tp_hard", "fp_hard", "fn_hard")
        )
        with np.errstate(invalid="ignore"):  # a class that is nowhere counts as missing
            return float(np.nanmean(2 * tp / (2 * tp + fp + fn)))


def _with_norm(
    configuration_manager: ConfigurationManager, norm: Literal["plan", "batch", "instance"]
) -> ConfigurationManager:
    """Exchange the normalisation of the planned network."""
    if norm == "plan":
        return configuration_manager
    configuration = copy.deepcopy(configuration_manager.configuration)
    kwargs = configuration["architecture"]["arch_kwargs"]
    matching = {"batch": get_matching_batchnorm, "instance": get_matching_instancenorm}[norm]
    norm_class = matching(locate(kwargs["conv_op"]))
    kwargs["norm_op"] = f"{norm_class.__module__}.{norm_class.__name__}"
    return ConfigurationManager(configuration)
