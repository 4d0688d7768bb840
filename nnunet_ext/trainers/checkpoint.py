"""Reading and writing checkpoint files without losing anything."""

import errno
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_ext._common.errors import CheckpointError
from nnunet_ext._common.files import replacing

EXTENSION_KEY = "nnunet_ext"
"""Key of a checkpoint under which everything stands that stock nnU-Net does not know."""


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged or no checkpoint at all.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # damaged bytes can raise anything while they are unpickled
        raise CheckpointError(_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of an nnU-Net trainer.")
    return checkpoint


def _unreadable(path: str | Path, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), repr(error)).rstrip(".")
    message = f"Cannot read the checkpoint {path}: {reason}."
    if isinstance(error, OSError):
        return message
    if isinstance(error, ImportError | AttributeError):
        return f"{message} It needs code that is not installed here, or the file is damaged."
    return (
        f"{message} It has {Path(path).stat().st_size} bytes and was probably cut off while being "
        "copied or written. Delete it or replace it by a copy of another checkpoint of this fold "
        "(checkpoint_best.pth, checkpoint_latest.pth), then continue with --c."
    )


def write(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint; an interruption leaves the previous file as it was.

    Raises:
        CheckpointError: If the disk is full, or what may be used of it.
    """
    # torch, which would write the file by itself, tells nothing of why it cannot
    content = io.BytesIO()
    torch.save(checkpoint, content)
    try:
        with replacing(path) as partial:
            partial.write_bytes(content.getbuffer())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(Path(path).parent).free
        kept = "The previous one is kept" if Path(path).exists() else "There is no previous one"
        raise CheckpointError(
            f"Cannot write the checkpoint {path}: {error.strerror}. It needs "
            f"{content.tell() / 1e6:.1f} MB, and {free / 1e6:.1f} MB of the disk are free, unless "
            f"a quota allows less. {kept}; make room, then continue with --c."
        ) from error


def refuse_other_settings(
    stored: Mapping[str, Mapping[str, Any]],
    current: Mapping[str, Mapping[str, Any]],
    path: str | Path,
) -> None:
    """Refuse to continue with method settings other than those of the checkpoint.

    Only settings that both know are compared: one that a later version adds must not make
    older checkpoints useless.

    Args:
        stored: Method -> settings, as written in the checkpoint.
        current: Method -> settings in force that decide what is learned.

    Raises:
        CheckpointError: Naming every setting that differs.
    """
    differences = [
        f"{method}.{key} was {stored[method][key]!r}, now {value!r}"
        for method, settings in current.items()
        for key, value in settings.items()
        if stored.get(method, {}).get(key, value) != value
    ]
    if differences:
        raise CheckpointError(
            f"{path} was made with other settings: {'; '.join(differences)}. Restore them in the "
            "plans, or train a configuration of another name (nnunet-ext configure)."
        )
