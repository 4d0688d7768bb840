"""ConDSeg: an encoder trained on two views first, then a decoder guided by object and background.

Paper: arXiv 2412.08345; see :mod:`nnunet_ext.networks.condseg.network` for what is certain.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ext.augmentation import strong_view
from nnunet_ext.losses import ConsistencyReinforcementLoss, SemanticDecouplingLoss
from nnunet_ext.losses.condseg import AnyForeground, any_foreground
from nnunet_ext.networks import ConDSegNet
from nnunet_ext.networks.condseg.network import EncoderFirstUNet
from nnunet_ext.settings import read_method_settings
from nnunet_ext.settings.condseg import ConDSegSettings
from nnunet_ext.trainers.base import (
    LR_FACTOR,
    ExtensionTrainer,
    Losses,
    Update,
    give_own_rate,
)
from nnunet_ext.trainers.distributed import gather, unwrap

ENCODER_HEAD = "encoder_head"
COLOUR_NAMES = ({"r", "g", "b"}, {"red", "green", "blue"}, {"rgb_to_0_1"})
"""Names of three channels that are colours."""
AUXILIARY_WEIGHT = 2.0
"""What the weights of foreground and background map add up to; nnU-Net's loss has 1."""


class ConDSegTrainer(ExtensionTrainer):
    """First the encoder under a light head, on two views of each patch; then the whole network.

    Deviations from the authors' implementation: nnU-Net's optimiser, schedule and augmentation;
    nnU-Net's loss instead of the mask loss for the segmentation; no deep supervision, which the
    method lacks; the losses of the first phase are averaged over views; those of the three maps
    keep their ratios but are scaled, because SGD, unlike Adam, minds the size of a loss.
    """

    method_settings: ClassVar[dict[str, type]] = {"condseg": ConDSegSettings}
    leaves_parameters_unused: ClassVar[bool] = True

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Give the planned encoder the decoder that the plans ask for."""
        settings = read_method_settings(
            configuration_manager.configuration, "condseg", ConDSegSettings
        )
        unet = super().build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        if settings.decoder == "plan":
            return EncoderFirstUNet(unet)
        return ConDSegNet(
            unet,
            num_output_channels,
            configuration_manager.patch_size,
            width=settings.width,
            heads=settings.heads,
            attention_budget=settings.attention_budget,
            full_resolution_skip=settings.full_resolution_skip,
            recompute=settings.recompute,
        )

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        # now, because targets, loss and data loaders are made for it
        self.enable_deep_supervision = self.condseg.decoder == "plan"

    @property
    def condseg(self) -> ConDSegSettings:
        """The settings in force."""
        settings: ConDSegSettings = self.settings["condseg"]
        return settings

    @property
    def _unet(self) -> EncoderFirstUNet:
        network = unwrap(self.network)
        assert isinstance(network, EncoderFirstUNet)
        return network

    @property
    def first_phase_epochs(self) -> int:
        """Epochs that train the encoder alone."""
        share = 0.0 if self.condseg.consistency == "off" else self.condseg.first_phase
        return int(share * self.num_epochs)

    @property
    def in_first_phase(self) -> bool:
        """Whether this epoch trains the encoder alone."""
        return self.current_epoch < self.first_phase_epochs

    def build_auxiliary(self) -> dict[str, nn.Module]:
        """The light head; it is saved for good, so that the number of epochs may be changed."""
        if self.condseg.consistency == "off":
            return {}
        head = self._unet.encoder_head(self.label_manager.num_segmentation_heads)
        return {ENCODER_HEAD: head}

    def configure_optimizers(self, *stage: str) -> tuple[Optimizer, PolyLRScheduler]:
        """One optimiser for both phases, the encoder in a parameter group of its own."""
        optimizer, _ = super().configure_optimizers(*stage)
        give_own_rate(optimizer, self._unet.encoder.parameters(), 1)
        scheduler = TwoPhasePolyLR(
            optimizer, self.initial_lr, self.num_epochs, self.first_phase_epochs
        )
        return optimizer, scheduler

    def _build_loss(self) -> nn.Module:
        self._consistency = ConsistencyReinforcementLoss(self.label_manager.has_regions)
        self._decoupling = SemanticDecouplingLoss(self.condseg.max_area_weight)
        loss: nn.Module = super()._build_loss()
        return loss

    # ----------------------------------------------------------------------------------- phases

    def on_train_epoch_start(self) -> None:
        """Change phase where its epoch has come."""
        encoder = self.optimizer.param_groups[-1]
        trained = self.first_phase_epochs and not self.in_first_phase
        encoder[LR_FACTOR] = self.condseg.encoder_lr_factor if trained else 1
        if self.in_first_phase:
            self._best_ema = float("inf")  # with an untrained decoder nothing is worth keeping
        elif self._best_ema == float("inf"):
            self.begin_phase()
            self.optimizer.state.clear()  # momentum of the first phase
            self.print_to_log_file("ConDSeg: the whole network is trained.")
        self._uncertain: list[Tensor] = []
        super().on_train_epoch_start()

    def compute_losses(
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Losses | Iterator[Losses | Update]:
        """The losses of the present phase, which are those of stock nnU-Net for its decoder."""
        if self.in_first_phase:
            return self._losses_of_encoder(data, target)
        if self.condseg.decoder == "plan":
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
        plain, strong = self._encoder_logits(views).chunk(2)
        losses = {"plain_view": loss(plain, target) / 2, "strong_view": loss(strong, target) / 2}
        if self.condseg.consistency == "on":
            valid = self._any_foreground(target).valid
            losses["consistency"] = self._consistency(plain, strong, valid) / 2
        return losses

    def _losses_of_decoder(self, data: Tensor, target: Tensor) -> Losses:
        answer = self.network(data, answer="decoupled")
        parts = self._decoupling(answer.maps, self._any_foreground(target))
        self._uncertain.append(parts.uncertain_share)
        scale = AUXILIARY_WEIGHT / (parts.foreground_weight + parts.background_weight)
        return {
            "segmentation": self.loss(answer.logits, target),
            "foreground": scale * parts.foreground_weight * parts.foreground,
            "background": scale * parts.background_weight * parts.background,
            "complementary": scale * parts.complementary,
        }

    def _encoder_logits(self, data: Tensor) -> Tensor:
        features = self.network(data, answer="features")
        logits: Tensor = self.auxiliary[ENCODER_HEAD](features, data.shape[2:])
        return logits

    def _any_foreground(self, target: Tensor) -> AnyForeground:
        labels = self.label_manager
        return any_foreground(target, labels.has_regions, labels.ignore_label)

    def _strong_view(self, data: Tensor) -> Tensor:
        """Change the images and leave alone what a cascade puts behind them."""
        images, others = data.tensor_split([self.image_channels], dim=1)
        channels = self.dataset_json.get("channel_names", self.dataset_json.get("modality"))
        names = {str(name).lower() for name in channels.values()}
        view = strong_view(
            images,
            axes=(1, 2) if self.has_thick_slices else None,
            colour=self.image_channels == 3 and names in COLOUR_NAMES,
            keep_zero=self.configuration_manager.use_mask_for_norm,
        )
        return torch.cat([view, others], dim=1)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record how much is uncertain."""
        super().on_train_epoch_end(train_outputs)
        if self._uncertain:
            shares = gather(float(torch.stack(self._uncertain).mean()))
            self.record("uncertain_share", sum(shares) / len(shares))

    def on_validation_epoch_start(self) -> None:
        """Put the light head into evaluation mode, too."""
        super().on_validation_epoch_start()
        self.auxiliary.eval()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the network, or in the first phase the encoder's light head."""
        if not self.in_first_phase:
            scores: dict[str, Any] = super().validation_step(batch)
            return scores
        with self.autocast():
            logits = self._encoder_logits(batch["data"].to(self.device, non_blocking=True))
        with self.network_answering([logits] if self.enable_deep_supervision else logits):
            scores = super().validation_step(batch)
        return scores


class TwoPhasePolyLR(PolyLRScheduler):
    """nnU-Net's schedule, once for each phase.

    Args:
        optimizer: Gets the rates.
        initial_lr: Rate at the beginning of either phase.
        max_steps: Epochs of both together.
        first_phase: Epochs of the first.
    """

    def __init__(
        self, optimizer: Optimizer, initial_lr: float, max_steps: int, first_phase: int
    ) -> None:
        self.phases = (first_phase, max_steps - first_phase)
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        """Set the rates of an epoch; without one, as torch calls it once, those of the first."""
        epoch = current_step or 0
        first, second = self.phases
        in_second = epoch >= first
        self.max_steps = second if in_second else first
        super().step(epoch - first if in_second else epoch)
