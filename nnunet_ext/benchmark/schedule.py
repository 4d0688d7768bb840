"""Runs the cells of a benchmark through submitit: here, on several GPUs, or on a Slurm cluster."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import submitit
from filelock import FileLock, Timeout
from submitit.helpers import Checkpointable

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import cell as cells
from nnunet_ext.benchmark.layout import Cell, Layout, Status
from nnunet_ext.benchmark.prepare import read_prepared
from nnunet_ext.nnunet import commands

Cluster = Literal["local", "debug", "slurm"]

POLL_SECONDS = 1.0
NO_LIMIT_MINUTES = 60 * 24 * 365
"""submitit's local executor ends jobs after two minutes unless told otherwise."""
MOST_CONTINUATIONS = 1000
"""submitit gives up after three time limits unless told otherwise."""
CANCEL_SECONDS = 20
OUTPUT_TAIL = 3
"""Lines shown of a job that ended without a word."""


@dataclass(frozen=True)
class Execution:
    """Where and how fast a benchmark runs; none of it changes the result."""

    cluster: Cluster = "local"  # "debug": in this process, one cell after the other
    device: str = "cuda"  # cpu, cuda or mps
    jobs: int | None = None  # cells at a time; None: one per GPU, on a cluster all at once
    slurm: Mapping[str, Any] = field(default_factory=dict)  # options, as submitit names them

    def slots(self, number: int) -> list[str | None]:
        """One entry per cell, of so many, that may run at a time: its GPU where need be."""
        if self.cluster == "debug":
            return [None]
        if self.cluster == "slurm":
            return [None] * (self.jobs or number)
        gpus: list[str | None] = [None]
        if self.device == "cuda":
            import torch

            # as CUDA_VISIBLE_DEVICES names them, only those that this process may use
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            count = torch.cuda.device_count()
            gpus = [*(visible.split(",") if visible else map(str, range(count)))][:count]
        if not gpus:
            raise UserError("There is no CUDA device on this machine; try --device cpu.")
        return [gpus[i % len(gpus)] for i in range(self.jobs or len(gpus))]


@dataclass(frozen=True)
class RunCell(Checkpointable):
    """A cell as submitit runs it, and begins it again where a cluster's time limit has ended it."""

    root: Path
    name: str
    device: str
    gpu: str | None = None

    def __call__(self) -> None:
        """Do what the cell lacks."""
        cells.work(self.root, self.name, self.device, self.gpu)


def make_executor(layout: Layout, execution: Execution, name: str) -> Any:
    """submitit's executor for one cell."""
    try:
        executor = submitit.AutoExecutor(
            folder=layout.root / "jobs" / "%j",
            cluster=execution.cluster,
            slurm_max_num_timeout=MOST_CONTINUATIONS,
        )
    except RuntimeError as error:
        raise UserError(f"Cannot use {execution.cluster}: {error}.") from None
    if execution.cluster == "slurm":
        executor.update_parameters(name=name, **execution.slurm)
    else:
        executor.update_parameters(timeout_min=NO_LIMIT_MINUTES)
    return executor


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Refuse to work in a folder where another run does."""
    try:
        with FileLock(root / ".lock").acquire(timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"Another `nnunet-ext benchmark run` works in {root}. Wait for it, stop it, or name "
            "another folder with --out."
        ) from None


class Scheduler:
    """Gives the cells of a prepared benchmark to free slots until all are done or have failed.

    Attributes:
        states: Cell -> what is known of it, in the order of running.
        jobs: Cell at work -> submitit's job, or None if an earlier run has started it.
    """

    def __init__(self, layout: Layout, execution: Execution) -> None:
        self.layout, self.execution = layout, execution
        prepared = read_prepared(layout)
        test = prepared.test_images is not None
        self.states = {cell: layout.state(cell) for cell in layout.cells(test)}
        self.jobs: dict[Cell, Any] = {}
        self._tried: set[Cell] = set()
        self._free = execution.slots(len(self.states))
        self._slots = len(self._free)
        self._taken: dict[Cell, str | None] = {}
        for cell, state in self.states.items():
            if state.status == "done" and not cells.is_complete(layout, prepared, cell):
                state.status = "missing"
            if layout.is_worked_on(cell):  # an earlier run was killed, but not its cells
                self.jobs[cell] = None
                if state.gpu in self._free:
                    self._free.remove(state.gpu)
                    self._taken[cell] = state.gpu

    def run(self, show: "Callable[[Scheduler], object]") -> None:
        """Run everything that is not done, also what failed earlier, and show it often."""
        try:
            while True:
                for cell in list(self.jobs):
                    self._look_at(cell)
                for cell in self.states:
                    if self._is_due(cell):
                        self._start(cell)
                show(self)
                if not self.jobs:
                    return
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._cancel()
            raise

    def status(self, cell: Cell) -> Status:
        """Whether a cell is at work, done, has failed or waits (``missing``)."""
        status = self.states[cell].status
        return "running" if cell in self.jobs else "missing" if status == "running" else status

    def with_status(self, status: Status) -> list[Cell]:
        """Cells of one status."""
        return [cell for cell in self.states if self.status(cell) == status]

    def seconds_left(self) -> float | None:
        """Estimated time to the end, None as long as nothing is known."""
        done = self.with_status("done")
        left = 0.0
        for cell, state in self.states.items():
            if cell in done or (cell in self._tried and cell not in self.jobs):
                continue
            alike = [o for o in done if (o.arm, o.fold is None) == (cell.arm, cell.fold is None)]
            if not done:
                return None
            share = state.epoch / state.epochs if state.epochs else 0.0
            seconds = fmean(self.states[other].seconds for other in alike or done)
            left += seconds * max(0.0, 1 - share)
        return left / min(self._slots, len(self.states))

    # -------------------------------------------------------------------------------------- cells

    def _is_due(self, cell: Cell) -> bool:
        if not self._free or cell in self._tried or self.status(cell) in ("done", "running"):
            return False
        needed = self.layout.needed_by(cell)
        for other in needed:
            if other in self._tried and self.status(other) == "failed":
                self._fail(cell, f"It needs {other}, which failed.")
                return False
        return all(self.status(other) == "done" for other in needed)

    def _start(self, cell: Cell) -> None:
        gpu = self._taken[cell] = self._free.pop(0)
        call = RunCell(self.layout.root, cell.name, self.execution.device, gpu)
        executor = make_executor(self.layout, self.execution, cell.name)
        # Ctrl-C at the terminal is for this process alone, which then ends its jobs in order
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.jobs[cell] = executor.submit(call)
        finally:
            signal.signal(signal.SIGINT, before)
        self._tried.add(cell)

    def _look_at(self, cell: Cell) -> None:
        """See how far a cell at work is, and whether its work has ended."""
        job = self.jobs[cell]
        if job is None:
            ended = not self.layout.is_worked_on(cell)
        else:
            if self.execution.cluster == "debug":
                job.exception()  # runs it
            ended = job.done()
        state = self.states[cell] = self.layout.state(cell)
        state.epoch = commands.epochs_begun(self.layout.log(cell)) or state.epoch
        if not ended:
            return
        del self.jobs[cell]  # an earlier run's is continued here if it is not done
        if cell in self._taken:
            self._free.append(self._taken.pop(cell))
        if job is not None and state.status not in ("done", "failed"):
            lines = (job.stderr() or "").strip().splitlines()
            said = "\n".join(lines[-OUTPUT_TAIL:]) or "it left no message"
            self._fail(cell, f"The job ended before its work was done: {said}")

    def _fail(self, cell: Cell, reason: str) -> None:
        state = self.states[cell]
        state.status, state.reason = "failed", reason
        self._tried.add(cell)
        with suppress(OSError):  # of a full disk, which must not end the others
            self.layout.save(cell, state)

    def _cancel(self) -> None:
        if self.execution.cluster != "local":
            return  # a cluster's jobs go on
        jobs = [job for job in self.jobs.values() if job is not None and not job.done()]
        for job in jobs:  # submitit's own cancel() would leave a cell only a second
            os.kill(int(job.job_id), signal.SIGTERM)
        deadline = time.monotonic() + CANCEL_SECONDS
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)
