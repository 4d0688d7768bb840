"""The only place that changes or starts nnU-Net: look-up, commands, folders, image readers.

Empty on purpose: :mod:`nnunet_ext.nnunet.discovery` is imported at every interpreter start.
"""
