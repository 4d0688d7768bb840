"""Losses: tensors in, scalars out, usable without nnU-Net's trainers."""

from nnunet_ext.losses.adversarial import alignment_losses, critic_loss
from nnunet_ext.losses.consistency import SymmetricKLConsistency
from nnunet_ext.losses.decoupling import SemanticDecouplingLoss
from nnunet_ext.losses.noise_share import NoiseEstimator
from nnunet_ext.losses.reinforcement import ConsistencyReinforcementLoss
from nnunet_ext.losses.restoration import RestorationLoss
from nnunet_ext.losses.topk_sigma import TopKSigmaLoss
from nnunet_ext.losses.topk_sigma_compound import TopKSigmaCompoundLoss
from nnunet_ext.losses.translation import TranslationLoss

__all__ = [
    "ConsistencyReinforcementLoss",
    "NoiseEstimator",
    "RestorationLoss",
    "SemanticDecouplingLoss",
    "SymmetricKLConsistency",
    "TopKSigmaCompoundLoss",
    "TopKSigmaLoss",
    "TranslationLoss",
    "alignment_losses",
    "critic_loss",
]
