"""CateNorm: train a U-Net whose second look at an image is normalised by its first.

Paper: arXiv 2103.15858; see :mod:`nnunet_ext.networks.catenorm` for what is certain.
"""

import copy
from collections.abc import Iterator
from pydoc import locate
from typing import Any, ClassVar, Literal

import numpy as np
from dynamic_network_architectures.building_blocks.helper import (
    get_matching_batchnorm,
    get_matching_instancenorm,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunet_ext.networks import CateNormUNet
from nnunet_ext.settings.catenorm import CateNormSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.configured import SettingsByMethod
from nnunet_ext.trainers.distributed import gather, unwrap
from nnunet_ext.trainers.optimisation import Losses
from nnunet_ext.trainers.phases import Phase

FIRST_PASS = "first_pass"
SECOND_PASS = "second_pass"
TWO_PASSES = "two passes"
"""The phase after the plain one."""


class CateNormTrainer(ExtensionTrainer):
    """First plain epochs, then two passes over each batch, the second under the first's prior.

    Deviations from the authors' implementation: nnU-Net's optimiser, schedule, loss and
    gradient clipping (norm 12, both passes) instead of Adam 1e-3 with plateaus and values
    clipped to 0.1 in pass 2 only; the optimiser runs on when the second pass is switched on.
    """

    settings_key: ClassVar[str] = "catenorm"
    settings_class: ClassVar[type | None] = CateNormSettings
    leaves_parameters_unused: ClassVar[bool] = True

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
        """Give the planned network a second pass."""
        chosen = settings.of(CateNormSettings)
        return CateNormUNet(
            unet,
            num_output_channels,
            encoder_stages=chosen.encoder_stages,
            decoder_stages=chosen.decoder_stages,
            reduction=chosen.reduction,
            recompute=chosen.recompute,
            predict=chosen.predict,
        )

    @property
    def _unet(self) -> CateNormUNet:
        network = unwrap(self.network)
        assert isinstance(network, CateNormUNet)
        return network

    def initialize(self) -> None:
        """Tell the network whether its outputs are classes or regions."""
        super().initialize()
        self._unet.use_regions(self.label_manager.has_regions)

    def phases(self) -> list[Phase]:
        """Plain training first, then two passes."""
        plain = self.settings.of(CateNormSettings).plain_fraction
        return [*super().phases(), Phase(TWO_PASSES, plain, outdates_best=True)]

    def on_phase_begin(self, phase: Phase) -> None:
        """Switch the second pass on."""
        super().on_phase_begin(phase)
        if phase.name == TWO_PASSES and not self._unet.active:
            self._unet.activate(self.settings.of(CateNormSettings).initialisation)

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Iterator[Losses]:
        """One update per pass, or one on the sum of both losses (``updates: "joint"``)."""
        if not self._unet.active:
            yield {FIRST_PASS: self.loss(self.network(data, mode="first"), target)}
        elif self.settings.of(CateNormSettings).updates == "joint":
            first, second = self.network(data, mode="both")
            yield {FIRST_PASS: self.loss(first, target), SECOND_PASS: self.loss(second, target)}
        else:
            first = self.network(data, mode="first")
            prior = self._unet.prior_from(first)  # from the logits before the first update
            yield {FIRST_PASS: self.loss(first, target)}
            del first
            second = self.network(data, prior=prior, mode="second")
            yield {SECOND_PASS: self.loss(second, target)}

    def on_validation_epoch_start(self) -> None:
        """Prepare for scores of the first pass."""
        super().on_validation_epoch_start()
        self._first_pass_scores: list[dict[str, Any]] = []

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score both passes, from one run of the network; nnU-Net gets those of the second."""
        if not self._unet.active:
            scores: dict[str, Any] = super().validation_step(batch)
            return scores
        with self.autocast():
            first, second = self.network(
                batch["data"].to(self.device, non_blocking=True), mode="both"
            )
        self._first_pass_scores.append(self.scores_beside(first, batch))
        with self.network_answering(second):
            scores = super().validation_step(batch)
        return scores

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Record the Dice of either pass."""
        super().on_validation_epoch_end(val_outputs)
        if self._unet.active:
            second_pass_dice = float(self.logger.get_value("mean_fg_dice", step=-1))
            self.record("first_pass_dice", self._mean_dice(self._first_pass_scores))
            self.record("second_pass_dice", second_pass_dice)

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
