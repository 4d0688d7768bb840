"""The same work on many cases, in several processes."""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_ext._common.errors import UserError

Result = TypeVar("Result")


def for_each(
    work: Callable[..., Result], tasks: Mapping[str, tuple[Any, ...]], processes: int, doing: str
) -> dict[str, Result]:
    """Do the same work for every case, in this process if one is enough.

    Args:
        work: A function that other processes can import.
        tasks: Case -> arguments.
        processes: How many may work at a time.
        doing: Heading of the progress bar, which terminals show.

    Returns:
        Case -> what its work returned.

    Raises:
        UserError: If a process was killed.
        Exception: Whatever the work of the first case that fails has raised; cases that no
            process has begun are left out.
    """
    bar = tqdm(total=len(tasks), desc=doing, unit="case", leave=False, disable=None)
    processes = min(processes, len(tasks))
    results = {}
    with bar:
        if processes < 2:
            for case, arguments in tasks.items():
                results[case] = work(*arguments)
                bar.update()
            return results
        executor = ProcessPoolExecutor(processes, get_context("spawn"))
        try:
            futures = {case: executor.submit(work, *args) for case, args in tasks.items()}
            for case, future in futures.items():
                results[case] = future.result()
                bar.update()
        except BrokenProcessPool as error:
            raise UserError(
                f"{doing}: a process was killed, probably because memory ran out. Use fewer "
                "processes, for example: export nnUNet_def_n_proc=1"
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)
    return results
