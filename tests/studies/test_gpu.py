"""The study for a GPU runs to its end without one."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from studies import gpu, summarise


def run(part: int, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--device", "cpu", "--tiny", "--record", str(record)]
    monkeypatch.setattr(sys, "argv", ["gpu", "--part", str(part), *options])
    gpu.main()


def test_a_part_runs_to_its_end_and_is_shown_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "gpu.json"
    run(4, record, monkeypatch)
    assert "Part 4 is done." in capsys.readouterr().out
    content = json.loads(record.read_text())
    assert {"date", "processor", "python", "versions"} <= content.keys()
    (step_a,) = content["gpu_parts"].values()
    assert all(row["images per second"] > 0 for row in step_a.values())
    assert all(f"`{name}`" in summarise.gpu_parts(content) for name in step_a)


@pytest.mark.slow
def test_parts_run_to_their_end_and_are_shown_in_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "gpu.json"
    for part in range(1, 6):
        run(part, record, monkeypatch)
        assert f"Part {part} is done." in capsys.readouterr().out
    content = json.loads(record.read_text())
    assert list(content["gpu_parts"]) == [str(part) for part in range(1, 6)]
    trains, _, held, step_a, marked = content["gpu_parts"].values()
    assert all(row["finite"] for row in trains.values())
    assert all(row["first loss"] == row["on the CPU"] for row in trains.values())
    assert all(0.9 < row["simulated over allocated"] < 1.1 for row in held.values())
    assert all(row["images per second"] > 0 for row in step_a.values())
    assert marked["tests marked gpu"]["exit code"] == 0
    text = summarise.gpu_parts(content)
    for rows in content["gpu_parts"].values():
        assert all(f"`{name}`" in text for name in rows)


@pytest.mark.slow
def test_trainings_to_a_score_run_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(6, tmp_path / "gpu.json", monkeypatch)
    (scores,) = json.loads((tmp_path / "gpu.json").read_text())["gpu_parts"].values()
    assert all(0 <= row["Dice"] <= 1 for row in scores.values())


def test_a_part_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "gpu.json"
    begun: list[str] = []

    def find_out(name: str) -> dict[str, Any]:
        begun.append(name)
        return {}

    def jobs(_study: gpu.Study, _part: int) -> list[gpu.Job]:
        return [(name, partial(find_out, name)) for name in "abc"]

    monkeypatch.setattr(gpu.Study, "jobs", jobs)
    monkeypatch.setattr(gpu, "BUDGET", -1.0)
    run(1, record, monkeypatch)
    assert "run this part again" in capsys.readouterr().out
    assert begun == []
    record.write_text(json.dumps({"gpu_parts": {"1": {"a": {}}}}))
    monkeypatch.setattr(gpu, "BUDGET", 100.0)
    run(1, record, monkeypatch)
    assert begun == ["b", "c"]
