"""``nnunet-ext demo``: from images to Dice scores with one command."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.console import Console
from typer import Option

from nnunet_ext._common import pictures
from nnunet_ext._common.console import plural, resumable, say, show_table
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import replacing
from nnunet_ext.benchmark import spec, synthetic
from nnunet_ext.benchmark.arms import find_training
from nnunet_ext.benchmark.collect import collect
from nnunet_ext.benchmark.layout import Layout
from nnunet_ext.benchmark.results import TEST, Results
from nnunet_ext.benchmark.schedule import Execution
from nnunet_ext.cli.benchmark import Device, find_device, run_shown
from nnunet_ext.cli.fetch import fetch_shown
from nnunet_ext.nnunet import decathlon, discovery
from nnunet_ext.nnunet.datasets import PREPROCESSED, RAW, RESULTS, short_name

SETTINGS = {
    "save_every": 1,
    "optimizer": "adam",
    "initial_lr": 2e-3,  # the few steps that fit into minutes need more than Adam's usual 1e-3
    "progress_bar": False,
}
CASES = 24
TEST_SHARE = 4
"""One test case per so many training cases."""

Out = Annotated[Path, Option(help="Working folder; an interrupted demo goes on from there.")]
Task = Annotated[str | None, Option(help="Decathlon task to download, such as Task04_Hippocampus.")]
Cases = Annotated[
    int | None, Option(min=5, help="Synthetic training cases.", show_default=str(CASES))
]


def command(
    out: Out = Path("nnunet_ext_demo"),
    task: Task = None,
    trainer: Annotated[str, Option(help="Trainer.")] = "CateNormTrainer",
    epochs: Annotated[int, Option(min=1, help="Epochs of training.")] = 15,
    iterations: Annotated[int, Option(min=1, help="Batches per epoch.")] = 20,
    cases: Cases = None,
    device: Device = None,
) -> None:
    """Work through a small task: data, plan, training, prediction, scores, picture.

    Without options it makes a synthetic 3D task and takes some minutes without a GPU. It is a
    benchmark of one trainer (`nnunet-ext benchmark`), whose commands of nnU-Net's are shown as
    they run. Everything stays in the working folder: data, model, predictions, summary.txt and
    demo.png.

    \b
    Examples:
      nnunet-ext demo
      nnunet-ext demo --task Task04_Hippocampus --epochs 50 --out hippocampus
      nnunet-ext demo --trainer nnUNetTrainer --epochs 5 --out stock
    """
    if cases is not None and task is not None:
        raise UserError("--cases is for synthetic data; a Decathlon task is used as it is.")
    name = decathlon.find_task(task).name if task else None
    dataset = decathlon.dataset_name(name) if name else synthetic.DATASET
    benchmark = _benchmark(dataset, trainer, epochs, iterations)
    execution, layout = Execution("local", find_device(device), jobs=1), Layout(out)
    spec.claim(layout.root, benchmark)
    folders = {name: layout.root / "data" / name for name in (RAW, PREPROCESSED)}
    for variable, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(folder)
    with resumable():
        if name:
            decathlon.convert(fetch_shown(name, layout.root / "data"))
        else:
            number = cases or CASES
            test = max(len(synthetic.SITES), number // TEST_SHARE)
            synthetic.write_raw(folders[RAW], number, test)
        if not run_shown(benchmark, layout.root, execution):
            raise typer.Exit(1)
        publish(collect(layout), layout.root)
    say("To use nnU-Net's commands with this data and model, set:")
    folders |= {PREPROCESSED: layout.preprocessed, RESULTS: layout.results}
    for variable, folder in folders.items():
        say(f"  export {variable}={shlex.quote(str(folder))}")


def _benchmark(dataset: str, trainer: str, epochs: int, iterations: int) -> spec.Benchmark:
    """The benchmark that a demo is."""
    length = {
        "num_epochs": epochs,
        "num_iterations_per_epoch": iterations,
        "num_val_iterations_per_epoch": min(5, iterations),
    }
    content = {
        "dataset": dataset,
        "arms": {trainer: {"trainer": trainer}},
        "plans": "CompactPlans",
        "folds": [0],
        "settings": length | SETTINGS,
    }
    benchmark = spec.from_content(content, "The command line")
    discovery.activate(force=True)
    if problem := find_training(benchmark, trainer).problem:
        raise UserError(problem)
    return benchmark


def publish(results: Results, folder: Path) -> None:
    """Print the table of Dice, write it to ``summary.txt`` and draw ``demo.png``."""
    is_test = results.scores["evaluation"] == TEST
    kind = "test" if is_test.any() else "validation"
    scores = results.scores[is_test == is_test.any()]
    names = [*results.labels.values(), "mean"]
    dice = scores.pivot(index="case", columns="label", values="dice")[list(results.labels)]
    ranked = dice.mean(axis=1).sort_values(ascending=False, na_position="last").index
    groups = {f"all {len(dice)} cases": ranked}
    sites = scores["case"].str.extract("(site[A-Z])_")[0]  # of the synthetic cases
    for site, cases in scores["case"].groupby(sites).unique().items():
        groups[f"{site}, {plural(len(cases), 'case')}"] = cases
    groups[f"worst case, {ranked[-1]}"] = ranked[-1:]
    rows = [(name, *_figures(dice.loc[members].mean())) for name, members in groups.items()]
    (trainer,) = results.arms
    title = f"{trainer} on the {len(dice)} {kind} cases of {short_name(results.title)}"
    with (folder / "summary.txt").open("w", encoding="utf-8") as file:
        for target in (Console(file=file, width=100), None):
            say(f"\n{title}\n", "bold", target)
            show_table(("Dice", *names), rows, target)
    shown = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"}
    lines = {}
    for place, role in sorted(shown.items()):
        case, pairs = ranked[place], zip(names, _figures(dice.loc[ranked[place]]), strict=True)
        parts = list(pairs)[:-1] if len(names) < 5 else list(pairs)[-1:]  # more is too long
        line = f"{role}: {case}\nDice: {', '.join(map(' '.join, parts))}"
        lines[line] = scores[scores["case"] == case].iloc[0]
    _draw(lines, results.labels, title, folder / "demo.png")
    say(f"\nPicture: {folder / 'demo.png'}\nTable:   {folder / 'summary.txt'}")


def _figures(dice: pd.Series) -> list[str]:
    """Dice per label, and their mean."""
    return [f"{value:.3f}" if value == value else "-" for value in (*dice, dice.mean())]


def _draw(cases: dict[str, pd.Series], labels: dict[str, str], title: str, path: Path) -> None:
    """Draw image, truth and prediction of cases.

    Args:
        cases: What stands beside a case -> its files ``image``, ``truth`` and ``prediction``.
        labels: Label -> name.
        title: What stands above.
        path: Where the picture goes.
    """
    colours = {int(label): pictures.COLOURS[i % 7] for i, label in enumerate(labels)}
    columns = ("image", "truth", "prediction")
    with style.context("default"):
        figure = Figure(figsize=(9, 3.05 * len(cases) + 0.9), layout="constrained", dpi=120)
        grid = figure.subplots(len(cases), 3, squeeze=False)
        for row, (line, case) in zip(grid, cases.items(), strict=True):
            voxels = [pictures.read_voxels(Path(case[column])) for column in columns]
            axis, index = pictures.telling_slice(voxels[1][0], voxels[2][0], voxels[0][1])
            image, *labelled = (np.take(array, index, axis) for array, _ in voxels)
            for axes, shown in zip(row, (0 * labelled[0], *labelled), strict=True):
                pictures.draw_slice(axes, image, pictures.aspect_of(voxels[0][1], axis))
                pictures.draw_labels(axes, shown, shown, colours)
            row[0].set_ylabel(line, fontsize=10)
        for axes, column in zip(grid[0], columns, strict=True):
            axes.set_title(column, fontsize=12)
        figure.suptitle(title, fontsize=13)
        names = zip(colours.values(), labels.values(), strict=True)
        patches = [Patch(color=colour, label=name) for colour, name in names]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False)
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
