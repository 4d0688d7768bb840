"""Top-k / bottom-all-but-sigma: the envelope, nnU-Net's compound loss in it, wrong labels."""

from nnunet_ext.losses.topk_sigma.compound import TopKSigmaCompoundLoss
from nnunet_ext.losses.topk_sigma.envelope import TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.noise import CaseRecord

__all__ = ["CaseRecord", "TopKSigmaCompoundLoss", "TopKSigmaLoss"]
