"""Which case comes from where: assignment, folds, sampling, validation, joined data sets.

A domain is a scanner, a site, a protocol. ``dataset.json`` names the domain of each training
case under ``"domains"``; nnU-Net ignores the key and carries it along.
"""
