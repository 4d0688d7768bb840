"""Networks and layers: plain nn.Modules, tensors in, tensors out, usable without nnU-Net."""

from nnunet_ext.networks.catenorm import CateNorm, CateNormUNet
from nnunet_ext.networks.condseg import ConDSegNet
from nnunet_ext.networks.condseg_parts import SemanticInformationDecoupling, SizeAwareDecoder
from nnunet_ext.networks.contrast_attention import ContrastDrivenFeatureAggregation

__all__ = [
    "CateNorm",
    "CateNormUNet",
    "ConDSegNet",
    "ContrastDrivenFeatureAggregation",
    "SemanticInformationDecoupling",
    "SizeAwareDecoder",
]
