"""How much of the distance between no and all target labels does adaptation recover?

Takes the recorded results of two experiments on the same target cases, the first arm of the one
being trained on the source alone, the first arm of the other on labels of the target::

    python -m studies.gap_recovered studies/records/mind_the_gap_cardiac \
        studies/records/mind_the_gap_cardiac_oracle --cases "LGE_0[1-5]" \
        --record studies/records/gap_recovered_cardiac_unseen.json

Reports (arm - source) / (oracle - source) of the mean Dice and the mean surface distance (ASSD)
over subjects, with 95 % intervals for other subjects and trainings (docs/statistics.md, by the
delta method). A training of the oracle is a seed, all its folds together. Where nothing is
predicted, the surface distance counts as the diagonal of the image.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.benchmark.analysis import samples
from nnunet_ext.benchmark.results import CLEAN, TEST
from nnunet_ext.evaluation.variance import decompose
from studies import record

METRICS = {"Dice": "dice", "ASSD": "assd"}


def values(folder: Path, metric: str, cases: str) -> dict[str, pd.DataFrame]:
    """Arms in the order of the experiment -> subjects (rows) by trainings."""
    scores = pd.read_csv(folder / "scores.csv", dtype={"label": str, "fold": str})
    own = TEST if (scores["evaluation"] == TEST).any() else CLEAN
    chosen = scores[(scores["evaluation"] == own) & scores["case"].str.fullmatch(cases)]
    if chosen.empty:
        raise SystemExit(f"No case of {folder} matches {cases!r}.")
    table = samples(chosen, metric)
    arms = json.loads((folder / "benchmark.json").read_text())["arms"]
    return {
        arm: mine.pivot_table(index="subject", columns="seed", values="value")
        for arm in arms
        if len(mine := table[table["arm"] == arm])
    }


def share(
    arm: NDArray[np.floating], source: NDArray[np.floating], oracle: NDArray[np.floating]
) -> str:
    """Share of the gap that an arm recovers, with its interval if trainings can be told apart.

    Args:
        arm: Values (subjects, trainings), like the others.
        source: Of the arm that was trained on the source alone.
        oracle: Of the one that was trained on the target.
    """
    gap = oracle.mean() - source.mean()
    found = (arm.mean() - source.mean()) / gap
    if min(each.shape[1] for each in (arm, source, oracle)) < 2:
        return f"{found:.0%}"
    # to first order, the share errs by this contrast, whose mean is zero, over the gap
    _, spread = decompose([[arm, (found - 1) * source, -found * oracle]])
    half = float(spread.half_width()) / abs(gap)
    return f"{found:.0%} [{found - half:.0%}, {found + half:.0%}]"


def recovered(adapted: Path, oracle: Path, cases: str) -> dict[str, dict[str, float | str]]:
    """Means of all arms and what they recover, by arm."""
    rows: dict[str, dict[str, float | str]] = {}
    for name, metric in METRICS.items():
        tables = values(adapted, metric, cases)
        tables["oracle"] = next(iter(values(oracle, metric, cases).values()))
        complete = [set(table.dropna().index) for table in tables.values()]
        subjects = sorted(set.intersection(*complete))
        if not subjects:
            raise SystemExit(f"{adapted} and {oracle} have no subject in common.")
        arrays = {arm: table.loc[subjects].to_numpy() for arm, table in tables.items()}
        source = next(iter(arrays.values()))
        for arm, array in arrays.items():
            row = rows.setdefault(arm, {"subjects": len(subjects)})
            row[name] = round(float(array.mean()), 3)
            row[f"recovered of {name}"] = share(array, source, arrays["oracle"])
            if array is source or arm == "oracle":
                row[f"recovered of {name}"] = "" if array is source else "100%"
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
