"""Mind the Gap: the masked U-Net, its critics, and the translator of Step A."""

from nnunet_ext.networks.mind_the_gap.critics import FeatureCritic, OutputCritic, frozen
from nnunet_ext.networks.mind_the_gap.masked import LocallyMaskedUNet
from nnunet_ext.networks.mind_the_gap.translator import DomainDiscriminator, Translator

__all__ = [
    "DomainDiscriminator",
    "FeatureCritic",
    "LocallyMaskedUNet",
    "OutputCritic",
    "Translator",
    "frozen",
]
