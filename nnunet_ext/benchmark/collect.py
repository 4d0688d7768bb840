"""Gathers what the cells of a benchmark have left behind into tables."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_csv
from nnunet_ext.benchmark import results as records
from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.layout import Cell, Layout, State, layouts
from nnunet_ext.benchmark.prepare import Prepared, read_prepared
from nnunet_ext.benchmark.results import (
    ALL_FOLDS,
    CLEAN,
    COLUMNS,
    SEEDED,
    SEEN,
    TEST,
    UNSEEN,
    Results,
)
from nnunet_ext.evaluation.metrics import MEASURES
from nnunet_ext.evaluation.scoring import SUMMARY, measure_case, read_summary
from nnunet_ext.nnunet.datasets import DATASET_JSON, label_names

METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.csv"
BENCHMARK_FOLDER = "$BENCHMARK"
"""Stands for the benchmark's folder in commands."""


def measure_evaluation(evaluation: Path, layout: Layout) -> pd.DataFrame:
    """Measure all cases of an evaluation, once; later calls read what the first one wrote.

    Returns:
        Columns case, label, dice (nnU-Net's own), nsd, hd95, assd, empty, truth, prediction.
    """
    summary, target = evaluation / SUMMARY, evaluation / METRICS_FILE
    cases = read_summary(summary)
    if target.exists() and target.stat().st_mtime >= summary.stat().st_mtime:
        return _read_metrics(target)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # needs torch

    plans = PlansManager(str(layout.dataset / f"{layout.benchmark.plans}.json"))
    dataset_json = read_json(layout.dataset / DATASET_JSON)
    ignore = plans.get_label_manager(dataset_json).ignore_label
    how = (plans.image_reader_writer_class(), ignore, dataset_json["file_ending"])
    rows = [row for case in cases for row in measure_case(case, evaluation, *how)]
    write_csv(pd.DataFrame(rows), target)
    return _read_metrics(target)


def _read_metrics(path: Path) -> pd.DataFrame:
    text = dict.fromkeys(("case", "label", "empty", "truth", "prediction"), str)
    missing = dict.fromkeys(MEASURES, "")
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=missing)


def gather(folder: Path, baseline: str | None = None) -> list[Results]:
    """Results of a benchmark, whatever is finished, or of the record of one, by data set."""
    # a record may hold settings that there are no more
    is_record = (folder / records.FRAMES["scores"]).exists()
    parts = layouts(folder) if (folder / spec.FILE_NAME).exists() and not is_record else []
    begun = [layout for layout in parts if layout.prepared.exists()]
    results = [*map(collect, begun)] or records.read(folder)
    for each, layout in zip(results, begun, strict=False):
        if layout.root != folder:  # paths below the folder of all
            for table, column in ((each.scores, "summary"), (each.cells, "log")):
                table[column] = f"{layout.root.name}/" + table[column]
    for each in results:
        if baseline and baseline not in each.arms:
            raise UserError(
                f'--baseline "{baseline}" is not an arm of {each.title}. There are: '
                f"{', '.join(each.arms)}."
            )
    return [replace(each, baseline=baseline or each.baseline) for each in results]


def collect(layout: Layout) -> Results:
    """Gather everything that a report shows, whatever is finished."""
    benchmark = layout.benchmark
    prepared = read_prepared(layout)
    dataset_json = read_json(layout.dataset / DATASET_JSON)
    problems: list[str] = []
    parts: dict[str, list[pd.DataFrame]] = {"scores": [], "curves": [], "cells": []}
    commands: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for cell in layout.cells(test=prepared.test_images is not None):
        keys = {**asdict(cell), "fold": ALL_FOLDS if cell.fold is None else str(cell.fold)}
        state = layout.state(cell)
        found = found or state.circumstances
        commands[str(cell)] = [_portable(command, layout) for command in state.commands]
        row = _cell_row(layout, cell, state) | {"command": next(iter(commands[str(cell)]), "")}
        path = layout.folder(cell) / CURVES_FILE
        if state.status == "done" and path.exists():
            curve = pd.read_csv(path)
            parts["curves"].append(curve.assign(**keys))
            row |= {"epochs": len(curve), "seconds_per_epoch": curve["seconds"].median()}
        parts["cells"].append(pd.DataFrame([keys | row]))
        trainer = prepared.trainings[cell.arm].trainer
        evaluations = layout.evaluations(cell, trainer) if state.status == "done" else {}
        for name, folder in evaluations.items():
            if name == TEST and prepared.test_labels is None:
                continue
            try:
                scores = _scores(layout, prepared, dataset_json, cell, name, folder)
                parts["scores"].append(scores.assign(**keys))
            except UserError as error:
                problems.append(str(error))
    frames = {
        # an empty frame among others would make objects of their numbers
        name: pd.concat(tables or [pd.DataFrame(columns=list(COLUMNS[name]))], ignore_index=True)
        for name, tables in parts.items()
    }
    return Results(
        title=benchmark.dataset,
        description=benchmark.description,
        baseline=benchmark.baseline_arm,
        arms={arm: _arm_facts(layout, prepared, arm) for arm in benchmark.arms},
        labels=label_names(dataset_json),
        **{name: frame.reindex(columns=list(COLUMNS[name])) for name, frame in frames.items()},
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
        margin=benchmark.margin,
    )


def _portable(text: str, layout: Layout) -> str:
    """Name folders as they are called, not where they lie on this machine."""
    text = text.replace(str(layout.root), BENCHMARK_FOLDER)
    raw = os.environ.get("nnUNet_raw", "").rstrip("/")
    return text.replace(raw, "$nnUNet_raw") if raw else text


def _scores(
    layout: Layout,
    prepared: Prepared,
    dataset_json: dict[str, Any],
    cell: Cell,
    evaluation: str,
    folder: Path,
) -> pd.DataFrame:
    table = measure_evaluation(folder, layout)
    source = Path(str(prepared.test_images))
    if cell.fold is not None:
        source = layout.degraded / evaluation / f"fold_{cell.fold}"
    clean = {case: files[0] for case, files in prepared.images.items()}
    domains = table["case"].map(lambda case: dataset_json.get("domains", {}).get(case, ""))
    trained = None if cell.fold is None else prepared.domains.get(cell.fold)
    known = bool(trained) & (domains != "")
    return table.assign(
        evaluation=evaluation,
        domain=domains,
        seen=domains.isin(trained or ()).map({True: SEEN, False: UNSEEN}).where(known, ""),
        subject=table["case"].map(layout.benchmark.subject_of),
        summary=str((folder / SUMMARY).relative_to(layout.root)),
        image=table["case"].map(lambda case: clean.get(case, ""))
        if evaluation == CLEAN
        else f"{source}/" + table["case"] + f"_0000{prepared.file_ending}",
    )


def _cell_row(layout: Layout, cell: Cell, state: State) -> dict[str, Any]:
    stopped = state.status == "running" and not layout.is_worked_on(cell)
    return {
        "status": "missing" if stopped else state.status,
        "reason": _portable(state.reason, layout),
        "seconds": state.seconds,
        "epochs": state.epoch,
        "peak_memory_mib": state.peak_memory_mib,
        "memory_kind": state.memory_kind,
        "log": str(layout.log(cell).relative_to(layout.root)),
    }


def _arm_facts(layout: Layout, prepared: Prepared, arm: str) -> dict[str, Any]:
    benchmark, training = layout.benchmark, prepared.trainings[arm]
    asked = benchmark.arms[arm]
    facts = {
        "trainer": training.trainer,
        "instead of": asked.trainer if training.trainer != asked.trainer else "",
        "plans": benchmark.plans_of(arm),
        "settings": benchmark.settings_of(arm),
        "weights of": asked.weights_of,
        "seeds": SEEDED if training.seeded else "repetitions: this trainer takes no seed",
        "description": asked.description,
    }
    return {name: fact for name, fact in facts.items() if fact or name == "settings"}
