"""Reading files with errors that help, and writing them so that nobody ever finds half of one."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nnunet_ext._common.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PARTIAL = ".partial"
"""Ending of folders with files that are being written."""

_READ = 1 << 20
"""Bytes of each part of a long file that its fingerprint is taken of."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path of the same name to write to; it takes the place of ``path``.

    Whatever goes wrong before that leaves ``path`` as it was.
    """
    path = Path(path)
    # a folder, so that the file keeps its ending, by which many writers choose the format,
    # without being taken for data where this process is killed
    with TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL, ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder, path.name)
        try:
            yield partial
        except OSError as error:
            if error.filename is None:  # as where the disk is full
                error.filename = str(path)
            raise
        os.replace(partial, path)


def clear_partial(path: Path) -> None:
    """Remove what killed processes have left of :func:`replacing` ``path``, or all in a folder.

    Only for whoever is alone in writing there.

    Args:
        path: What was to be replaced; ``folder / "*"`` means everything in a folder.
    """
    for left in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in words which folder must be writable where this block may not write to it.

    Raises:
        UserError: In place of what tells that access is denied or the file system read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"Cannot write into {folder}: {error.strerror}. Make the folder writable until these "
            "files have been written."
        ) from error


@contextmanager
def one_at_a_time(lock: Path, log: Callable[[str], object] = print) -> Iterator[None]:
    """Let one process at a time into the block; the others wait, and say so.

    ``lock`` is a file, which stays where it is.
    """
    from filelock import FileLock, Timeout  # takes a tenth of a second, which few need

    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        log(f"Another process is at work in {lock.parent}; waiting for it.")
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """Refuse to enter the block while another process is in it.

    ``lock`` is a file, which stays where it is. Where the file system has no locks, all may enter.

    Raises:
        UserError: With the words of the refusal.
    """
    from filelock import FileLock, Timeout

    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{refusal} Two would overwrite each other's files: wait for it or stop it."
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        file_lock.release()


def fingerprint(path: Path) -> str:
    """Digest of a file's size and content, the same for a copy of it.

    Of long files only beginning, middle and end are read. That is where formats of compressed
    images show any change: a checksum or a table of lengths stands at the end.
    """
    size = path.stat().st_size
    starts = range(0, size, _READ) if size <= 3 * _READ else (0, size // 2, size - _READ)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(_READ))
    return digest.hexdigest()[:16]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If it cannot be read or is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: If it cannot be read, is not valid JSON or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it is never seen half-written."""
    write_jsons({path: content})


def write_jsons(contents: Mapping[Path, Any]) -> None:
    """Write several JSON files; none takes its place before all have been written."""
    with ExitStack() as stack:
        for path, content in contents.items():
            partial = stack.enter_context(replacing(path))
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            if path.exists():
                shutil.copymode(path, partial)


def write_csv(frame: "pd.DataFrame", path: Path, float_format: str | None = None) -> None:
    """Write a frame of pandas' as CSV, whole or not at all; numbers exactly unless formatted."""
    with replacing(path) as partial:
        frame.to_csv(partial, index=False, lineterminator="\n", float_format=float_format)
