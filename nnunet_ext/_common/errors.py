"""Errors that a user can mend; their message names the culprit and the cure."""


class UserError(Exception):
    """A mistake in input, settings or environment, explained in one message.

    The ``nnunet-ext`` command prints only the message; nnU-Net's commands show it as the
    last line of a traceback.
    """


class SettingsError(UserError, ValueError):
    """A value under ``nnunet_ext`` in a plans file is unknown, mistyped or out of range."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read, or was made with other settings."""


class NonFiniteLossError(UserError, FloatingPointError):
    """A part of the loss became NaN or infinite during training."""


class UnknownNameError(UserError, RuntimeError):
    """Neither nnU-Net nor this package has a class of the name that was asked for."""
