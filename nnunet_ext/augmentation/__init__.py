"""Operations on images: tensors in, tensors out, on any device, usable without nnU-Net."""

from nnunet_ext.augmentation.amplitude_mixup import amplitude_mixup
from nnunet_ext.augmentation.condseg import strong_view
from nnunet_ext.augmentation.gin import gin
from nnunet_ext.augmentation.prior import disturbed

__all__ = ["amplitude_mixup", "disturbed", "gin", "strong_view"]
