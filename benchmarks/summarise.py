"""Write ``benchmarks/results/README.md`` from the records beside it.

Takes no arguments: ``python benchmarks/summarise.py``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
INTRODUCTION = """# Recorded results

Written by `benchmarks/summarise.py` from the records in this folder; do not edit. Ratios are
medians of step-by-step ratios to the first arm, measured in turns in one run. Memory on a CPU is
the resident set of the process and varies by about a tenth from run to run.
"""


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
    rows = [
        [
            f"`{arm['arm']}`",
            f"{arm['train_s']} s",
            arm["train_ratio"],
            f"{arm['predict_s']} s",
            arm["predict_ratio"],
            f"{arm['peak_MiB']} MiB",
            arm["peak_ratio"],
        ]
        for arm in record["arms"]
    ]
    return (
        f"Data set {arguments['dataset']}, {setting}, {arguments['device']}, "
        f"{arguments['threads']} thread(s), {arguments['steps']} steps.\n\n{table(header, rows)}"
    )


def comparison(record: dict[str, Any]) -> str:
    """Report how well trainers did."""
    rows = [
        [
            training["trainer"],
            training["mean_foreground_dice"],
            ", ".join(map(str, training["dice_per_label"].values())),
            round(sum(training["seconds_per_epoch"])),
            training.get("last_epoch", {}).get("first_pass_dice", "")[:6],
            training.get("last_epoch", {}).get("second_pass_dice", "")[:6],
        ]
        for training in record["trainings"]
    ]
    header = ["trainer", "Dice", "per label", "seconds", "first-pass Dice", "second-pass Dice"]
    prediction = record["prediction"]
    return (
        f"{record['dataset']}, {record['plans']}, {record['device']}; "
        f"{record['trainings'][0]['validation_cases']} validation cases; seeds: "
        f"{record['seeds']}. One run each, so differences of this size mean nothing. The two "
        "columns at the right are pseudo Dice of the last epoch.\n\n"
        f"{table(header, rows)}\n\n{prediction['trainer']} predicted {prediction['cases']} test "
        f"images in {prediction['seconds']:.0f} s."
    )


def startup_cost(record: dict[str, Any]) -> str:
    """Report what the start-up file costs."""
    bare, *_ = record["median_ms"].values()
    rows = [
        [name, f"{milliseconds:.2f}", f"{milliseconds - bare:+.2f}"]
        for name, milliseconds in record["median_ms"].items()
    ]
    return f"{record['starts']} starts each.\n\n{table(['interpreter', 'ms', 'difference'], rows)}"


REPORTS = {"arms": step_cost, "trainings": comparison, "median_ms": startup_cost}
"""What a record holds -> who reports it."""


def main() -> None:
    """Write the page."""
    sections = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        report = next(REPORTS[key] for key in REPORTS if key in record)
        sections.append(f"## {path.stem}\n\n{circumstances(record)} {report(record)}\n")
    (RESULTS / "README.md").write_text("\n".join(sections))


if __name__ == "__main__":
    main()
