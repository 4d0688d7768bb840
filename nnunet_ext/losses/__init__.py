"""Losses: tensors in, scalars out, usable without nnU-Net's trainers."""

from nnunet_ext.losses.condseg import ConsistencyReinforcementLoss, SemanticDecouplingLoss
from nnunet_ext.losses.mind_the_gap import alignment_losses, critic_loss, translation_losses
from nnunet_ext.losses.ram_dsir import RestorationLoss, SymmetricKLConsistency
from nnunet_ext.losses.topk_sigma.compound import TopKSigmaCompoundLoss
from nnunet_ext.losses.topk_sigma.envelope import TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.noise import CaseRecord

__all__ = [
    "CaseRecord",
    "ConsistencyReinforcementLoss",
    "RestorationLoss",
    "SemanticDecouplingLoss",
    "SymmetricKLConsistency",
    "TopKSigmaCompoundLoss",
    "TopKSigmaLoss",
    "alignment_losses",
    "critic_loss",
    "translation_losses",
]
