"""Writing files so that nobody ever finds half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path of the same name to write to; it takes the place of ``path``.

    Whatever goes wrong before that leaves ``path`` as it was.
    """
    path = Path(path)
    # a folder, so that the file keeps its ending, by which many writers choose the format,
    # without being taken for data where this process is killed
    with TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", suffix=".partial", ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder, path.name)
        yield partial
        os.replace(partial, path)
