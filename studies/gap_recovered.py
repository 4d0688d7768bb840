"""How much of the distance between no and all target labels does adaptation recover?

Takes the recorded results of two experiments on the same target cases, the first arm of the one
being trained on the source alone, the first arm of the other on labels of the target::

    python -m studies.gap_recovered studies/records/mind_the_gap_cardiac \
        studies/records/mind_the_gap_cardiac_oracle --cases "LGE_0[1-5]" \
        --record studies/records/gap_recovered_cardiac_unseen.json

Reports (arm - source) / (oracle - source) of the mean Dice and the mean surface distance (ASSD)
over subjects, with 95 % percentile intervals over resampled subjects. Where nothing is predicted,
the surface distance counts as the diagonal of the image.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.benchmark.results import CLEAN, TEST
from studies import record

METRICS = {"Dice": "dice", "ASSD": "assd"}
RESAMPLES = 9_999


def values(folder: Path, metric: str, cases: str) -> pd.DataFrame:
    """Means of subjects (rows) by arm (columns, in the order of the experiment)."""
    scores = pd.read_csv(folder / "scores.csv", dtype={"label": str, "fold": str})
    own = TEST if (scores["evaluation"] == TEST).any() else CLEAN
    chosen = scores[(scores["evaluation"] == own) & scores["case"].str.fullmatch(cases)]
    if chosen.empty:
        raise SystemExit(f"No case of {folder} matches {cases!r}.")
    keys = ["arm", "subject", "case", "seed", "fold"]
    while len(keys) > 1:  # labels are averaged first, then trainings, then cases
        chosen = chosen.groupby(keys, as_index=False)[metric].mean()
        keys.pop()
    table = chosen.pivot(index="subject", columns="arm", values=metric)
    arms = json.loads((folder / "benchmark.json").read_text())["arms"]
    return table[[arm for arm in arms if arm in table]]


def shares(arms: NDArray[np.floating], oracle: NDArray[np.floating]) -> NDArray[np.floating]:
    """Share of the gap that each arm recovers.

    Args:
        arms: Values (..., subjects, arms), the first trained on the source alone.
        oracle: Values (..., subjects).
    """
    source, best = arms[..., 0].mean(-1), oracle.mean(-1)
    gap: NDArray[np.floating] = best - source
    return (arms.mean(-2) - source[..., None]) / gap[..., None]


def recovered(adapted: Path, oracle: Path, cases: str) -> dict[str, dict[str, float | str]]:
    """Means of all arms and what they recover, by arm."""
    rows: dict[str, dict[str, float | str]] = {}
    for name, metric in METRICS.items():
        table = values(adapted, metric, cases)
        best = values(oracle, metric, cases).iloc[:, 0]
        table, best = table.dropna().align(best.dropna(), join="inner", axis=0)
        own, top = table.to_numpy(), best.to_numpy()
        estimates = shares(own, top)
        drawn = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
        low, high = np.percentile(shares(own[drawn], top[drawn]), [2.5, 97.5], axis=0)
        for i, arm in enumerate(table):
            row = rows.setdefault(arm, {"subjects": len(own)})
            row[name] = round(float(own[:, i].mean()), 3)
            share = f"{estimates[i]:.0%} [{low[i]:.0%}, {high[i]:.0%}]"
            row[f"recovered of {name}"] = share if i else ""
        row = rows.setdefault("oracle", {"subjects": len(own)})
        row |= {name: round(float(top.mean()), 3), f"recovered of {name}": "100%"}
    return rows


def main() -> None:
    """Compare, print, and record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapted", type=Path, help="recorded results; first arm is source only")
    parser.add_argument("oracle", type=Path, help="recorded results; first arm is the oracle")
    parser.add_argument("--cases", default=".*", help="regular expression of target cases")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = recovered(arguments.adapted, arguments.oracle, arguments.cases)
    print(pd.DataFrame(rows).T.to_string())
    if arguments.record:
        described = {
            "experiment": arguments.adapted.name,
            "oracle": arguments.oracle.name,
            "cases": arguments.cases,
        }
        record.save(arguments.record, {"arguments": described, "recovered": rows})


if __name__ == "__main__":
    main()
