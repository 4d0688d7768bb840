"""ConDSeg: an encoder trained on two views first, then a decoder guided by object and background.

Paper: arXiv 2412.08345; see :mod:`nnunet_ext.networks.condseg.network` for what is certain.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ext._common.errors import CheckpointError, SettingsError
from nnunet_ext.augmentation import strong_view
from nnunet_ext.losses import ConsistencyReinforcementLoss, SemanticDecouplingLoss
from nnunet_ext.losses.condseg import AnyForeground, any_foreground
from nnunet_ext.networks import ConDSegNet
from nnunet_ext.networks.condseg.network import FIRST_EDITION, DecoupledLogits
from nnunet_ext.settings.condseg import ConDSegSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.configured import SettingsByMethod
from nnunet_ext.trainers.distributed import gather, unwrap
from nnunet_ext.trainers.optimisation import LR_FACTOR, Losses, Update, give_own_rate
from nnunet_ext.trainers.phases import Phase

PRETRAINED = "pretrained"
"""Key of the encoder's parameter group: whether its training began with weights of another."""
START = "start"
"""Key of the encoder's parameter group: what tells its first weights from others."""
PRETRAINED_FACTOR = 0.1
"""Share of the learning rate that a pretrained encoder keeps, as in the paper."""
WHOLE_NETWORK = "whole network"
"""The phase after that of the encoder."""
COLOUR_NAMES = ({"r", "g", "b"}, {"red", "green", "blue"}, {"rgb_to_0_1"})
"""Names of three channels that are colours."""
AUXILIARY_WEIGHT = 2.0
"""What the weights of foreground and background map add up to; nnU-Net's loss has 1."""
PROBE_SCALE = 2.0**10
"""Of losses whose gradients are compared."""


class ConDSegTrainer(ExtensionTrainer):
    """First the encoder under a light head, on two views of each patch; then the whole network.

    Deviations from the authors' implementation: nnU-Net's optimiser, schedule and augmentation;
    nnU-Net's loss instead of the mask loss for the segmentation; no deep supervision, which the
    method lacks; the light head of the first phase is kept, and the decoder adds to it; the losses
    of the first phase are averaged over views; those of the maps keep their ratios but are scaled,
    so that they move the encoder no more than the segmentation does.
    """

    settings_key: ClassVar[str] = "condseg"
    settings_class: ClassVar[type | None] = ConDSegSettings
    leaves_parameters_unused: ClassVar[bool] = True

    @classmethod
    def wrap_network(
        cls,
        unet: nn.Module,
        settings: SettingsByMethod,
        configuration: ConfigurationManager,
        num_output_channels: int,
    ) -> nn.Module:
        """Give the planned encoder the decoder that the plans ask for."""
        chosen = settings.of(ConDSegSettings)
        return ConDSegNet(
            unet,
            num_output_channels,
            configuration.patch_size,
            chosen.decoder,
            head=chosen.consistency != "off",
            width=chosen.width,
            attention_budget=chosen.attention_budget,
            foreground_maps=num_output_channels - 1 if chosen.maps == "classes" else 1,
        )

    def apply_training_settings(self) -> None:
        """Go without deep supervision, which the method lacks.

        Raises:
            SettingsError: If regions, which overlap, are to have maps of classes.
        """
        super().apply_training_settings()
        chosen = self.settings.of(ConDSegSettings)
        if chosen.maps == "classes" and self.label_manager.has_regions:
            raise SettingsError(
                'condseg.maps is "classes", but the labels are regions, which overlap. Choose '
                '"merged".'
            )
        # now, because targets, loss and data loaders are made for it
        self.enable_deep_supervision = chosen.decoder == "plan"

    @property
    def _bare(self) -> ConDSegNet:
        network = unwrap(self.network)
        assert isinstance(network, ConDSegNet)
        return network

    @property
    def in_first_phase(self) -> bool:
        """Whether this epoch trains the encoder alone."""
        return not self.reached(WHOLE_NETWORK)

    def configure_optimizers(self, *stage: str) -> tuple[Optimizer, PolyLRScheduler]:
        """One optimiser for both phases, the encoder in a parameter group of its own."""
        optimizer, scheduler = super().configure_optimizers(*stage)
        give_own_rate(optimizer, self._bare.encoder.parameters(), 1)
        optimizer.param_groups[-1][START] = _fingerprint(self._bare.encoder)
        return optimizer, scheduler

    def _build_loss(self) -> nn.Module:
        self._consistency = ConsistencyReinforcementLoss(self.label_manager.has_regions)
        self._decoupling = SemanticDecouplingLoss()
        loss: nn.Module = super()._build_loss()
        return loss

    def _accept(self, state: dict[str, Any], filename: str) -> None:
        chosen, stored = self.settings.of(ConDSegSettings), state["settings"].get("condseg", {})
        is_stock = chosen.consistency == "off" and chosen.decoder == "plan"
        if stored and "maps" not in stored and not is_stock:
            raise CheckpointError(f"{filename} {FIRST_EDITION}")
        super()._accept(state, filename)

    # ----------------------------------------------------------------------------------- phases

    def phases(self) -> list[Phase]:
        """The encoder first, then all of it, with a schedule for each."""
        settings = self.settings.of(ConDSegSettings)
        share = 0.0 if settings.consistency == "off" else settings.first_phase
        anew = {"fresh_schedule": True, "fresh_optimizer": True, "outdates_best": True}
        return [*super().phases(), Phase(WHOLE_NETWORK, share, **anew)]

    def on_train_start(self) -> None:
        """Look whether the encoder is pretrained; log which level attends how."""
        super().on_train_start()
        encoder = self.optimizer.param_groups[-1]
        if self.current_epoch == 0:
            encoder[PRETRAINED] = encoder[START] != _fingerprint(self._bare.encoder)
        if self._bare.attention():
            self.print_to_log_file("ConDSeg:", "; ".join(self._bare.attention()))

    def on_phase_begin(self, phase: Phase) -> None:
        """Let the encoder learn more slowly, if it came pretrained or the settings say so."""
        super().on_phase_begin(phase)
        if phase.name == WHOLE_NETWORK:
            encoder = self.optimizer.param_groups[-1]
            factor = PRETRAINED_FACTOR if encoder.get(PRETRAINED) else 1
            encoder[LR_FACTOR] = self.settings.of(ConDSegSettings).encoder_lr_factor or factor

    def on_train_epoch_start(self) -> None:
        """Keep no best checkpoint while the decoder is untrained."""
        super().on_train_epoch_start()
        self._auxiliary_weight: float | None = None
        if self.in_first_phase:
            self._best_ema = float("inf")
        self._uncertain: list[Tensor] = []

    def compute_losses(
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Losses | Iterator[Losses | Update]:
        """The losses of the present phase, which are those of stock nnU-Net for its decoder."""
        if self.in_first_phase:
            return self._losses_of_encoder(data, target)
        if self.settings.of(ConDSegSettings).decoder in ("plan", "head"):
            return super().compute_losses(data, target, keys)
        return self._losses_of_decoder(data, target)

    def _losses_of_encoder(self, data: Tensor, target: Any) -> Losses:
        loss = self.loss
        if isinstance(loss, DeepSupervisionWrapper):
            loss = loss.loss
        if isinstance(target, list):
            target = target[0]
        # as one batch: DDP and batch normalisation want a single pass before each update
        views = torch.cat([data, self._strong_view(data)])
        plain, strong = self.network(views, answer="head").chunk(2)
        losses = {"plain_view": loss(plain, target) / 2, "strong_view": loss(strong, target) / 2}
        if self.settings.of(ConDSegSettings).consistency == "on":
            valid = self._any_foreground(target).valid
            losses["consistency"] = self._consistency(plain, strong, valid) / 2
        return losses

    def _losses_of_decoder(self, data: Tensor, target: Tensor) -> Losses:
        if self._auxiliary_weight is None:
            self._auxiliary_weight = self._balance(data, target)
        answer = self.network(data, answer="decoupled")
        segmentation, maps, uncertain = self._decoupled(answer, target)
        self._uncertain.append(uncertain)
        weighted = {name: self._auxiliary_weight * loss for name, loss in maps.items()}
        return {"segmentation": segmentation, **weighted}

    def _decoupled(self, answer: DecoupledLogits, target: Tensor) -> tuple[Tensor, Losses, Tensor]:
        """The losses of segmentation and maps, and the share of what is uncertain."""
        parts = self._decoupling(answer.maps, self._any_foreground(target, answer.maps.shape[1]))
        scale = AUXILIARY_WEIGHT / (parts.foreground_weight + parts.background_weight)
        maps = {
            "foreground": scale * parts.foreground_weight * parts.foreground,
            "background": scale * parts.background_weight * parts.background,
            "complementary": scale * parts.complementary,
        }
        return self.loss(answer.logits, target), maps, parts.uncertain_share

    def _balance(self, data: Tensor, target: Tensor) -> float:
        """The most weight at which the maps move the encoder no more than the segmentation does.

        Looked up with the first batch of each epoch, so that a continued training finds the same.
        Gradients end at the deepest features, through which alone the maps reach the encoder; the
        segmentation reaches it through all, so that its part is rather underestimated.
        """
        network = self._bare  # without compilation, which would not keep the graph
        # not without recording: mixed precision would go on with weights that have no gradient
        *finer, deepest = (x.detach() for x in network.encoder(data))
        features = [*finer, deepest.requires_grad_()]
        segmentation, maps, _ = self._decoupled(network.answer(features, "decoupled"), target)
        norms = []
        for loss in (segmentation, torch.stack(list(maps.values())).sum()):
            # scaled, because half precision loses small gradients
            (gradient,) = torch.autograd.grad(PROBE_SCALE * loss, deepest, retain_graph=True)
            norms.append(float(gradient.float().norm()))
        of_segmentation, of_maps = np.mean(gather(norms), axis=0).tolist()
        ratio = of_maps / max(of_segmentation, np.finfo(np.float32).tiny)
        weight = 1 / max(1.0, ratio)
        self.record("auxiliary_weight", weight)
        self.record("auxiliary_share", weight * ratio)
        return weight

    def _any_foreground(self, target: Tensor, maps: int = 3) -> AnyForeground:
        labels = self.label_manager
        return any_foreground(target, labels.has_regions, labels.ignore_label, maps - 2)

    def _strong_view(self, data: Tensor) -> Tensor:
        """Change the images of a batch (B, C, *S) strongly."""
        channels = self.dataset_json.get("channel_names", self.dataset_json.get("modality"))
        names = {str(name).lower() for name in channels.values()}
        change = partial(
            strong_view,
            axes=(1, 2) if self.has_thick_slices else None,
            colour=self.image_channels == 3 and names in COLOUR_NAMES,
            keep_zero=self.configuration_manager.use_mask_for_norm,
        )
        return self.on_images(data, change)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record how much is uncertain."""
        super().on_train_epoch_end(train_outputs)
        if self._uncertain:
            shares = gather(float(torch.stack(self._uncertain).mean()))
            self.record("uncertain_share", sum(shares) / len(shares))

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the network, or in the first phase the encoder's light head."""
        if not self.in_first_phase:
            scores: dict[str, Any] = super().validation_step(batch)
            return scores
        with self.autocast():
            logits = self.network(batch["data"].to(self.device, non_blocking=True), answer="head")
        with self.network_answering([logits] if self.enable_deep_supervision else logits):
            scores = super().validation_step(batch)
        return scores


def _fingerprint(module: nn.Module) -> float:
    """A number that other weights do not have."""
    return float(sum(p.detach().double().abs().sum() for p in module.parameters()))
