"""RAM-DSIR: train on several domains for images of a domain that nobody has seen.

Paper: Zhou, Qi, Shi, ECCV 2022, arXiv 2208.03901, whose body was not available to us. Defaults
follow the authors' published implementation.
"""

from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ext._common.errors import CheckpointError
from nnunet_ext.augmentation import gin
from nnunet_ext.augmentation.amplitude_mixup import StyleBank, draw_ratios, low_frequencies, mix
from nnunet_ext.losses import RestorationLoss, SymmetricKLConsistency
from nnunet_ext.losses.ram_dsir import over_domains
from nnunet_ext.networks import RestorationDecoder
from nnunet_ext.networks.ram_dsir import return_features
from nnunet_ext.settings.ram_dsir import ADAM_ENCODER_LR, RAMDSIRSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.distributed import gather, unwrap
from nnunet_ext.trainers.optimisation import Losses, give_own_rate

ORIGINAL = "original"
MIXED = "mixed"
CONSISTENCY = "consistency"
RESTORATION = "restoration"

DOMAINS_KEY = "domains"
"""Where our part of a checkpoint lists the domains in the order of the decoder's tables."""
STYLES_KEY = "styles"
"""Where it holds the bank, so that a continued training mixes what an uninterrupted one does."""

STYLE_TRANSFORMS = (MultiplicativeBrightnessTransform, ContrastTransform, GammaTransform)
"""nnU-Net's augmentations that change the style of an image rather than its quality."""


class RAMDSIRTrainer(ExtensionTrainer):
    """Segments each image in its own style and in a mixture, and restores the one from the other.

    The network is the planned one, and validation and prediction see nothing of all this.

    Deviations from the authors' implementation: nnU-Net's optimiser, schedule, losses and
    augmentation; partners are recent patches after augmentation, not images from disk; means
    are mixed with their signs (:mod:`nnunet_ext.augmentation.amplitude_mixup`); restoration in half
    resolution, with instance instead of batch normalisation; no normalisation by test batches.
    """

    settings_key: ClassVar[str] = "ram_dsir"
    settings_class: ClassVar[type | None] = RAMDSIRSettings
    requires_domains: ClassVar[bool] = True

    @property
    def domain_names(self) -> list[str]:
        """All domains of the data set, those that this fold holds out included, by number."""
        return sorted(set(self.domains.values()))

    @property
    def averages_views(self) -> bool:
        """Whether the losses of two views are halved.

        Their sum doubles the gradients, which nnU-Net's learning rate and clipping for SGD are
        not made for; Adam does not mind.
        """
        return self.training_settings.optimizer == "sgd"

    @property
    def encoder_lr_factor(self) -> float:
        """Learning rate of the encoder over that of everything else."""
        settings = self.settings.of(RAMDSIRSettings)
        if settings.encoder_lr_factor is not None:
            return settings.encoder_lr_factor
        literal = settings.restoration and self.training_settings.optimizer == "adam"
        return ADAM_ENCODER_LR if literal else 1.0

    # ------------------------------------------------------------------------------ life cycle

    def initialize(self) -> None:
        """Make the bank of styles and the losses."""
        self._bank = StyleBank(len(self.domain_names))
        self._generator = torch.Generator()  # on the CPU, so that drawing does not wait for a GPU
        self._generator.seed()
        super().initialize()
        self._consistency = SymmetricKLConsistency(self.label_manager.has_regions)
        self._restoration = RestorationLoss(self.settings.of(RAMDSIRSettings).intensity_range)

    def build_auxiliary(self) -> dict[str, nn.Module]:
        """Build the restoration decoder, if images are to be restored."""
        settings = self.settings.of(RAMDSIRSettings)
        if not settings.restoration:
            return {}
        network: Any = unwrap(self.network)
        decoder = RestorationDecoder(
            getattr(network, "encoder", network),
            self.image_channels,
            len(self.domain_names),
            settings.max_stride,
        )
        return_features(network, decoder.stage)
        return {RESTORATION: decoder}

    def configure_optimizers(self, *stage: str) -> tuple[Optimizer, PolyLRScheduler]:
        """Give the encoder a group of its own if it learns at another rate."""
        optimizer, scheduler = super().configure_optimizers(*stage)
        if self.encoder_lr_factor != 1:
            network: Any = unwrap(self.network)
            give_own_rate(optimizer, network.encoder.parameters(), self.encoder_lr_factor)
        return optimizer, scheduler

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Leave out what changes styles if the settings say so."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if not self.settings.of(RAMDSIRSettings).style_augmentation:
            transforms.transforms = [
                each
                for each in transforms.transforms
                if not isinstance(getattr(each, "transform", each), STYLE_TRANSFORMS)
            ]
        return transforms

    def on_train_epoch_start(self) -> None:
        """Begin with counts of zero, and draw from the epoch's own seed."""
        super().on_train_epoch_start()
        if self.training_settings.seed is not None:
            self._generator.manual_seed(torch.initial_seed())
        self._mixed_images, self._images = 0, 0
        self._errors = torch.zeros(2, len(self.domain_names), device=self.device)

    # ---------------------------------------------------------------------------------- a step

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Losses:
        """Segment both views, compare them, and restore the image from the last."""
        settings = self.settings.of(RAMDSIRSettings)
        names = self.domain_names
        domains = [names.index(self.domains[key]) for key in keys]
        views = {ORIGINAL: data} if settings.original else {}
        if settings.view != "none":
            views[MIXED] = self._mix(data, domains)
        outputs = self.answers(self.network, list(views.values()))
        features: list[Tensor] = []
        if settings.restoration:
            outputs, features = map(list, zip(*outputs, strict=True))

        share = 1 / len(views) if self.averages_views else 1.0
        losses = {
            name: share * self.loss(output, target)
            for name, output in zip(views, outputs, strict=True)
        }
        if settings.consistency:
            first, second = (
                output if isinstance(output, Tensor) else output[0] for output in outputs
            )
            divergence = self._consistency(first, second, self._valid(target))
            losses[CONSISTENCY] = share * settings.consistency_weight * divergence
        if settings.restoration:
            error = self._restore(features[-1], data[:, : self.image_channels], domains)
            losses[RESTORATION] = share * settings.restoration_weight * error
        return losses

    def _mix(self, data: Tensor, domains: list[int]) -> Tensor:
        """Give the images of a batch (B, C, *S) other styles."""
        kinds = self.settings.of(RAMDSIRSettings).view.split("+")

        def change(images: Tensor) -> Tensor:
            mixed = images
            if "ram" in kinds:
                mixed = self._with_styles_of_others(mixed, domains)
            if "gin" in kinds:
                depth = self.training_settings.gin_depth
                mixed = gin(mixed, self._generator, depth=depth, in_plane=self.has_thick_slices)
            return self.with_background_of(images, mixed)

        return self.on_images(data, change)

    def _with_styles_of_others(self, images: Tensor, domains: list[int]) -> Tensor:
        """Mix images (B, C, *S) with styles of other domains, as far as the bank knows any."""
        settings = self.settings.of(RAMDSIRSettings)
        frequencies = low_frequencies(images, settings.band, slicewise=self.has_thick_slices)
        partners, found = self._bank.draw(frequencies.style, domains, self._generator)
        ratios = draw_ratios(len(images), self._generator, settings.max_ratio) * found
        self._bank.push(frequencies.style, domains)
        self._mixed_images += int((ratios > 0).sum())
        self._images += len(ratios)
        return mix(images, frequencies, partners, ratios, slicewise=self.has_thick_slices)

    def _valid(self, target: Any) -> Tensor | None:
        """Voxels (B, *S) outside the ignore label at full resolution, None without one."""
        if not self.label_manager.has_ignore_label:
            return None
        labels: Tensor = target if isinstance(target, Tensor) else target[0]
        if self.label_manager.has_regions:  # the last channel marks ignored voxels
            return ~labels[:, -1].bool()
        return labels[:, 0] != self.label_manager.ignore_label

    def _restore(self, features: Tensor, images: Tensor, domains: list[int]) -> Tensor:
        numbers = torch.tensor(domains, device=images.device)
        restored = self.auxiliary[RESTORATION](features, numbers, images.shape[2:])
        errors = self._restoration.per_image(restored, images)
        counted = torch.stack([errors.detach(), torch.ones_like(errors)])
        self._errors.index_add_(1, numbers, counted)
        return over_domains(errors, numbers)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record the share of mixed images and the restoration error of each domain."""
        super().on_train_epoch_end(train_outputs)
        counts = gather((self._mixed_images, self._images, self._errors.cpu()))
        if "ram" in self.settings.of(RAMDSIRSettings).view:
            mixed, images = (sum(rank[i] for rank in counts) for i in (0, 1))
            self.record("mixed_share", mixed / max(images, 1))
        if self.settings.of(RAMDSIRSettings).restoration:
            sums, numbers = torch.stack([rank[2] for rank in counts]).sum(0).tolist()
            for name, error, number in zip(self.domain_names, sums, numbers, strict=True):
                if number:
                    self.record(f"restoration_{name}", error / number)

    # ----------------------------------------------------------------------------- checkpoints

    def _accept(self, state: dict[str, Any], filename: str) -> None:
        super()._accept(state, filename)
        trained = state.get(DOMAINS_KEY, self.domain_names)
        if trained != self.domain_names:
            raise CheckpointError(
                f"{filename} was trained with the domains {', '.join(trained)}, but "
                f"dataset.json now has {', '.join(self.domain_names)}. Restore the former "
                "domains (nnunet-ext domains), or train from scratch."
            )

    def _continue_from(self, state: dict[str, Any]) -> None:
        super()._continue_from(state)
        self._bank.remember(state.get(STYLES_KEY, []), self.device)

    def _extension_state(self) -> dict[str, Any]:
        ours = {DOMAINS_KEY: self.domain_names, STYLES_KEY: self._bank.styles}
        return super()._extension_state() | ours
