"""Networks and layers: plain nn.Modules, tensors in, tensors out, usable without nnU-Net."""

from nnunet_ext.networks.catenorm import CateNorm, CateNormUNet
from nnunet_ext.networks.restoration import RestorationDecoder

__all__ = ["CateNorm", "CateNormUNet", "RestorationDecoder"]
