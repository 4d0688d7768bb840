"""Runs the cells of a benchmark through submitit: here, on several GPUs, or on a Slurm cluster."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from filelock import Timeout

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark.job import RunCell, is_complete
from nnunet_ext.benchmark.layout import Cell, Layout, State
from nnunet_ext.benchmark.prepare import Prepared

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
    """Where and how fast a benchmark runs; none of it changes the result.

    Attributes:
        cluster: ``local``: processes on this machine; ``debug``: in this process, one after
            the other; ``slurm``: through sbatch.
        device: ``cpu``, ``cuda`` or ``mps``.
        jobs: Cells at the same time; default is one per GPU at hand, one without GPU, and
            all at once on a cluster.
        partition: Slurm partition.
        gpus: GPUs that a job asks Slurm for.
        cpus: Cores that a job asks Slurm for.
        memory_gb: Memory that a job asks Slurm for.
        hours: Time limit of a job on Slurm; a job that needs longer is continued by another.
        slurm_options: Any other options of sbatch, e.g. ``{"account": "imaging"}``.
    """

    cluster: Cluster = "local"
    device: str = "cuda"
    jobs: int | None = None
    partition: str | None = None
    gpus: int = 1
    cpus: int = 8
    memory_gb: float = 32
    hours: float = 24
    slurm_options: Mapping[str, str] = field(default_factory=dict)

    def slots(self, cells: int) -> list[str | None]:
        """One entry per cell that may run at the same time: its GPU, where that must be said.

        Args:
            cells: How many there are in all.
        """
        if self.cluster == "debug":
            return [None]
        if self.cluster == "slurm":
            return [None] * (self.jobs or cells)
        gpus: list[str | None] = list(gpus_at_hand()) if self.device == "cuda" else [None]
        count = self.jobs or len(gpus)
        return [gpus[i % len(gpus)] for i in range(count)]


def gpus_at_hand() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, only those that this process may use.

    Raises:
        UserError: If there is none.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise UserError("There is no CUDA device on this machine; try --device cpu.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


@dataclass
class Running:
    """A cell at work: submitit's job, or None if an earlier run of the benchmark started it."""

    cell: Cell
    job: Any
    slot: str | None
    takes_slot: bool = True


@dataclass
class Progress:
    """How far a benchmark is.

    Attributes:
        states: Cell -> what is known of it, in the order of running.
        running: Cells at work now.
        seconds_left: Estimated time to the end, None as long as nothing is known.
    """

    states: dict[Cell, State]
    running: list[Cell]
    seconds_left: float | None

    def with_status(self, *statuses: str) -> list[Cell]:
        """Cells of one of these statuses; what runs now counts as nothing else."""
        return [
            cell
            for cell, state in self.states.items()
            if state.status in statuses and cell not in self.running
        ]


@contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """Refuse to work in a folder where another run does.

    Raises:
        UserError: If one does.
    """
    lock = layout.lock
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"Another `nnunet-ext benchmark run` works in {layout.root}. Wait for it, stop it, or "
            "name another folder with --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Scheduler:
    """Gives cells to free slots until all are done or have failed.

    Args:
        layout: The benchmark's folder, prepared.
        prepared: What preparation has found out.
        execution: Where and how to run.
        show: Called with the progress, often.
    """

    def __init__(
        self,
        layout: Layout,
        prepared: Prepared,
        execution: Execution,
        show: Callable[[Progress], None],
    ) -> None:
        self.layout = layout
        self.execution = execution
        self.show = show
        self.cells = list(layout.cells(test=prepared.test_images is not None))
        self.states = {cell: layout.state(cell) for cell in self.cells}
        for cell, state in self.states.items():
            if state.status == "done" and not is_complete(layout, prepared, cell):
                state.status = "missing"
        self.free = execution.slots(len(self.cells))
        self.slots = len(self.free)
        self.running: list[Running] = []
        for cell, state in self.states.items():
            if layout.is_worked_on(cell):  # an earlier run was killed, but not its cells
                takes_slot = state.slot in self.free
                if takes_slot:
                    self.free.remove(state.slot)
                self.running.append(Running(cell, None, state.slot, takes_slot))
        self.attempted = {each.cell for each in self.running}

    def run(self) -> None:
        """Run everything that is not done; cells that failed earlier are tried again."""
        try:
            while True:
                self._collect_finished()
                self._start_cells()
                self.show(self.progress())
                if not self.running:
                    return
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._cancel()
            raise

    def progress(self) -> Progress:
        """How far the benchmark is now."""
        running = [each.cell for each in self.running]
        for cell in running:
            self.states[cell] = self.layout.state(cell)
        return Progress(self.states, running, self._seconds_left())

    # -------------------------------------------------------------------------------------- cells

    def _start_cells(self) -> None:
        for cell in self.cells:
            if cell not in self.attempted and self._is_due(cell) and self.free:
                slot = self.free.pop(0)
                self.running.append(Running(cell, self._submit(cell, slot), slot))
                self.attempted.add(cell)

    def _is_due(self, cell: Cell) -> bool:
        if self.states[cell].status == "done":
            return False
        for other in self.layout.needed_by(cell):
            if self.states[other].status == "failed" and self._has_been_run(other):
                self._fail(cell, f"It needs {other}, which failed.")
                return False
        return all(self.states[other].status == "done" for other in self.layout.needed_by(cell))

    def _has_been_run(self, cell: Cell) -> bool:
        return cell in self.attempted and all(each.cell != cell for each in self.running)

    def _submit(self, cell: Cell, slot: str | None) -> Any:
        call = RunCell(self.layout.root, cell, self.execution.device, slot)
        executor = make_executor(self.layout, self.execution, cell.name)
        return executor.submit(call)

    def _collect_finished(self) -> None:
        for each in list(self.running):
            if not self._has_ended(each):
                continue
            self.running.remove(each)
            if each.takes_slot:
                self.free.append(each.slot)
            if each.job is None:  # an earlier run's; continue it here if it is not done
                self.attempted.discard(each.cell)
            state = self.states[each.cell] = self.layout.state(each.cell)
            if each.job is not None and state.status not in ("done", "failed"):
                self._fail(each.cell, _last_words(each.job))

    def _has_ended(self, each: Running) -> bool:
        if each.job is None:
            return not self.layout.is_worked_on(each.cell)
        if self.execution.cluster == "debug":
            each.job.exception()  # runs it
        ended: bool = each.job.done()
        return ended

    def _fail(self, cell: Cell, reason: str) -> None:
        state = self.states[cell]
        state.status, state.reason = "failed", reason
        self.attempted.add(cell)
        try:
            self.layout.save(cell, state)
        except OSError as error:
            state.reason += f" (and this cannot be written down: {error.strerror})"

    def _cancel(self) -> None:
        jobs = [each.job for each in self.running if each.job is not None]
        if self.execution.cluster != "local":
            return  # a cluster's jobs go on
        for job in jobs:
            job.cancel()
        deadline = time.monotonic() + CANCEL_SECONDS
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)

    # ---------------------------------------------------------------------------------- time left

    def _seconds_left(self) -> float | None:
        known = {cell: s.seconds for cell, s in self.states.items() if s.status == "done"}
        if not known:
            return None
        left = 0.0
        for cell, state in self.states.items():
            if state.status == "done" or self._has_been_run(cell):
                continue
            alike = [
                seconds
                for other, seconds in known.items()
                if (other.arm, other.configuration, other.fold is None)
                == (cell.arm, cell.configuration, cell.fold is None)
            ]
            alike = alike or list(known.values())
            expected = sum(alike) / len(alike)
            left += max(0.0, expected * (1 - _share_done(state)))
        return left / min(self.slots, len(self.states))


def _share_done(state: State) -> float:
    return state.epoch / state.epochs if state.epochs else 0.0


def _last_words(job: Any) -> str:
    lines = (job.stderr() or "").strip().splitlines()
    said = "\n".join(lines[-OUTPUT_TAIL:]) or "it left no message"
    return f"The job ended before its work was done: {said}"


def make_executor(layout: Layout, execution: Execution, name: str) -> Any:
    """submitit's executor for one cell.

    Raises:
        UserError: If there is no Slurm on this machine, though it is asked for.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(
            folder=layout.jobs / "%j",
            cluster=execution.cluster,
            slurm_max_num_timeout=MOST_CONTINUATIONS,
        )
    except RuntimeError as error:
        raise UserError(f"Cannot use {execution.cluster}: {error}.") from None
    if execution.cluster == "slurm":
        executor.update_parameters(
            name=name,
            timeout_min=round(execution.hours * 60),
            mem_gb=execution.memory_gb,
            cpus_per_task=execution.cpus,
            gpus_per_node=execution.gpus if execution.device == "cuda" else 0,
            slurm_additional_parameters=dict(execution.slurm_options),
            **({"slurm_partition": execution.partition} if execution.partition else {}),
        )
    else:
        executor.update_parameters(timeout_min=NO_LIMIT_MINUTES)
    return executor
