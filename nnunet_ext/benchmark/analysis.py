"""The numbers of a report: what its tables and plots show and its files hold."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from nnunet_ext.benchmark.results import CLEAN, SEEN, TEST, UNSEEN, Results
from nnunet_ext.evaluation.statistics import compare, rank, unit_values


@dataclass(frozen=True)
class Metric:
    """One of the measured metrics.

    Attributes:
        key: Its column in the scores.
        name: As it is shown.
        decimals: How many are shown.
        better: "↑" if higher is better, else "↓".
    """

    key: str
    name: str
    decimals: int
    better: str

    def head(self, unit: str) -> str:
        """Name of its column."""
        measured = f" ({unit})" if unit and self.better == "↓" else ""
        return f"{self.name}{measured} {self.better}"

    def tone(self, low: float, high: float) -> str:
        """Whether an interval of differences says better or worse than the baseline, or neither."""
        if not (low > 0 or high < 0):
            return ""
        return "better" if (low > 0) == (self.better == "↑") else "worse"


DICE = Metric("dice", "Dice", 3, "↑")
METRICS = (
    DICE,
    Metric("nsd", "NSD", 3, "↑"),
    Metric("hd95", "HD95", 2, "↓"),
    Metric("assd", "ASSD", 2, "↓"),
)


def unit_name(scores: pd.DataFrame) -> str:
    """What the units of these scores are: "subject" if cases are grouped, else "case"."""
    return "case" if scores["subject"].equals(scores["case"]) else "subject"


@dataclass(frozen=True)
class Analysis:
    """All numbers that a report derives from the scores.

    Attributes:
        comparison: One row per configuration, evaluation, scope, name, metric and arm: units and
            cases (with a value), mean, and, if there is something to compare with: against (the
            baseline, or "clean" for the change that a degradation makes), pairs, baseline_mean
            and arm_mean (over the pairs), difference, low, high, and for whole evaluations p and
            p_holm. Scope is what the scores were restricted to: "all", "label", "seen", "domain",
            "seed" (name says which). Under "change" stands each arm under a degradation against
            itself without.
        ranking: One row per configuration, evaluation, metric and arm: units, mean, rank,
            rank_low, rank_high, first.
        cost: One row per configuration and arm: trainings, done, epochs, seconds_per_epoch
            (median over trainings, with fastest and slowest), seconds (median of a training),
            total_seconds, peak_memory_mib (largest), memory_kind, and times_epoch, times_seconds
            and times_memory relative to the baseline.
    """

    comparison: pd.DataFrame
    ranking: pd.DataFrame
    cost: pd.DataFrame

    def rows(self, configuration: str, evaluation: str, scope: str) -> pd.DataFrame:
        """Rows of the comparison."""
        frame = self.comparison
        return frame[
            (frame["configuration"] == configuration)
            & (frame["evaluation"] == evaluation)
            & (frame["scope"] == scope)
        ]

    def seed_means(self, configuration: str, evaluation: str) -> pd.DataFrame:
        """Mean Dice by arm (rows) and seed (columns), NaN for a seed that lacks cases."""
        frame = self.rows(configuration, evaluation, "seed")
        frame = frame[(frame["metric"] == DICE.key) & (frame["cases"] == frame["cases"].max())]
        return frame.pivot(index="arm", columns="name", values="mean").astype(float)


KEYS = ["configuration", "evaluation", "scope", "name", "metric", "arm"]
COMPARED = ["pairs", "baseline_mean", "arm_mean", "difference", "low", "high", "p", "p_holm"]


def analyse(results: Results) -> Analysis:
    """Compute all numbers of a report; configurations and evaluations are never pooled."""
    comparisons, rankings = [], []
    for configuration in results.configurations():
        scores = results.scores[results.scores["configuration"] == configuration]
        for evaluation in results.evaluations(configuration):
            rows = scores[scores["evaluation"] == evaluation]
            clean = scores[scores["evaluation"] == CLEAN]
            place = {"configuration": configuration, "evaluation": evaluation}
            for metric in METRICS:
                for scope, name, part in _parts(rows, results):
                    baseline = None if scope == "seed" else results.baseline
                    compared = _compared(part, metric.key, baseline)
                    if scope != "all" or evaluation not in (CLEAN, TEST):
                        compared = compared.drop(columns=["p", "p_holm"], errors="ignore")
                    comparisons.append(
                        compared.assign(**place, scope=scope, name=name, metric=metric.key)
                    )
                if evaluation not in (CLEAN, TEST):
                    changed = _changed(clean, rows, metric.key)
                    comparisons.append(
                        changed.assign(**place, scope="change", name=evaluation, metric=metric.key)
                    )
                else:
                    ranked = _ranked(rows, metric)
                    rankings.append(ranked.assign(**place, metric=metric.key))
    return Analysis(
        _joined(comparisons, [*KEYS, "units", "cases", "mean", "against", *COMPARED], results),
        _joined(
            rankings,
            [*KEYS[:2], *KEYS[4:], "units", "mean", "rank", "rank_low", "rank_high", "first"],
            None,
        ),
        _cost(results),
    )


def _parts(scores: pd.DataFrame, results: Results) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The scores, and the parts of them that are looked at one by one."""
    yield "all", "", scores
    if scores["evaluation"].iloc[0] not in (CLEAN, TEST):
        return
    unseen = scores["seen"].map({UNSEEN: f" ({UNSEEN})"}).fillna("")
    scores = scores.assign(domain=scores["domain"] + unseen)
    labels = [*results.labels, *scores["label"].unique()]
    columns = {
        "label": list(dict.fromkeys(labels)),
        "seen": [name for name in (UNSEEN, SEEN) if name in set(scores["seen"])],
        "domain": sorted(set(scores["domain"]) - {""}),
        "seed": sorted(set(scores["seed"])),
    }
    for column, values in columns.items():
        for value in values:
            part = scores[scores[column] == value]
            if len(part) and (len(values) > 1 or column == "seed"):
                yield column, str(value), part


def _values(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    return unit_values(scores, metric).dropna(subset="value")


def _compared(scores: pd.DataFrame, metric: str, baseline: str | None) -> pd.DataFrame:
    """Mean of every arm, and its difference to the baseline where both have values."""
    values = _values(scores, metric)
    groups = values.groupby("arm", sort=False)["value"]
    means = groups.agg(units="size", mean="mean").reset_index()
    scored = scores.dropna(subset=metric).groupby("arm")["case"].nunique()
    means["cases"] = means["arm"].map(scored)
    if baseline is None or baseline not in set(means["arm"]):
        return means
    pairs = compare(values, baseline).rename(columns={"units": "pairs"}).assign(against=baseline)
    return means.merge(pairs, on="arm", how="left")


def _changed(clean: pd.DataFrame, degraded: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What a degradation changes, for every arm."""
    frames = []
    for arm in degraded["arm"].unique():
        before = _values(clean[clean["arm"] == arm], metric).assign(arm="")
        after = _values(degraded[degraded["arm"] == arm], metric)
        if len(before) and len(after):
            pairs = compare(pd.concat([before, after]), "").rename(columns={"units": "pairs"})
            scored = degraded[degraded["arm"] == arm].dropna(subset=metric)
            means = {"units": len(after), "cases": scored["case"].nunique()}
            means |= {"mean": after["value"].mean(), "against": CLEAN}
            frames.append(pairs.assign(**means).drop(columns=["p", "p_holm"]))
    return pd.concat(frames) if frames else pd.DataFrame(columns=["arm"])


def _ranked(scores: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    values = _values(scores, metric.key)
    counts = values["unit"].value_counts()
    arms = values["arm"].nunique()
    if arms < 2:
        return pd.DataFrame(columns=["arm"])
    common = int((counts == arms).sum())
    return rank(values, metric.better == "↑").assign(units=common)


def _joined(
    frames: Sequence[pd.DataFrame], columns: Sequence[str], results: Results | None
) -> pd.DataFrame:
    """One frame; within a group of rows the arms stand in their order of display."""
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(filled, ignore_index=True).reindex(columns=columns)
    if results is None:
        return frame
    order = {arm: i for i, arm in enumerate(results.arms)}
    frame["order"] = frame["arm"].map(order)
    keys = [key for key in KEYS if key != "arm"]
    frame["group"] = frame.groupby(keys, sort=False).ngroup()
    return frame.sort_values(["group", "order"], kind="stable").drop(columns=["group", "order"])


def _cost(results: Results) -> pd.DataFrame:
    """What the trainings took."""
    cells = results.trainings()
    rows = []
    for configuration in results.configurations():
        for arm in results.arms:
            asked = cells[(cells["configuration"] == configuration) & (cells["arm"] == arm)]
            if asked.empty:
                continue
            done = asked[asked["status"] == "done"]
            epoch = done["seconds_per_epoch"].astype(float)
            memory = done.dropna(subset="peak_memory_mib")
            kinds = [str(kind) for kind in memory["memory_kind"].unique()]
            rows.append(
                {
                    "configuration": configuration,
                    "arm": arm,
                    "trainings": len(asked),
                    "done": len(done),
                    "epochs": done["epochs"].astype(float).median(),
                    "seconds_per_epoch": epoch.median(),
                    "fastest": epoch.min(),
                    "slowest": epoch.max(),
                    "seconds": done["seconds"].astype(float).median(),
                    "total_seconds": done["seconds"].astype(float).sum() if len(done) else math.nan,
                    "peak_memory_mib": memory["peak_memory_mib"].astype(float).max(),
                    "memory_kind": " and ".join(kinds),
                }
            )
    cost = pd.DataFrame(rows)
    if cost.empty:
        return cost
    base = cost[cost["arm"] == results.baseline].set_index("configuration")
    for column, ratio in (
        ("seconds_per_epoch", "times_epoch"),
        ("seconds", "times_seconds"),
        ("peak_memory_mib", "times_memory"),
    ):
        cost[ratio] = cost[column] / cost["configuration"].map(base[column])
    alike = cost["memory_kind"] == cost["configuration"].map(base["memory_kind"])
    cost["times_memory"] = cost["times_memory"].where(alike)
    return cost
