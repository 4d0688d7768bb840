"""``nnunet-ext demo`` refuses what it cannot do before it does anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "x", "--task", "Task02_Heart"], "exclude each other"),
        (["--task", "Task02_Heart", "--cases", "9"], "--cases is for synthetic data"),
        (["--task", "Hart"], "There is no Decathlon task"),
        (["--trainer", "CateNormTrianer"], "Did you mean CateNormTrainer"),
        (["--trainer", "nnUNetTrainer", "--epochs", "5", "--iterations", "3"], "250 batches"),
        (["--device", "tpu"], "one of cpu, cuda, mps"),
        (["--data", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_impossible_wishes_are_explained_and_nothing_is_written(
    cli: Cli, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "out"
    outcome = cli("demo", "--out", str(out), *options)
    assert outcome.code == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not out.exists()


def test_folder_that_is_no_decathlon_task_is_told_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("demo", "--data", str(tmp_path))
    assert outcome.code == 1
    for part in ("dataset.json is missing", "imagesTr is missing", "labelsTr is missing"):
        assert part in outcome.err
