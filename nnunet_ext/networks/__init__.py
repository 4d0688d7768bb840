"""Networks and layers: plain nn.Modules, tensors in, tensors out, usable without nnU-Net."""

from nnunet_ext.networks.catenorm import CateNorm, CateNormUNet
from nnunet_ext.networks.condseg.attention import ContrastDrivenFeatureAggregation
from nnunet_ext.networks.condseg.network import ConDSegNet
from nnunet_ext.networks.condseg.parts import SemanticInformationDecoupling, SizeAwareDecoder
from nnunet_ext.networks.mind_the_gap.critics import FeatureCritic, OutputCritic, frozen
from nnunet_ext.networks.mind_the_gap.masked import LocallyMaskedUNet
from nnunet_ext.networks.mind_the_gap.translator import DomainDiscriminator, Translator
from nnunet_ext.networks.ram_dsir import RestorationDecoder

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
