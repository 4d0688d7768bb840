"""Losses: tensors in, scalars out, usable without nnU-Net's trainers."""

from nnunet_ext.losses.decoupling import SemanticDecouplingLoss
from nnunet_ext.losses.noise_share import NoiseEstimator
from nnunet_ext.losses.reinforcement import ConsistencyReinforcementLoss
from nnunet_ext.losses.topk_sigma import TopKSigmaLoss
from nnunet_ext.losses.topk_sigma_compound import TopKSigmaCompoundLoss

__all__ = [
    "ConsistencyReinforcementLoss",
    "NoiseEstimator",
    "SemanticDecouplingLoss",
    "TopKSigmaCompoundLoss",
    "TopKSigmaLoss",
]
