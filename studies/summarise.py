"""Write ``studies/records/README.md``, ``docs/experiments.md``, ``docs/methods.md`` and all reports
from the records.

``python -m studies.summarise``; with ``--methods`` only ``docs/methods.md``, which takes seconds.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nnunet_ext.benchmark.analysis import Analysis
from nnunet_ext.benchmark.report import write_report
from nnunet_ext.benchmark.results import CLEAN, TEST, Results, read

RESULTS = Path(__file__).parent / "records"
EXPERIMENTS_PAGE = Path(__file__).parents[1] / "docs" / "experiments.md"
METHODS_PAGE = EXPERIMENTS_PAGE.with_name("methods.md")
METRICS = {"dice": 3, "nsd": 3, "hd95": 1}
"""Shown metrics and their digits."""
TURNED = {"better": "worse", "worse": "better"}
"""A verdict on one of two arms -> that on the other."""
INTRODUCTION = """# Records

Written by `studies/summarise.py` from the records in this folder; do not edit. The folders hold
[experiments](../../docs/experiments.md). Ratios of costs are medians of step-by-step ratios to the
first arm, measured in turns in one run. Memory on a CPU is the resident set of the process and
varies by about a tenth from run to run.
"""


EXPERIMENTS = """# Experiments on real data

Written by `studies/summarise.py` from `studies/records`; do not edit. Each is a file in
`studies/experiments`, repeated with `nnunet-ext benchmark run FILE` on
[these data](../studies/experiments/README.md). All arms of an experiment have the same plans,
folds, seeds and, unless an arm's name says otherwise, epochs; CateNorm takes half as many
optimisation steps again in them. Networks and budgets are small enough for a CPU: differences
between arms are what to look at, not the scores. For the same reason all arms learn with Adam
(`optimizer=adam`, rate 0.001) and predict without mirroring; nnU-Net's defaults, and ours, are SGD
and mirroring. Intervals (95 %), p (Holm) and verdicts are over
[subjects and trainings](statistics.md), scores averaged over labels; after "undecided" stands how
many more trainings would decide. What a result means for a method stands on the method's page.
"""

METHODS = """# All methods in one table

Written by `python -m studies.summarise --methods` from `studies/records`; do not edit. Gains are
differences of Dice in points (hundredths), with intervals (95 %) over
[subjects and trainings](statistics.md); bold where certain after Holm's correction. They come from
small networks and short trainings on a CPU ([experiments](experiments.md)): **at that scale no
method for labelled images was shown to beat stock nnU-Net at equal cost on images like those of the
training; on images of another contrast, random convolutions were, by far.** Costs are ratios to
stock of one step with CPU networks, from all [records](../studies/records/README.md) of step costs;
what a GPU holds, `nnunet-ext memory` [tells](memory.md) before training. Where what was measured on
differs from the images of the training, "on seen kinds" is the gain, or the price, over stock on
images that do not. A dash: not measured.
"""


class Shown(NamedTuple):
    """A line of the table of methods: an arm of a record, beside stock and DA5.

    Attributes:
        trainer: As a user knows it.
        where: On what it was measured.
        record: Folder of the record.
        arm: Whose gain it is.
        stock: Arm with nnU-Net's own training.
        strong: Arm with nnU-Net's strong augmentation, or nothing.
        cost: Arm of the records of step costs.
    """

    trainer: str
    where: str
    record: str
    arm: str
    stock: str
    strong: str = ""
    cost: str = ""


_CATENORM = 'CateNormTrainer={"catenorm": {"plain_fraction": 0}}'
_CONDSEG = 'ConDSegTrainer={"condseg": {"first_phase": 0}}'
_GIN = 'ExtensionTrainer={"augmentation": "gin"}'
_TOPK = 'TopKSigmaTrainer={"topk_sigma": {"warm_up": 0, "ramp": 0}}'
SHOWN = (
    Shown("nnUNetTrainerDA5", "hippocampus", "hippocampus", "nnUNetTrainerDA5", "nnUNetTrainer"),
    Shown(
        *("CateNormTrainer", "hippocampus", "hippocampus", "CateNormTrainer", "nnUNetTrainer"),
        *("nnUNetTrainerDA5", _CATENORM),
    ),
    Shown(
        *("CateNormTrainer", "three cameras pooled, batch normalisation, equal updates"),
        *("catenorm_retina_batch", "CateNorm, pass 2", "stock, equal updates", "", _CATENORM),
    ),
    Shown(
        *("ConDSegTrainer", "hippocampus", "condseg_hippocampus", "full", "stock", "", _CONDSEG),
    ),
    Shown(
        *("ConDSegTrainer", "skin lesions, four times the steps", "condseg_skin_long", "full"),
        *("stock", "", _CONDSEG),
    ),
    Shown(
        *("ExtensionTrainer, augmentation=gin", "another MR sequence, never seen"),
        *("mind_the_gap_cardiac_gin", "GIN", "stock", "DA5", _GIN),
    ),
    Shown(
        *("RAMDSIRTrainer", "a camera never seen", "ram_dsir_retina", "full", "stock", "DA5"),
        "RAMDSIRTrainer",
    ),
    Shown(
        *("MindTheGapTrainer", "an inverted modality without labels", "mind_the_gap_hippocampus"),
        *("full", "source only", "DA5", "MindTheGapTrainer"),
    ),
    Shown(
        *("MindTheGapTrainer", "another MR sequence without labels", "mind_the_gap_cardiac"),
        *("full", "source only", "DA5", "MindTheGapTrainer"),
    ),
    Shown(
        *("TopKSigmaTrainer", "a structure missing in 48 % of the labels"),
        *("topk_sigma_noise_omission", "auto", "stock", "", _TOPK),
    ),
    Shown(
        *("TopKSigmaTrainer", "the same with clean labels", "topk_sigma_noise_clean"),
        *("auto", "stock", "", _TOPK),
    ),
)


def methods() -> str:
    """Write the table of gain, price, memory and time of all methods."""
    header = ["trainer", "measured on", "gain over stock", "over DA5", "on seen kinds"]
    rows = []
    for each in SHOWN:
        costs = [_range(each.cost, what) for what in ("train", "peak", "predict")]
        where = f"{each.where} ([record](../studies/records/{each.record}/report.md))"
        rows.append([f"`{each.trainer}`", where, *_gains(each), *costs])
    return f"{METHODS}\n{table([*header, 'step', 'memory', 'prediction'], rows)}\n"


def _gains(shown: Shown) -> list[str]:
    """Differences in points of Dice to stock and DA5 on what is unseen, and to stock on the rest.

    Unseen are test cases, or domains that were left out; without them, all cases count as unseen.
    """
    (results,) = read(RESULTS / shown.record)
    analysis = Analysis(replace(results, baseline=shown.arm))
    (configuration,) = results.configurations()
    evaluations = results.evaluations(configuration)

    def dice(evaluation: str, seen: str = "") -> pd.DataFrame:
        rows = analysis.rows(configuration, evaluation, "seen" if seen else "all")
        return rows[(rows["metric"] == "dice") & rows["name"].str.contains(seen)].set_index("arm")

    if results.of(configuration, evaluations[0])["seen"].nunique() > 1:
        unseen, usual = dice(evaluations[0], "^unseen"), dice(evaluations[0], "^seen")
    elif TEST in evaluations:
        unseen, usual = dice(TEST), dice(CLEAN)
    else:
        unseen, usual = dice(evaluations[0]), pd.DataFrame()
    gains = [_gain(unseen.loc[arm]) if arm else "-" for arm in (shown.stock, shown.strong)]
    return [*gains, "-" if usual.empty else _gain(usual.loc[shown.stock])]


def _gain(row: pd.Series) -> str:
    # of the other arm to the method's; turned around, without -0.0
    found = "{:+.1f} [{:+.1f}, {:+.1f}]".format(
        *(0.0 - 100 * row[key] for key in ("difference", "high", "low"))
    )
    return f"**{found}**" if row["verdict"] in TURNED else found


def _range(arm: str, what: str) -> str:
    """Least and greatest ratio to stock of an arm in all records of step costs."""
    found = sorted(_ratios(arm, f"{what}_ratio"))
    if not found:
        return "-"
    least, most = (f"{value:.1f}" for value in (found[0], found[-1]))
    return f"{least}x" if least == most else f"{least}x to {most}x"


def _ratios(arm: str, ratio: str) -> Iterator[float]:
    for path in RESULTS.glob("step_cost_*.json"):
        for each in json.loads(path.read_text())["arms"]:
            if each["arm"] == arm:
                yield each[ratio]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def circumstances(record: dict[str, Any]) -> str:
    """Name where, when and with what a record was made."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    where = record["gpu"] or record["processor"]
    return f"{record['date']}; {where}; Python {record['python']}, {versions}."


def step_cost(record: dict[str, Any]) -> str:
    """Report what one step costs."""
    arguments = record["arguments"]
    setting = f"{arguments['plans']}, {arguments['configuration']}"
    if arguments["batch_size"]:
        setting += f", batch size {arguments['batch_size']}"
    header = ["arm", "training step", "ratio", "prediction", "ratio", "peak memory", "ratio"]
    counted = "train_operations_ratio" in record["arms"][0]
    if counted:
        header += ["operations of a step", "of a prediction"]
    part = arguments.get("part")
    if part:
        header.append(f"`{part}`, share of a step")
    rows = [
        [
            f"`{arm['arm']}`",
            f"{arm['train_s']} s",
            arm["train_ratio"],
            f"{arm['predict_s']} s",
            arm["predict_ratio"],
            f"{arm['peak_MiB']} MiB",
            arm["peak_ratio"],
            *([arm["train_operations_ratio"], arm["predict_operations_ratio"]] if counted else []),
            *([f"{100 * arm['part_share']:.1f} %"] if part else []),
        ]
        for arm in record["arms"]
    ]
    return (
        f"Data set {arguments['dataset']}, {setting}, {arguments['device']}, "
        f"{arguments['threads']} thread(s), {arguments['steps']} steps.\n\n{table(header, rows)}"
    )


def startup_cost(record: dict[str, Any]) -> str:
    """Report what the start-up file costs."""
    bare, *_ = record["median_ms"].values()
    rows = [
        [name, f"{milliseconds:.2f}", f"{milliseconds - bare:+.2f}"]
        for name, milliseconds in record["median_ms"].items()
    ]
    return f"{record['starts']} starts each.\n\n{table(['interpreter', 'ms', 'difference'], rows)}"


def experiment(folder: Path) -> str:
    """Write the report of a recorded benchmark, and sum it up: the last arm against every other."""
    (results,) = read(folder)
    write_report(results, folder)
    *_, full = results.arms
    analysis = Analysis(replace(results, baseline=full))
    cost = analysis.cost.set_index(["configuration", "arm"])["seconds_per_epoch"]
    parts = [f"## {folder.name}\n\n{results.description}"]
    for configuration in results.configurations():
        for evaluation in results.evaluations(configuration):
            scores = results.of(configuration, evaluation)
            one = scores["seen"].nunique() == 1
            for name, rows in analysis.rows(
                configuration, evaluation, "all" if one else "seen"
            ).groupby("name", sort=False):
                part = scores if one else scores[scores["seen"] == name]
                kind = part["seen"].iloc[0]
                counts = [part[column].nunique() for column in ("subject", "case", "seed")]
                parts.append(
                    f"{configuration}, {evaluation}{f', {kind} domains' if kind else ''}: "
                    "{} subjects ({} cases), {} seeds.\n\n".format(*counts)
                    + comparison(results, rows, cost[configuration], full)
                )
    environment = json.loads((folder / "environment.json").read_text())
    link = f"[Report](../studies/records/{folder.name}/report.md)"
    parts.append(f"{link}. {circumstances(environment)}")
    return "\n\n".join(parts) + "\n"


def comparison(results: Results, rows: pd.DataFrame, cost: pd.Series, full: str) -> str:
    """Means of all arms, and the last one's difference in Dice to each."""
    means = rows.pivot(index="arm", columns="metric", values="mean")
    found = rows[rows["metric"] == "dice"].set_index("arm")
    lines = [
        [
            arm,
            *(_number(means[metric].get(arm), digits) for metric, digits in METRICS.items()),
            *(_difference(found.loc[arm]) if arm in found.index else ("", "", "")),
            _number(cost.get(arm), 1),
        ]
        for arm in results.arms
    ]
    against = [f"Dice of {full} minus this", "p", f"{full} is"]
    return table(["arm", "Dice", "NSD", "HD95", *against, "s per epoch"], lines)


def _number(value: float | None, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _difference(row: pd.Series) -> tuple[str, str, str]:
    if pd.isna(row["difference"]):
        return "", "", ""
    # of this arm to the last one; turned around, without -0.0
    found, low, high = (0.0 - row[key] for key in ("difference", "high", "low"))
    known = f" [{low:+.3f}, {high:+.3f}]" if not pd.isna(low) else ""
    more = row["further_trainings"]
    verdict = TURNED.get(row["verdict"], row["verdict"])
    p = row["p_holm"]
    return (
        f"{found:+.3f}{known}",
        "" if pd.isna(p) else "< 0.001" if p < 1e-3 else f"{p:.3f}",
        verdict + ("" if pd.isna(more) else f" (+{more:.0f})"),
    )


def named_rows(record: dict[str, Any]) -> str:
    """Report a record whose last entry holds named figures of several things."""
    *_, (kind, found) = record.items()
    rows = [[f"`{name}`", *figures.values()] for name, figures in found.items()]
    header = [kind, *next(iter(found.values()))]
    given = {name: value for name, value in record["arguments"].items() if value is not None}
    setting = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
    return f"{setting}.\n\n{table(header, rows)}"


def gpu_parts(record: dict[str, Any]) -> str:
    """Report what was found out on a GPU, part by part."""
    parts = []
    for part, found in record["gpu_parts"].items():
        rows = [[f"`{name}`", *figures.values()] for name, figures in found.items()]
        header = ["", *next(iter(found.values()))]
        parts.append(f"Part {part}:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def memory_peaks(record: dict[str, Any]) -> str:
    """Report simulated and allocated memory."""
    header = list(record["peaks"][0])
    rows = [list(row.values()) for row in record["peaks"]]
    return f"Bytes, unless said otherwise.\n\n{table(header, rows)}"


REPORTS = {
    "gpu_parts": gpu_parts,
    "peaks": memory_peaks,
    "arms": step_cost,
    "comparisons": lambda record: "Tables are in [docs](../../docs/statistics.md).",
    "critics": named_rows,
    "losses": named_rows,
    "images": named_rows,
    "models": named_rows,
    "recovered": named_rows,
    "suspects": named_rows,
    "translators": named_rows,
    "median_ms": startup_cost,
}
"""What a record holds -> who reports it."""


def main() -> None:
    """Write the pages and the records' reports."""
    METHODS_PAGE.write_text(methods())
    if sys.argv[1:] == ["--methods"]:
        return
    folders = sorted(path.parent for path in RESULTS.glob("*/scores.csv"))
    EXPERIMENTS_PAGE.write_text("\n".join([EXPERIMENTS, *map(experiment, folders)]))
    sections = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        report = next(REPORTS[key] for key in REPORTS if key in record)
        sections.append(f"## {path.stem}\n\n{circumstances(record)} {report(record)}\n")
    (RESULTS / "README.md").write_text("\n".join(sections))


if __name__ == "__main__":
    main()
