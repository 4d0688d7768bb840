"""Metrics and statistics, for validation, benchmark and ``nnunet-ext evaluate``."""
