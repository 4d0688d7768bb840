"""What is typed behind ``nnunet-ext benchmark``, and what is said when it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.benchmark import report, spec
from nnunet_ext.benchmark.layout import Layout
from nnunet_ext.benchmark.schedule import Execution
from nnunet_ext.nnunet import commands, decathlon
from tests.benchmark.synthetic_results import make_results
from tests.decathlon_server import make_task
from tests.tiny import DATASET

Cli = Callable[..., Any]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run would be started with; nothing is trained."""
    seen: dict[str, Any] = {}

    class Scheduler:
        def __init__(self, layout: Any, execution: Execution) -> None:
            seen.update(layout=layout, execution=execution)
            seen.setdefault("layouts", []).append(layout)

        def run(self, show: Any) -> None:
            if seen.get("interrupted"):
                raise KeyboardInterrupt

        def with_status(self, status: str) -> list[Any]:
            return []

    @contextmanager
    def shown(_: Any) -> Iterator[Any]:
        yield print

    for name in ("raw", "preprocessed"):
        (tmp_path / name / DATASET).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    nothing = lambda *_: None  # noqa: E731
    replaced = {"prepare": nothing, "_report": nothing, "summary": lambda _: ""}
    for name, value in {"Scheduler": Scheduler, "progress_shown": shown, **replaced}.items():
        monkeypatch.setattr(f"nnunet_ext.cli.benchmark.{name}", value)
    return seen


def test_lists_of_values_are_read_as_nnunets_commands_read_them(
    cli: Cli, started: dict[str, Any]
) -> None:
    outcome = cli(
        *("benchmark", "run", "777", "--trainers", "nnUNetTrainer", "CateNormTrainer"),
        *("--configurations", "2d", "3d_fullres", "--folds", "0", "1", "2", "--seeds", "2"),
        *("--plans", "CompactPlans", "--epochs", "5", "--set", "catenorm.reduction=4"),
        *("--baseline", "CateNormTrainer", "--device", "cpu"),
    )
    assert outcome.code == 0, outcome.err
    layout = started["layout"]
    assert layout.root.name == f"benchmark_{DATASET}"
    assert json.loads((layout.root / "benchmark.json").read_text()) == {
        "dataset": DATASET,
        "arms": {
            "nnUNetTrainer": {"trainer": "nnUNetTrainer"},
            "CateNormTrainer": {"trainer": "CateNormTrainer"},
        },
        "plans": "CompactPlans",
        "configurations": ["2d", "3d_fullres"],
        "folds": [0, 1, 2],
        "seeds": 2,
        "settings": {"num_epochs": 5, "catenorm": {"reduction": 4}},
        "baseline": "CateNormTrainer",
    }


def test_a_decathlon_task_is_fetched_and_converted_once(
    cli: Cli, started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(command: list[str], log: Path, variables: dict[str, str]) -> None:
        assert command[:2] == ["nnUNetv2_convert_MSD_dataset", "-i"]
        Path(variables["nnUNet_raw"], "Dataset004_Hippocampus").mkdir()  # fails if it is there

    task = make_task(tmp_path)
    monkeypatch.setattr(decathlon, "fetch_task", lambda *_, **__: task)
    monkeypatch.setattr(commands, "run_command", convert)
    for _ in range(2):
        outcome = cli(
            "benchmark", "run", "Task04_Hippocampus", "--trainers", "T", "--device", "cpu"
        )
        assert outcome.code == 0, outcome.err
    assert started["layout"].benchmark.dataset == "Dataset004_Hippocampus"


def test_data_sets_of_one_file_get_a_folder_each(
    cli: Cli, started: dict[str, Any], tmp_path: Path
) -> None:
    names = [DATASET, "Dataset778_Small"]
    content = {"datasets": names, "arms": {"T": {"trainer": "T"}}}
    Path("several.json").write_text(json.dumps(content))
    outcome = cli("benchmark", "run", "several.json", "--device", "cpu")
    assert outcome.code == 1
    assert 'no data set "Dataset778_Small"' in outcome.err
    assert not started  # before hours of training with the first
    (tmp_path / "raw" / names[1]).mkdir()
    for _ in range(2):
        outcome = cli("benchmark", "run", "several.json", "--device", "cpu")
        assert outcome.code == 0, outcome.err
    folder = tmp_path / "benchmark_several"
    assert [layout.root for layout in started["layouts"]] == [folder / name for name in names] * 2
    assert [layout.benchmark.dataset for layout in started["layouts"]] == names * 2
    assert json.loads((folder / "benchmark.json").read_text()) == content


def test_a_folder_and_a_file_can_be_run_again(
    cli: Cli, started: dict[str, Any], tmp_path: Path
) -> None:
    assert cli("benchmark", "run", "777", "--trainers", "T", "--out", "first").code == 0
    file = tmp_path / "first" / "benchmark.json"
    assert cli("benchmark", "run", "first", "--device", "cpu").code == 0
    assert cli("benchmark", "run", str(file), "--out", "second", "--device", "cpu").code == 0
    assert (tmp_path / "second" / "benchmark.json").read_text() == file.read_text()


def test_what_slurm_is_asked_for(cli: Cli, started: dict[str, Any]) -> None:
    outcome = cli(
        *("benchmark", "run", "777", "--trainers", "T", "--cluster", "slurm"),
        *("--partition", "gpu", "--hours", "12", "--memory", "48", "--gpus", "2", "--cpus", "4"),
        *("--slurm", "account=imaging", "qos=high", "--jobs", "6"),
    )
    assert outcome.code == 0, outcome.err
    asked = {
        "timeout_min": 12 * 60,
        "mem_gb": 48,
        "cpus_per_task": 4,
        "slurm_additional_parameters": {"account": "imaging", "qos": "high"},
        "slurm_partition": "gpu",
        "gpus_per_node": 2,
    }
    assert started["execution"] == Execution("slurm", "cuda", 6, asked)


def test_an_interruption_says_how_to_go_on(cli: Cli, started: dict[str, Any]) -> None:
    started["interrupted"] = True
    outcome = cli("benchmark", "run", "777", "--trainers", "T", "--device", "cpu")
    assert outcome.code == 130
    assert "Run the same command again" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["777"], "--trainers nnUNetTrainer CateNormTrainer"),
        (["778", "--trainers", "T"], 'no data set "778"'),
        (["Dataset777_Tyni", "--trainers", "T"], f"Did you mean {DATASET}"),
        (["777", "--trainers", "T", "--baseline", "B"], "none of the trainers"),
        (["777", "--trainers", "T", "--cluster", "pbs"], "must be one of local, slurm, debug"),
        (["777", "--trainers", "T", "--slurm", "account"], "expected KEY=VALUE"),
        (["777", "--trainers", "T", "--set", "num_epochs"], "expected KEY=VALUE"),
        (["777", "--trainers", "T", "--set", "seed=3"], "must not hold a seed"),
        (["777", "--trainers", "T", "--set", "num_epochs=0"], "num_epochs"),
        (["777", "--trainers", "A b", "A-b"], "would share a folder"),
        (["missing.json"], "Cannot read missing.json"),
        (["missing.json", "--trainers", "T"], "--trainers would contradict it"),
        (["missing.json", "--epochs", "3"], "--epochs or --set would contradict it"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_started(
    cli: Cli, started: dict[str, Any], arguments: list[str], message: str
) -> None:
    outcome = cli("benchmark", "run", *arguments, "--device", "cpu")
    assert outcome.code == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not started


def test_a_report_of_no_benchmark_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_ext.cli.benchmark.write_report", None)
    outcome = cli("benchmark", "report", str(tmp_path))
    assert outcome.code == 1
    assert "holds neither a benchmark that has begun" in outcome.err


def test_a_record_becomes_a_page_again(cli: Cli, tmp_path: Path) -> None:
    report.write_report(make_results(tmp_path, cases=3), tmp_path / "record")
    for page in (tmp_path / "record").glob("*.html"):
        page.unlink()
    outcome = cli("benchmark", "report", str(tmp_path / "record"), "--out", str(tmp_path / "page"))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "page" / "index.html").exists()
    scores = [(tmp_path / name / "scores.csv").read_text() for name in ("record", "page")]
    assert scores[0] == scores[1]
    outcome = cli("benchmark", "report", str(tmp_path / "record"), "--baseline", "nobody")
    assert outcome.code == 1
    assert '"nobody" is not an arm of ' in outcome.err


def test_data_sets_of_one_file_get_one_report(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["Dataset777_Tiny", "Dataset778_Small"]
    several = {"datasets": names, "arms": {"T": {"trainer": "T"}}}
    spec.claim(tmp_path / "several", spec.from_content(several, "test"))
    written: list[Any] = []

    def collected(layout: Layout) -> Any:
        found = make_results(layout.root, cases=2)
        return replace(found, title=layout.root.name)

    def write(results: Any, folder: Path, root: Path) -> Path:
        written.extend(results)
        assert (folder, root) == (tmp_path / "several" / "report", tmp_path / "several")
        return folder / "index.html"

    monkeypatch.setattr("nnunet_ext.benchmark.collect.collect", collected)
    monkeypatch.setattr("nnunet_ext.cli.benchmark.write_report", write)
    for count, name in enumerate(names, start=1):
        (tmp_path / "several" / name).mkdir()
        (tmp_path / "several" / name / "prepared.json").touch()
        written.clear()
        outcome = cli("benchmark", "report", str(tmp_path / "several"))
        assert outcome.code == 0, outcome.err
        assert [each.title for each in written] == names[:count]
        assert written[-1].scores["summary"].str.startswith(f"{name}/").all()
        assert written[-1].cells["log"].str.startswith(f"{name}/").all()
