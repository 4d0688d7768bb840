"""ConDSeg: the network and the parts that it adds to a planned U-Net."""

from nnunet_ext.networks.condseg.attention import ContrastDrivenFeatureAggregation
from nnunet_ext.networks.condseg.network import ConDSegNet
from nnunet_ext.networks.condseg.parts import SemanticInformationDecoupling, SizeAwareDecoder

__all__ = [
    "ConDSegNet",
    "ContrastDrivenFeatureAggregation",
    "SemanticInformationDecoupling",
    "SizeAwareDecoder",
]
