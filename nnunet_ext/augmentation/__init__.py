"""Operations on images: tensors in, tensors out, on any device, usable without nnU-Net."""

from nnunet_ext.augmentation.appearance import strong_view

__all__ = ["strong_view"]
