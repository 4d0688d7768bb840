"""Are the cases that top-k sigma names in ``suspects.csv`` those whose labels were corrupted?

Takes the folders of benchmarks (docs/benchmark.md) that have run, with or without ``label_noise``::

    nnunet-ext benchmark run studies/experiments/topk_sigma_noise_omission.json --out omission
    python -m studies.suspects omission --record studies/records/suspects_omission.json

Of every training with a list it reports how many cases it was trained on, how many of these have
other labels than the clean ones, how many are named, and the precision and recall of the names;
empty where nobody is named or nothing was to be found. And what is said of most of them.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from nnunet_ext.benchmark.layout import Layout, layouts
from nnunet_ext.benchmark.prepare import read_prepared
from nnunet_ext.domains.splits import SPLITS_FILE, read_splits
from nnunet_ext.trainers.topk_sigma import SUSPECTS
from studies import record

Row: TypeAlias = dict[str, int | str]


def judged(named: pd.DataFrame, training: set[str], noisy: set[str]) -> Row:
    """Compare a list of suspects with the truth.

    Args:
        named: What ``suspects.csv`` holds.
        training: Cases that were trained on.
        noisy: Cases with wrong labels, others than these included.
    """
    wrong, accused = noisy & training, set(named["case"])
    right = len(accused & wrong)
    kinds = (named["kind"] + " " + named["label"].astype(str)).value_counts()
    return {
        "cases": len(training),
        "wrong": len(wrong),
        "named": len(accused),
        "precision": f"{right / len(accused):.2f}" if accused else "",
        "recall": f"{right / len(wrong):.2f}" if wrong else "",
        "mostly": str(kinds.index[0]) if len(kinds) else "",
    }


def rows_of(layout: Layout) -> Iterator[tuple[str, Row]]:
    """Every training of a benchmark that left a list, with what it is worth."""
    prepared, splits = read_prepared(layout), read_splits(layout.dataset / SPLITS_FILE)
    for cell in layout.cells(test=False):
        model = layout.model(cell, prepared.trainings[cell.arm].trainer)
        path = model / f"fold_{cell.fold}" / SUSPECTS
        if cell.fold is not None and path.exists():
            named = pd.read_csv(path, dtype={"case": str, "label": str})
            row = judged(named, set(splits[cell.fold]["train"]), set(prepared.noisy))
            yield f"{layout.root.name}, {cell}", row


def main() -> None:
    """Compare, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of benchmarks")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    found = [
        row for folder in arguments.folders for each in layouts(folder) for row in rows_of(each)
    ]
    if not found:
        raise SystemExit(f"No training of {', '.join(map(str, arguments.folders))} has {SUSPECTS}.")
    rows = dict(found)
    print(pd.DataFrame(rows).T.to_string())
    if arguments.record:
        names = ", ".join(folder.name for folder in arguments.folders)
        record.save(arguments.record, {"arguments": {"benchmarks": names}, "suspects": rows})


if __name__ == "__main__":
    main()
