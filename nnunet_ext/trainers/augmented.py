"""Augmentation that the plans choose: nnU-Net's own, its strong one, and GIN on the device."""

from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)
from torch import Tensor

from nnunet_ext.augmentation import gin
from nnunet_ext.settings import TrainingSettings


class AugmentedTrainer(nnUNetTrainer):
    """Trains with the ``augmentation`` that the settings of training name."""

    training_settings: TrainingSettings

    @property
    def image_channels(self) -> int:
        """Input channels that are images; a cascade's others are segmentations."""
        return len(self.configuration_manager.normalization_schemes)

    @property
    def has_thick_slices(self) -> bool:
        """Whether patches are so anisotropic that nnU-Net, too, augments them slice by slice."""
        patch_size = self.configuration_manager.patch_size
        return len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISO_THRESHOLD

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """Take what nnU-Net's DA5 does if the settings say so."""
        configured: tuple[Any, ...] = (
            nnUNetTrainerDA5.configure_rotation_dummyDA_mirroring_and_inital_patch_size(self)
            if self._augments("strong")
            else super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        return configured

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Take those of nnU-Net's DA5 if the settings say so."""
        if self._augments("strong"):
            return nnUNetTrainerDA5.get_training_transforms(*args, **kwargs)
        return super().get_training_transforms(*args, **kwargs)

    def _augments(self, kind: str) -> bool:
        return kind in self.training_settings.augmentation.split("+")

    def augmented(self, data: Tensor) -> Tensor:
        """Change the contrasts of a batch of images (B, C, *S) on the device, if asked for."""
        if not self._augments("gin"):
            return data
        settings = self.training_settings

        def change(images: Tensor) -> Tensor:
            mixed = gin(
                images,
                depth=settings.gin_depth,
                in_plane=self.has_thick_slices,
                probability=settings.gin_probability,
            )
            return self.with_background_of(images, mixed)

        return self.on_images(data, change)

    def on_images(self, data: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change the images of a batch (B, C, *S), and leave alone what a cascade puts behind."""
        images, others = data.tensor_split([self.image_channels], dim=1)
        return torch.cat([change(images), others], dim=1)

    def with_background_of(self, images: Tensor, changed: Tensor) -> Tensor:
        """Put back the zeros that nnU-Net has set outside the mask of masked normalisation."""
        masked = self.configuration_manager.use_mask_for_norm
        if not any(masked):
            return changed
        shape = (1, -1, *[1] * (images.ndim - 2))
        background = torch.tensor(masked, device=images.device).view(shape) & (images == 0)
        return changed.masked_fill(background, 0)
