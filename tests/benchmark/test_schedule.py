"""Cells go to free slots through submitit; failures do not stop the others."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import schedule
from nnunet_ext.benchmark.arms import Training
from nnunet_ext.benchmark.layout import Cell, Layout, State
from nnunet_ext.benchmark.schedule import Execution, RunCell, Scheduler, make_executor, only_one
from nnunet_ext.nnunet.commands import termination_interrupts

MakeLayout = Callable[..., Layout]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.02)


class InProcess:
    """Runs cells at once and remembers their order; named cells fail or end without a word."""

    def __init__(self, layout: Layout, failing: str = "", dying: str = "") -> None:
        self.layout, self.failing, self.dying = layout, failing, dying
        self.order: list[Cell] = []

    def submit(self, call: RunCell) -> Any:
        (cell,) = (cell for cell in self.layout.cells(test=True) if cell.name == call.name)
        self.order.append(cell)
        if cell.arm != self.dying:
            failed = cell.arm == self.failing
            state = State("failed", "no luck") if failed else State("done", seconds=2.0)
            self.layout.save(cell, state)
        return _Ended()


class _Ended:
    def done(self) -> bool:
        return True

    def stderr(self) -> str:
        return "Traceback\nkilled by the system"


def schedule_all(
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    show: Callable[[Scheduler], None] = lambda scheduler: None,
    **how: str,
) -> tuple[InProcess, Scheduler]:
    executor = InProcess(layout, **how)
    monkeypatch.setattr(schedule, "make_executor", lambda *_: executor)
    monkeypatch.setattr(schedule.cells, "is_complete", lambda *_: True)
    scheduler = Scheduler(layout, Execution(device="cpu"))
    scheduler.run(show)
    return executor, scheduler


def test_everything_is_run_once_and_in_order(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(seeds=2, test=True)
    executor, shown = schedule_all(layout, monkeypatch)
    assert sorted(map(str, executor.order)) == sorted(map(str, layout.cells(test=True)))
    for cell in executor.order:
        place = executor.order.index(cell)
        assert all(executor.order.index(other) < place for other in layout.needed_by(cell))
    assert len(shown.with_status("done")) == 12
    again, _ = schedule_all(layout, monkeypatch)
    assert again.order == []


def test_a_failed_cell_stops_only_those_that_need_it(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(test=True)
    _, shown = schedule_all(layout, monkeypatch, failing="CateNorm")
    reasons = {
        str(cell): state.reason for cell, state in shown.states.items() if state.status == "failed"
    }
    assert reasons == {
        "CateNorm, tiny_base, seed 0, fold 0": "no luck",
        "CateNorm, tiny_base, seed 0, test set": "It needs CateNorm, tiny_base, seed 0, fold 0, "
        "which failed.",
        "first pass, tiny_base, seed 0, fold 0": "It needs CateNorm, tiny_base, seed 0, fold 0, "
        "which failed.",
        "first pass, tiny_base, seed 0, test set": "It needs first pass, tiny_base, seed 0, fold 0,"
        " which failed.",
    }
    assert {cell.arm for cell in shown.with_status("done")} == {"stock"}
    again, shown = schedule_all(layout, monkeypatch)
    assert len(again.order) == 4  # what failed is tried again
    assert len(shown.with_status("done")) == 6


def test_a_job_that_ends_without_a_word_has_failed(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shown = schedule_all(make_layout(), monkeypatch, dying="stock")
    (failed,) = shown.with_status("failed")
    assert "killed by the system" in shown.states[failed].reason


def test_a_cell_that_an_earlier_run_left_running_is_waited_for(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout()
    cell = next(layout.cells(test=False))

    lock = layout.cell_lock(cell)
    lock.acquire()
    at_work: list[list[Cell]] = []

    def finish_after_a_while(scheduler: Scheduler) -> None:
        at_work.append(list(scheduler.jobs))
        assert len(scheduler.jobs) <= 1  # it takes the only slot
        if len(at_work) == 3:
            layout.save(cell, State("done"))
            lock.release()

    executor, shown = schedule_all(layout, monkeypatch, show=finish_after_a_while)
    assert at_work[0] == [cell]
    assert cell not in executor.order
    assert len(shown.with_status("done")) == 3


def test_time_left_is_estimated_from_cells_alike(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(seeds=3)
    monkeypatch.setattr(schedule.cells, "is_complete", lambda *_: True)
    seconds = {"stock": 10.0, "CateNorm": 30.0, "first pass": 2.0}
    for cell in layout.cells(test=False):
        if cell.seed == 0:
            layout.save(cell, State("done", seconds=seconds[cell.arm]))
    half = Cell("stock", "tiny_base", 1, 0)
    layout.save(half, State("missing", epoch=1, epochs=2))
    scheduler = Scheduler(layout, Execution(device="cpu"))
    assert scheduler.seconds_left() == pytest.approx(5 + 10 + 2 * 30 + 2 * 2)


def test_two_runs_in_one_folder_are_refused(make_layout: MakeLayout) -> None:
    layout = make_layout()
    with only_one(layout.root), pytest.raises(UserError, match="Another"), only_one(layout.root):
        pass
    with only_one(layout.root):
        pass


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submitit_runs_cells_and_their_failures_are_written_down(
    make_layout: MakeLayout, cluster: Any
) -> None:
    arms = {"stock": {"trainer": "Nonsense"}}
    layout = make_layout(
        {"stock": Training("Nonsense", problem="There is no Nonsense.")}, arms=arms
    )
    shown = Scheduler(layout, Execution(cluster, "cpu"))
    shown.run(lambda scheduler: None)
    (cell,) = shown.with_status("failed")
    assert layout.state(cell).reason == "There is no Nonsense."


def test_slots_are_the_gpus_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Execution().slots(9) == ["0", "1"]
    assert Execution(jobs=3).slots(9) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert Execution().slots(9) == ["5", "7"]
    assert Execution(device="cpu").slots(9) == [None]
    assert Execution("slurm").slots(9) == [None] * 9
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--device cpu"):
        Execution().slots(9)


SBATCH = """#!/bin/sh
cp "$1" "{kept}"
echo "Submitted batch job 17"
"""


def test_slurm_gets_a_script_with_what_was_asked_for(
    make_layout: MakeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.sh"
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH.format(kept=kept))
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IEXEC)
    for name in ("srun", "sacct"):
        (sbatch.parent / name).symlink_to(sbatch)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    layout = make_layout()
    asked = {
        "slurm_partition": "gpu",
        "gpus_per_node": 2,
        "cpus_per_task": 6,
        "mem_gb": 40,
        "timeout_min": 90,
        "slurm_additional_parameters": {"account": "imaging"},
    }
    execution = Execution("slurm", slurm=asked)
    cell = next(layout.cells(test=False))
    job = make_executor(layout, execution, cell.name).submit(
        RunCell(layout.root, cell.name, "cuda")
    )
    assert job.job_id == "17"
    script = kept.read_text()
    for line in (
        f"#SBATCH --job-name={cell.name}",
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --mem=40GB",
        "#SBATCH --time=90",
        "#SBATCH --account=imaging",
    ):
        assert line in script
    assert "submitit.core._submit" in script


def test_without_slurm_asking_for_it_is_explained(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="slurm"):
        make_executor(make_layout(), Execution("slurm"), "name")


class Sleeper(RunCell):
    """Works for long, and says how it was ended."""

    def __call__(self) -> None:
        with termination_interrupts():
            try:
                (self.root / "begun").touch()
                time.sleep(60)
            except KeyboardInterrupt:
                time.sleep(1.5)  # longer than submitit's own cancel() would wait
                (self.root / "ended").touch()


def test_an_interruption_ends_local_jobs_in_order_and_without_a_word(
    make_layout: MakeLayout, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schedule, "RunCell", Sleeper)
    layout = make_layout()

    def interrupt(scheduler: Scheduler) -> None:
        if (layout.root / "begun").exists():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        Scheduler(layout, Execution(device="cpu")).run(interrupt)
    assert (layout.root / "ended").exists()
    assert capfd.readouterr().err == ""
