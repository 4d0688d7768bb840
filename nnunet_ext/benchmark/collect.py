"""Gathers what the cells of a benchmark have left behind into tables."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, replacing
from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.layout import Cell, Layout, State
from nnunet_ext.benchmark.prepare import Prepared, read_prepared
from nnunet_ext.benchmark.results import CLEAN, SEEN, TEST, UNSEEN, Results
from nnunet_ext.evaluation.metrics import MEASURES
from nnunet_ext.evaluation.scoring import measure_case, read_summary
from nnunet_ext.nnunet.datasets import label_names

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.csv"
BENCHMARK_FOLDER = "$BENCHMARK"
"""Stands for the benchmark's folder in commands."""
CELL_COLUMNS = ("configuration", "arm", "fold", "seed")
SCORE_COLUMNS = (
    *(*CELL_COLUMNS, "evaluation", "case", "domain", "seen", "subject", "label", *MEASURES),
    *("empty", "summary", "image", "truth", "prediction"),
)
CURVE_COLUMNS = (*CELL_COLUMNS, "epoch", "train_loss", "val_loss", "pseudo_dice", "seconds")


def measure_evaluation(evaluation: Path, layout: Layout) -> "pd.DataFrame":
    """Measure all cases of an evaluation, once; later calls read what the first one wrote.

    Args:
        evaluation: Folder with predictions and nnU-Net's ``summary.json``.
        layout: The benchmark's folder, prepared.

    Returns:
        Columns case, label, dice (nnU-Net's own), nsd, hd95, assd, empty, truth, prediction.

    Raises:
        UserError: If ``summary.json`` is damaged, or images cannot be read or do not match.
    """
    summary, target = evaluation / "summary.json", evaluation / METRICS_FILE
    cases = read_summary(summary)
    if target.exists() and target.stat().st_mtime >= summary.stat().st_mtime:
        return _read_metrics(target)
    how = _reader(layout)
    rows = [row for case in cases for row in measure_case(case, evaluation, *how)]
    with replacing(target) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    return _read_metrics(target)


def _read_metrics(path: Path) -> "pd.DataFrame":
    text = {"case": str, "label": str, "empty": str, "truth": str, "prediction": str}
    missing = dict.fromkeys(MEASURES, "")
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)


def _reader(layout: Layout) -> tuple["BaseReaderWriter", int | None, str]:
    """How to read labels: nnU-Net's reader, the ignore label, the ending of files."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(layout.dataset / f"{layout.benchmark.plans}.json"))
    dataset_json = read_json(layout.dataset / "dataset.json")
    ignore: int | None = plans.get_label_manager(dataset_json).ignore_label
    return plans.image_reader_writer_class(), ignore, dataset_json["file_ending"]


def collect(layout: Layout, baseline: str | None = None) -> Results:
    """Gather everything that a report shows, whatever is finished.

    Args:
        layout: The benchmark's folder.
        baseline: Arm to compare with; default is the benchmark's.

    Raises:
        UserError: If the folder holds no prepared benchmark, or no arm of that name.
    """
    benchmark = layout.benchmark
    baseline = baseline or benchmark.baseline_arm
    if baseline not in benchmark.arms:
        raise UserError(f'"{baseline}" is no arm; there are: {", ".join(benchmark.arms)}.')
    prepared = read_prepared(layout)
    dataset_json = read_json(layout.dataset / "dataset.json")
    problems: list[str] = []
    scores, curves, cells, commands = [], [], [], {}
    found: dict[str, Any] = {}
    for cell in layout.cells(test=prepared.test_images is not None):
        state = layout.state(cell)
        found = found or state.circumstances
        cells.append(_cell_row(layout, cell, state))
        commands[str(cell)] = [_portable(command, layout) for command in state.commands]
        if state.status != "done":
            continue
        trainer = prepared.trainings[cell.arm].trainer
        for name, folder in layout.evaluations(cell, trainer).items():
            if name == TEST and prepared.test_labels is None:
                continue
            try:
                scores.append(_scores(layout, prepared, dataset_json, cell, name, folder))
            except UserError as error:
                problems.append(str(error))
        path = layout.folder(cell) / CURVES_FILE
        if path.exists():
            curve = pd.read_csv(path)
            curves.append(_with_cell(curve, cell))
            cells[-1]["epochs"] = len(curve)
            cells[-1]["seconds_per_epoch"] = curve["seconds"].median()
    return Results(
        title=benchmark.dataset,
        description=benchmark.description,
        baseline=baseline,
        arms={arm: _arm_facts(layout, prepared, arm) for arm in benchmark.arms},
        labels=label_names(dataset_json),
        scores=_table(scores, SCORE_COLUMNS),
        curves=_table(curves, CURVE_COLUMNS),
        cells=pd.DataFrame(cells),
        environment=found,
        reproduction={
            "benchmark.json": json.loads(spec.as_json(benchmark)),
            "environment of the commands": {
                "nnUNet_preprocessed": f"{BENCHMARK_FOLDER}/{layout.preprocessed.name}",
                "nnUNet_results": f"{BENCHMARK_FOLDER}/{layout.results.name}",
            },
            "commands": commands,
            "held-out cases of each fold": prepared.folds,
            "noisy training labels": prepared.noisy,
        },
        problems=problems,
    )


def _table(parts: "list[pd.DataFrame]", columns: tuple[str, ...]) -> "pd.DataFrame":
    if not parts:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(parts, ignore_index=True)[list(columns)]


def _with_cell(table: "pd.DataFrame", cell: Cell) -> "pd.DataFrame":
    return table.assign(
        configuration=cell.configuration,
        arm=cell.arm,
        fold=_fold(cell),
        seed=cell.seed,
    )


def _portable(text: str, layout: Layout) -> str:
    """Name folders as they are called, not where they lie on this machine."""
    folders = {str(layout.root): BENCHMARK_FOLDER}
    if raw := os.environ.get("nnUNet_raw"):
        folders[raw.rstrip("/")] = "$nnUNet_raw"
    for path, name in folders.items():
        text = text.replace(path, name)
    return text


def _fold(cell: Cell) -> str:
    return "all" if cell.fold is None else str(cell.fold)


def without_images(results: Results) -> Results:
    """The same without anything that shows or locates images, for data that must not be spread."""
    columns = ["image", "truth", "prediction"]
    return replace(results, scores=results.scores.assign(**dict.fromkeys(columns, "")))


def _scores(
    layout: Layout,
    prepared: Prepared,
    dataset_json: dict[str, Any],
    cell: Cell,
    evaluation: str,
    folder: Path,
) -> "pd.DataFrame":
    table = measure_evaluation(folder, layout)
    domains = dataset_json.get("domains", {})
    if evaluation == CLEAN:
        images = {case: files[0] for case, files in prepared.images.items()}
    else:
        source = (
            Path(str(prepared.test_images))
            if cell.fold is None
            else layout.degraded / evaluation / f"fold_{cell.fold}"
        )
        images = {
            case: str(source / f"{case}_0000{prepared.file_ending}") for case in table["case"]
        }
    domain = [str(domains.get(case, "")) for case in table["case"]]
    trained = None if cell.fold is None else prepared.domains.get(cell.fold)
    return _with_cell(table, cell).assign(
        evaluation=evaluation,
        domain=domain,
        seen=[_seen(name, trained) for name in domain],
        subject=[layout.benchmark.subject_of(case) for case in table["case"]],
        summary=str((folder / "summary.json").relative_to(layout.root)),
        image=[images.get(case, "") for case in table["case"]],
    )


def _seen(domain: str, trained: list[str] | None) -> str:
    if not (domain and trained):
        return ""
    return SEEN if domain in trained else UNSEEN


def _cell_row(layout: Layout, cell: Cell, state: State) -> dict[str, Any]:
    status = state.status
    if status == "running" and not layout.is_worked_on(cell):
        status = "missing"
    return {
        "configuration": cell.configuration,
        "arm": cell.arm,
        "fold": _fold(cell),
        "seed": cell.seed,
        "status": status,
        "reason": _portable(state.reason, layout),
        "seconds": state.seconds,
        "epochs": state.epoch,
        "seconds_per_epoch": float("nan"),
        "peak_memory_mib": state.peak_memory_mib,
        "memory_kind": state.memory_kind,
        "command": _portable(state.commands[0], layout) if state.commands else "",
        "log": str(layout.log(cell).relative_to(layout.root)),
    }


def _arm_facts(layout: Layout, prepared: Prepared, arm: str) -> dict[str, Any]:
    benchmark, training = layout.benchmark, prepared.trainings[arm]
    asked = benchmark.arms[arm]
    facts: dict[str, Any] = {"trainer": training.trainer}
    if training.trainer != asked.trainer:
        facts["instead of"] = asked.trainer
    facts["plans"] = benchmark.plans_of(arm)
    facts["settings"] = benchmark.settings_of(arm)
    if asked.weights_of:
        facts["weights of"] = asked.weights_of
    facts["seeds"] = "seeded" if training.seeded else "repetitions: this trainer takes no seed"
    if asked.description:
        facts["description"] = asked.description
    return facts
