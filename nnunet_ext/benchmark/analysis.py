"""The numbers of a report: what its tables and plots show and its files hold."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ext.benchmark.results import CLEAN, SEEN, TEST, UNSEEN, Results
from nnunet_ext.evaluation.metrics import DICE, METRICS, Metric
from nnunet_ext.evaluation.statistics import difference, holm, mean_interval, ranks

LEVEL = 0.05
"""Adjusted p-values from here on leave a comparison undecided."""


def samples(scores: pd.DataFrame, metric: str, unit: str = "subject") -> pd.DataFrame:
    """Average one metric until each subject counts once per arm and training.

    The mean is taken over the labels of a prediction, then over the cases of a subject. NaNs are
    skipped at each step: a metric is NaN only where neither truth nor prediction has a label.
    Arms can differ in that only if the truth lacks it: an arm that rightly stays silent gets no
    value for the label, one with a false positive gets the worst. If the case has no other label,
    however, it drops out of the silent arm, and with it out of the comparison: false positives on
    empty cases have to be counted by themselves (``Measures.empty``).

    Args:
        scores: Scores of one configuration and evaluation; a column dataset is kept.
        metric: Column to average.
        unit: Column that names the subjects, ``"subject"`` or ``"case"``.

    Returns:
        Columns arm, subject, training (fold and seed), fold, seed, value; no NaN.
    """
    keys = ["dataset"] * ("dataset" in scores) + ["arm", unit, "seed", "fold"]
    cases = list(dict.fromkeys([*keys, "case"]))
    values = scores.groupby(cases, sort=False)[metric].mean().dropna()
    values = values.groupby(keys, sort=False).mean().reset_index(name="value")
    values["training"] = "seed " + values["seed"].astype(str) + ", fold " + values["fold"]
    return values.rename(columns={unit: "subject"})


def unit_name(scores: pd.DataFrame) -> str:
    """What the units of these scores are: "subject" if cases are grouped, else "case"."""
    return "case" if scores["subject"].equals(scores["case"]) else "subject"


KEYS = ["configuration", "evaluation", "scope", "name", "metric", "arm"]
COLUMNS = [
    *KEYS,
    *("subjects", "most", "cases", "trainings", "mean", "mean_low", "mean_high", "against"),
    *("pairs", "arm_mean", "baseline_mean", "difference", "low", "high", "df", "p", "p_holm"),
    *("verdict", "further_trainings"),
]
"""Of the comparison; ``most`` is the number of subjects of the arm that has most."""


@dataclass(frozen=True)
class Analysis:
    """All numbers that a report derives from the results of one data set.

    Attributes:
        results: What was measured.
    """

    results: Results

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """One row per configuration, evaluation, scope, name, metric and arm.

        Means with their interval, and, if there is something to compare with (``against``: the
        baseline, or "clean" for the change that a degradation makes), the columns of
        :class:`~nnunet_ext.evaluation.statistics.Difference`, ``pairs`` (subjects of both arms)
        and, for whole evaluations and under "seen", ``p_holm``. Scope is what the scores were
        restricted to: "all", "label", "seen", "domain" (name says which). Under "change" stands
        each arm under a degradation against itself without.
        """
        rows: list[dict[str, Any]] = []
        for configuration in self.results.configurations():
            for evaluation in self.results.evaluations(configuration):
                place = {"configuration": configuration, "evaluation": evaluation}
                scores = self.results.of(configuration, evaluation)
                for metric in METRICS:
                    for scope, name, part in self._parts(scores, evaluation):
                        found = self._compared(part, metric, tested=scope in ("all", "seen"))
                        rows += [place | {"scope": scope, "name": name} | row for row in found]
                    if evaluation not in (CLEAN, TEST):
                        clean = self.results.of(configuration, CLEAN)
                        about = place | {"scope": "change", "name": evaluation}
                        rows += [about | row for row in self._changed(clean, scores, metric)]
        return pd.DataFrame(rows, columns=COLUMNS)

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """Ranks of the arms in every configuration, main evaluation and metric."""
        frames = []
        for configuration in self.results.configurations():
            for evaluation in self.results.main(configuration):
                scores = self.results.of(configuration, evaluation)
                place = {"configuration": configuration, "evaluation": evaluation}
                for metric in METRICS:
                    values = samples(scores, metric.key)
                    if values["arm"].nunique() > 1:
                        ranked = ranks(values, higher_is_better=metric.higher)
                        frames.append(ranked.assign(**place, metric=metric.key))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=KEYS)

    def rows(self, configuration: str, evaluation: str, scope: str) -> pd.DataFrame:
        """Rows of the comparison."""
        frame = self.comparison
        place = (frame["configuration"] == configuration) & (frame["evaluation"] == evaluation)
        return frame[place & (frame["scope"] == scope)]

    def seed_means(self, configuration: str, evaluation: str) -> tuple[pd.DataFrame, int]:
        """Mean Dice by arm (rows) and seed, NaN for a seed that lacks cases; number of cases."""
        scores = self.results.of(configuration, evaluation).dropna(subset=DICE.key)
        cases = scores.groupby(["arm", "seed"])["case"].nunique()
        values = samples(scores, DICE.key).groupby(["arm", "seed", "subject"])["value"].mean()
        means = values.groupby(["arm", "seed"]).mean()[cases == cases.max()].unstack("seed")
        return means.reindex(self.results.arms), int(cases.max())

    def _parts(
        self, scores: pd.DataFrame, evaluation: str
    ) -> Iterator[tuple[str, str, pd.DataFrame]]:
        """The scores, and the parts of them that are looked at one by one."""
        yield "all", "", scores
        if evaluation not in (CLEAN, TEST):
            return
        unseen = scores["seen"].map(lambda seen: f" ({UNSEEN})" * (seen == UNSEEN))
        names = self.results.label_names()
        label = scores["label"].map(lambda key: names.get(key, key))
        scores = scores.assign(domain=scores["domain"] + unseen, label=label)
        columns = {
            "label": list(dict.fromkeys([*names.values(), *scores["label"]])),
            "seen": [name for name in (UNSEEN, SEEN) if name in set(scores["seen"])],
            "domain": sorted(set(scores["domain"]) - {""}),
        }
        for column, values in columns.items():
            for value in values if len(values) > 1 else ():
                part = scores[scores[column] == value]
                if len(part):
                    yield column, value, part

    def _compared(
        self, scores: pd.DataFrame, metric: Metric, tested: bool
    ) -> Iterator[dict[str, Any]]:
        """Mean of every arm, and its difference to the baseline where both have values."""
        values = samples(scores, metric.key)
        cases = scores.dropna(subset=metric.key).groupby("arm")["case"].nunique()
        baseline, arms = self.results.baseline, set(values["arm"])
        rows = []
        for arm in (arm for arm in self.results.arms if arm in arms):
            row = self._mean(values, arm, metric) | {"cases": cases[arm]}
            if arm != baseline and baseline in arms:
                paired = self.results.paired(arm, baseline)
                row |= self._difference(values, arm, baseline, metric, paired)
            rows.append(row)
        most = max((row["subjects"] for row in rows), default=0)
        p = np.array([row.get("p") if tested else None for row in rows], float)
        for row, adjusted in zip(rows, holm(p), strict=True):
            if adjusted >= LEVEL and row["verdict"] in ("better", "worse"):
                row["verdict"] = "undecided"
            yield row | {"most": most, "p_holm": adjusted}

    def _changed(
        self, clean: pd.DataFrame, degraded: pd.DataFrame, metric: Metric
    ) -> Iterator[dict[str, Any]]:
        """What a degradation changes, for every arm."""
        for arm in self.results.arms:
            parts = {CLEAN: clean, arm: degraded}
            values = pd.concat(
                samples(part[part["arm"] == arm], metric.key).assign(arm=name)
                for name, part in parts.items()
            )
            if values["arm"].nunique() == len(parts):
                row = self._mean(values, arm, metric)
                yield row | self._difference(values, arm, CLEAN, metric, paired=True)

    def _mean(self, values: pd.DataFrame, arm: str, metric: Metric) -> dict[str, Any]:
        mine = values[values["arm"] == arm]
        mean = mean_interval(mine, metric.bounds)
        return {
            "arm": arm,
            "metric": metric.key,
            "subjects": mine["subject"].nunique(),
            "trainings": mine["training"].nunique(),
            "mean": mean.mean,
            "mean_low": mean.low,
            "mean_high": mean.high,
        }

    def _difference(
        self, values: pd.DataFrame, arm: str, baseline: str, metric: Metric, paired: bool
    ) -> dict[str, Any]:
        found = difference(
            values,
            arm,
            baseline,
            paired=paired,
            margin=self.results.margin if metric is DICE else 0.0,
            higher_is_better=metric.higher,
        )
        row = asdict(found) | {"against": baseline}
        return row | {"pairs": row.pop("subjects")}

    @cached_property
    def cost(self) -> pd.DataFrame:
        """What the finished trainings took, one row per configuration and arm.

        trainings, done, epochs, seconds_per_epoch (median over trainings, with fastest and
        slowest), seconds (median of a training), total_seconds, peak_memory_mib (largest),
        memory_kind, and "times_..." of the last but one, relative to the baseline.
        """
        keys = ["configuration", "arm"]
        numbers = ("epochs", "seconds_per_epoch", "seconds", "peak_memory_mib")
        cells = self.results.trainings().astype(dict.fromkeys(numbers, float))
        done = cells[cells["status"] == "done"].groupby(keys, sort=False)
        cost = cells.groupby(keys, sort=False).size().to_frame("trainings")
        cost["done"] = done.size().reindex(cost.index, fill_value=0)
        cost = cost.join(done[list(numbers)].median())
        cost = cost.join(done["seconds_per_epoch"].agg(fastest="min", slowest="max"))
        cost["total_seconds"] = done["seconds"].sum()
        cost["peak_memory_mib"] = done["peak_memory_mib"].max()
        cost["memory_kind"] = done["memory_kind"].agg(lambda kinds: " and ".join(kinds.unique()))
        cost = cost.reset_index()
        base = cost[cost["arm"] == self.results.baseline].set_index("configuration")
        for column in numbers[1:]:
            cost[f"times_{column}"] = cost[column] / cost["configuration"].map(base[column])
        alike = cost["memory_kind"] == cost["configuration"].map(base["memory_kind"])
        cost["times_peak_memory_mib"] = cost["times_peak_memory_mib"].where(alike)
        return cost
