"""Five published segmentation methods inside nnU-Net v2's own commands.

Importing this package is cheap on purpose (no torch, no nnunetv2): the start-up
file in site-packages imports it at every interpreter start to reach
:mod:`nnunet_ext.nnunet.discovery`.
"""

__version__ = "0.1.0"
