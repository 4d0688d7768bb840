"""Results of benchmarks that never ran: plausible numbers, tiny images, the same every time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813
from skimage.io import imsave

from nnunet_ext.benchmark.results import CLEAN, Results

ARMS = ("nnU-Net", "CateNorm", "Compact network")
LABELS = {"1": "anterior", "2": "posterior"}
EPOCHS = 30
SHIFTS = (0, 1, 3)
"""Predictions are the truth, moved by so many pixels."""


def make_results(
    folder: Path,
    *,
    arms: Sequence[str] = ARMS,
    labels: dict[str, str] | None = None,
    configurations: Sequence[str] = ("3d_fullres",),
    folds: int = 2,
    seeds: int = 2,
    cases: int = 24,
    cases_per_subject: int = 1,
    domains: Sequence[str] = (),
    unseen: str = "",
    degradations: Sequence[str] = (),
    test_cases: int = 0,
    photographs: bool = False,
    images: bool = True,
) -> Results:
    """Make the results of a benchmark whose first arm is the baseline.

    Args:
        folder: Where images go.
        arms: Names.
        labels: Key -> name.
        configurations: Names.
        folds: How many; each holds out its share of the cases.
        seeds: How many.
        cases: How many are held out, all folds together.
        cases_per_subject: More than one groups them.
        domains: Names that cases take by turns.
        unseen: The domain that was not trained on; the others count as seen.
        degradations: Names.
        test_cases: How many the test set has.
        photographs: Whether images are coloured PNGs instead of volumes.
        images: Whether there are any.
    """
    labels = LABELS if labels is None else labels
    random = np.random.default_rng(0)
    evaluations = {CLEAN: cases, **dict.fromkeys(degradations, cases)}
    if test_cases:
        evaluations["test"] = test_cases
    difficulty = {e: random.normal(0, 0.05, (n, len(labels))) for e, n in evaluations.items()}
    rows: list[dict[str, Any]] = []
    for c, configuration in enumerate(configurations):
        for a, arm in enumerate(arms):
            for seed in range(seeds):
                luck = random.normal(0, 0.004)
                for e, (evaluation, count) in enumerate(evaluations.items()):
                    loss = 0.0 if evaluation in (CLEAN, "test") else 0.06 * e
                    for i in range(count):
                        case = f"{'test' if evaluation == 'test' else 'case'}_{i:03d}"
                        hard = difficulty[CLEAN if loss else evaluation][i % count]
                        noise = random.normal(0, 0.012, len(labels))
                        dice = 0.86 + 0.008 * a - 0.03 * c - loss * (1 - 0.1 * a) + luck
                        dices = np.clip(dice + hard + noise, 0, 0.99)
                        domain = domains[i % len(domains)] if domains else ""
                        if domains and i % len(domains) == len(domains) - 1:
                            dices = np.clip(dices - 0.12 + 0.03 * a, 0, 0.99)
                        files = _files(folder, case, float(dices.mean()), photographs)
                        fold = "all" if evaluation == "test" else str(i % folds)
                        for (label, _), value in zip(labels.items(), dices, strict=True):
                            rows.append(
                                {
                                    "configuration": configuration,
                                    "arm": arm,
                                    "fold": fold,
                                    "seed": seed,
                                    "evaluation": evaluation,
                                    "case": case,
                                    "domain": domain,
                                    "seen": (
                                        ("unseen" if domain == unseen else "seen") if unseen else ""
                                    ),
                                    "subject": f"subject_{i // cases_per_subject:03d}"
                                    if cases_per_subject > 1
                                    else case,
                                    "label": label,
                                    "dice": value,
                                    "nsd": min(1.0, value + 0.08),
                                    "hd95": 12 * (1 - value) + 0.5,
                                    "assd": 4 * (1 - value),
                                    "empty": "",
                                    "summary": f"results/{configuration}/{a}/fold_{fold}/"
                                    f"seed {seed}/{evaluation}/summary.json",
                                }
                                | files
                            )
    if images:
        for case in sorted({row["case"] for row in rows}):
            _write_case(folder, case, photographs)
    cells = [
        (configuration, arm, str(fold), seed)
        for configuration in configurations
        for arm in arms
        for fold in range(folds)
        for seed in range(seeds)
    ]
    return Results(
        title="Dataset999_Synthetic",
        description="Made up, to see the report.",
        baseline=arms[0],
        arms={
            arm: {
                "trainer": "nnUNetTrainer" if i == 0 else f"Trainer{i}",
                "plans": "nnUNetPlans",
                "settings": {"num_epochs": EPOCHS, "strength": i / 10},
                "description": "stock" if i == 0 else f"change number {i}",
                "seeds": "seeded" if i else "repetitions: this trainer takes no seed",
            }
            for i, arm in enumerate(arms)
        },
        labels=labels,
        scores=pd.DataFrame(rows),
        curves=_curves(cells, arms, random),
        cells=_cells(cells, arms, random),
        environment={
            "date": "2026-02-03",
            "nnunet_ext": "0.1.0",
            "versions": {"nnunetv2": "2.8.1", "torch": "2.9.0"},
            "hardware": {"GPU": "none", "CPU": "2 cores", "RAM": "24 GiB"},
        },
        reproduction={
            "benchmark.json": {"dataset": "Dataset999_Synthetic", "folds": [0, 1], "seeds": seeds},
            "commands": {"cell 0": ["nnUNetv2_train 999 3d_fullres 0", "nnUNetv2_predict -i x"]},
            "held-out cases of each fold": {0: ["case_000"], 1: ["case_001"]},
        },
        problems=[],
    )


def without(results: Results, **values: object) -> Results:
    """Leave out the scores, curves and finished cells that have these values."""
    frames = {}
    for name in ("scores", "curves"):
        frame = getattr(results, name)
        gone = np.logical_and.reduce([frame[key] == value for key, value in values.items()])
        frames[name] = frame[~gone].reset_index(drop=True)
    cells = results.cells.copy()
    gone = np.logical_and.reduce([cells[key] == value for key, value in values.items()])
    cells.loc[gone, "status"] = "failed"
    cells.loc[gone, "reason"] = "CUDA out of memory"
    cells.loc[gone, ["seconds", "epochs", "seconds_per_epoch", "peak_memory_mib"]] = np.nan
    return replace(results, **frames, cells=cells)


def unscored(results: Results) -> Results:
    """The same before anything has finished."""
    cells = results.cells.assign(status="missing", reason="")
    for column in ("seconds", "epochs", "seconds_per_epoch", "peak_memory_mib"):
        cells[column] = np.nan
    return replace(
        results, scores=results.scores.iloc[:0], curves=results.curves.iloc[:0], cells=cells
    )


def _files(folder: Path, case: str, dice: float, photographs: bool) -> dict[str, str]:
    ending = "png" if photographs else "nii.gz"
    shift = SHIFTS[0] if dice > 0.9 else SHIFTS[1] if dice > 0.8 else SHIFTS[2]
    names = {"image": f"{case}_0000", "truth": case, "prediction": f"{case}_moved{shift}"}
    return {kind: str(folder / "images" / f"{name}.{ending}") for kind, name in names.items()}


def _write_case(folder: Path, case: str, photographs: bool) -> None:
    (folder / "images").mkdir(exist_ok=True)
    random = np.random.default_rng(int(case[-3:]))
    shape = (1, 96, 110) if photographs else (12, 48, 40)
    z, y, x = np.indices(shape)
    centre = [size / 2 + random.uniform(-3, 3) for size in shape]
    extent = (1e9, 16, 18) if photographs else (4, 11, 8)
    places = zip((z, y, x), centre, extent, strict=True)
    distance = sum(((grid - middle) / size) ** 2 for grid, middle, size in places)
    truth = np.where(distance < 1, np.where(y < centre[1], 1, 2), 0).astype(np.uint8)
    image = 60 + 80 * np.exp(-distance) + random.normal(0, 6, shape)
    volumes = {f"{case}_0000": image, case: truth}
    volumes |= {f"{case}_moved{shift}": np.roll(truth, shift, axis=2) for shift in SHIFTS}
    for name, voxels in volumes.items():
        file = folder / "images" / f"{name}.{'png' if photographs else 'nii.gz'}"
        if photographs:
            pixels = np.clip(voxels[0], 0, 255).astype(np.uint8)
            if name.endswith("_0000"):
                pixels = np.stack([pixels, pixels // 2, pixels // 3], axis=-1)
            imsave(file, pixels, check_contrast=False)
            continue
        written = sitk.GetImageFromArray(voxels.astype(np.float32) if voxels is image else voxels)
        written.SetSpacing((1.0, 1.0, 3.0))
        sitk.WriteImage(written, str(file))


def _curves(
    cells: list[tuple[str, str, str, int]], arms: Sequence[str], random: np.random.Generator
) -> pd.DataFrame:
    epoch = np.arange(EPOCHS)
    frames = []
    for configuration, arm, fold, seed in cells:
        falling = np.exp(-epoch / (8 + arms.index(arm)))
        frames.append(
            pd.DataFrame(
                {
                    "configuration": configuration,
                    "arm": arm,
                    "fold": fold,
                    "seed": seed,
                    "epoch": epoch,
                    "train_loss": -0.85 + 0.8 * falling + random.normal(0, 0.01, EPOCHS),
                    "val_loss": -0.8 + 0.75 * falling + random.normal(0, 0.02, EPOCHS),
                    "pseudo_dice": 0.87 * (1 - falling) + random.normal(0, 0.01, EPOCHS),
                    "seconds": random.uniform(10, 11, EPOCHS) * (1 + arms.index(arm)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _cells(
    cells: list[tuple[str, str, str, int]], arms: Sequence[str], random: np.random.Generator
) -> pd.DataFrame:
    rows = []
    for configuration, arm, fold, seed in cells:
        each = (10 + random.uniform(0, 1)) * (1 + arms.index(arm))
        rows.append(
            {
                "configuration": configuration,
                "arm": arm,
                "fold": fold,
                "seed": seed,
                "status": "done",
                "reason": "",
                "seconds": each * EPOCHS + 60,
                "epochs": EPOCHS,
                "seconds_per_epoch": each,
                "peak_memory_mib": 2000.0 + 500 * arms.index(arm),
                "memory_kind": "GPU",
                "command": f"nnUNetv2_train 999 {configuration} {fold} -tr {arm!r}",
                "log": f"cells/{arms.index(arm)}_{fold}_{seed}/log.txt",
            }
        )
    return pd.DataFrame(rows)
