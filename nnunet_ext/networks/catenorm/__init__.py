"""CateNorm: normalisation whose affine part depends on the class predicted at each position.

Paper: "CateNorm: Categorical Normalization for Robust Medical Image Segmentation",
arXiv 2103.15858 (first version: "DualNorm-UNet"), DART workshop at MICCAI 2022.
The paper's body was not available to us; the layer and the two passes follow the
behaviour of the authors' published implementation, which belongs to the first version.
"""

from nnunet_ext.networks.catenorm.layer import CateNorm
from nnunet_ext.networks.catenorm.network import CateNormUNet, Logits

__all__ = ["CateNorm", "CateNormUNet", "Logits"]
