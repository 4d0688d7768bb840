"""Networks and layers: plain nn.Modules, tensors in, tensors out, usable without nnU-Net."""

from nnunet_ext.networks.catenorm import CateNorm, CateNormUNet
from nnunet_ext.networks.condseg import ConDSegNet
from nnunet_ext.networks.condseg_parts import SemanticInformationDecoupling, SizeAwareDecoder
from nnunet_ext.networks.contrast_attention import ContrastDrivenFeatureAggregation
from nnunet_ext.networks.critics import FeatureCritic, OutputCritic
from nnunet_ext.networks.freezing import frozen
from nnunet_ext.networks.locally_masked import LocallyMaskedUNet
from nnunet_ext.networks.restoration import RestorationDecoder
from nnunet_ext.networks.translator import DomainDiscriminator, Translator

__all__ = [
    "CateNorm",
    "CateNormUNet",
    "ConDSegNet",
    "ContrastDrivenFeatureAggregation",
    "DomainDiscriminator",
    "FeatureCritic",
    "LocallyMaskedUNet",
    "OutputCritic",
    "RestorationDecoder",
    "SemanticInformationDecoupling",
    "SizeAwareDecoder",
    "Translator",
    "frozen",
]
