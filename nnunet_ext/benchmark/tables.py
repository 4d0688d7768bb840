"""The tables of a report."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from nnunet_ext._common.console import duration, plural
from nnunet_ext.benchmark.analysis import Analysis, samples, unit_name
from nnunet_ext.benchmark.page import Cell, Table
from nnunet_ext.benchmark.results import ALL_FOLDS, CLEAN, TEST
from nnunet_ext.evaluation.metrics import DICE, METRIC, METRICS

Record = Mapping[str, Any]

MISSING = "\N{EN DASH}"
MOST_CASES = 200
"""So many cases are shown in the page, the worst; the file of scores has all."""
READING = (
    "Bold: better or worse than the baseline; in the page, blue is better, orange is worse and "
    "green is equivalent. +n trainings: how many more of each arm would decide."
)


def number(value: float, decimals: int = DICE.decimals, signed: bool = False) -> str:
    """A number with a true minus sign; no sign at zero, a dash for a missing one."""
    if pd.isna(value):
        return MISSING
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def evaluation_title(evaluation: str) -> str:
    """How an evaluation is called on the page."""
    return {CLEAN: "Held-out cases", TEST: "Test set"}.get(evaluation, evaluation)


def difference(row: Record) -> str:
    """A difference with its interval."""
    decimals = METRIC[row["metric"]].decimals
    found, low, high = (number(row[key], decimals, True) for key in ("difference", "low", "high"))
    return f"{found} (no interval)" if low == MISSING else f"{found} [{low}, {high}]"


def measured(row: Record) -> Cell:
    """A mean with its interval, or with its difference to the baseline and how sure that is."""
    decimals = METRIC[row["metric"]].decimals
    text, low, high = (number(row[key], decimals) for key in ("mean", "mean_low", "mean_high"))
    if math.isnan(row["difference"]):
        return Cell(text, (f"[{low}, {high}]",) if low != MISSING else ())
    details = [difference(row)]
    if not math.isnan(row["p_holm"]):
        details.append("p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}")
    if row["pairs"] < row["most"]:
        details.append(f"over {row['pairs']:.0f} in common")
    return Cell(text, tuple(details), row["verdict"])


def verdict(row: Record) -> Cell:
    """What a comparison comes to, and what would decide it."""
    more = row["further_trainings"]
    further = () if pd.isna(more) else (f"+{plural(int(more), 'training')}",)
    return Cell("" if pd.isna(row["verdict"]) else row["verdict"], further)


def rank(row: Record, decimals: int) -> Cell:
    """A rank, its range, and how often the arm is first."""
    place, low, high = (number(row[key], decimals) for key in ("rank", "rank_low", "rank_high"))
    if low == MISSING:
        return Cell(place)
    return Cell(f"{place} [{low}, {high}]", (f"{100 * row['first']:.0f} % first",))


def arms_table(arms: Mapping[str, Record]) -> Table:
    """What the arms are."""
    remarks = ("instead of", "weights of")
    rows = [
        {
            "arm": arm,
            "trainer": Cell(
                str(facts.get("trainer", MISSING)),
                tuple(f"{key} {facts[key]}" for key in remarks if facts.get(key)),
            ),
            "plans": str(facts.get("plans", MISSING)),
            "description": str(facts.get("description", "")),
        }
        for arm, facts in arms.items()
    ]
    frame = pd.DataFrame(rows)
    frame = frame if any(frame["description"]) else frame.drop(columns="description")
    return Table("What was compared", frame, words=frame.shape[1])


def glance_table(frame: pd.DataFrame, baselines: Iterable[str]) -> Table:
    """Mean Dice of every arm (rows) everywhere, from rows of comparisons."""
    shown = frame.assign(shown=[measured(row) for row in frame.to_dict("records")])
    shown = shown.pivot(index="arm", columns="name", values="shown")
    shown = shown.reindex(index=frame["arm"].unique(), columns=frame["name"].unique())
    against = f", with the difference to {' or '.join(baselines)}" * (len(shown) > 1)
    return Table(f"Mean Dice{against} [95 % interval]", shown.reset_index())


def rank_table(caption: str, frame: pd.DataFrame, decimals: int = 0) -> Table:
    """Ranks by arm (rows, best Dice first) and metric."""
    shown = frame.assign(shown=[rank(row, decimals) for row in frame.to_dict("records")])
    shown = shown.pivot(index="arm", columns="metric", values="shown")
    shown = shown.reindex(frame.loc[frame["metric"] == DICE.key, "arm"])
    names = {metric.key: metric.name for metric in METRICS if metric.key in shown}
    return Table(caption, shown[list(names)].rename(columns=names).reset_index())


class Tables(Analysis):
    """Makes the tables of one data set. Those that may be missing are yielded."""

    def unfinished(self) -> Iterator[Table]:
        """Cells that are not done."""
        cells = self.results.cells
        cells = cells[cells["status"] != "done"].fillna({"reason": ""})
        fold = cells["fold"].map(lambda fold: "test set" if fold == ALL_FOLDS else f"fold {fold}")
        cells = cells.assign(runs=fold + ", seed " + cells["seed"].astype(str))
        groups = cells.groupby(["arm", "configuration", "status", "reason"], sort=False)
        frame = groups[["runs", "log"]].agg("; ".join).reset_index()
        if len(frame):
            yield Table("Runs that are not finished", frame, words=frame.shape[1])

    def answer(self, configuration: str, evaluation: str) -> Table:
        """Every metric of every arm, with its difference to the baseline, and the verdict."""
        frame = self.rows(configuration, evaluation, "all")
        unit = unit_name(self.results.of(configuration, evaluation))
        caption = f"Means over {unit}s and trainings{self._and_difference()}"
        if len(self.results.arms) < 2:
            return self._measured(frame, f"{caption} [95 % interval]")
        caption += " and its p-value, adjusted for several arms (Holm)"
        dice = frame[frame["metric"] == DICE.key]
        verdicts = pd.Series([verdict(row) for row in dice.to_dict("records")], dice["arm"])
        table = self._measured(frame, caption, note=READING)
        table.frame.insert(2, "verdict", table.frame["arm"].map(verdicts))
        return table

    def grouped(self, configuration: str, evaluation: str, scope: str) -> Iterator[Table]:
        """The same for every "label", every "domain" or domains that training has "seen"."""
        captions = {
            "label": "Labels one by one",
            "domain": "Domains one by one, and the worst of each arm",
            "seen": "Domains that are not among the training cases, and domains that are",
        }
        frame = self.rows(configuration, evaluation, scope)
        if frame.empty:
            return
        table = self._measured(frame, captions[scope] + self._and_difference(), scope)
        if scope == "domain":
            by_arm = frame.sort_values("mean", kind="stable").groupby(["metric", "arm"])
            worst = {True: by_arm.first(), False: by_arm.last()}
            for arm in frame["arm"].unique():
                row = {"domain": "the worst of each arm", "arm": arm}
                for metric in METRICS:
                    found = worst[metric.higher].loc[(metric.key, arm)]
                    text = number(found["mean"], metric.decimals)
                    row[metric.head(self.results.distance_unit())] = Cell(text, (found["name"],))
                table.frame.loc[len(table.frame)] = row
        yield table

    def degradations(self, configuration: str) -> Iterator[Table]:
        """Every metric under every degradation, and what it changes."""
        names = [name for name in self.results.evaluations(configuration) if name != TEST]
        if not set(names) - {CLEAN}:
            return
        frame = pd.concat(self.rows(configuration, n, "all").assign(name=n) for n in names)
        caption = (
            f"Degraded images of the held-out cases{self._and_difference()} under the same "
            "degradation; vs. clean: the change of Dice that it makes"
        )
        table = self._measured(frame, caption, "degradation", READING)
        change = pd.concat(self.rows(configuration, name, "change") for name in names)
        change = change[change["metric"] == DICE.key].to_dict("records")
        found = {(row["name"], row["arm"]): difference(row).split(" ", 1) for row in change}
        keys = [*zip(table.frame["degradation"], table.frame["arm"], strict=True)]
        shown = [Cell(found[key][0], (found[key][1],)) if key in found else "" for key in keys]
        table.frame.insert(3, "Dice vs. clean", shown)
        yield table

    def seeds(self, configuration: str, evaluation: str) -> Table:
        """Mean Dice of every seed that has predicted all cases, and how far they lie apart."""
        means, cases = self.seed_means(configuration, evaluation)
        spread = (means.max(axis=1) - means.min(axis=1)).where(means.count(axis=1) > 1)
        frame = means.rename(columns=lambda seed: f"seed\N{NO-BREAK SPACE}{seed}")
        frame = frame.assign(range=spread).map(number).rename_axis("arm").reset_index()
        caption = f"Mean Dice of every seed that has predicted all {plural(cases, 'case')}"
        return Table(caption, frame)

    def ranks(self, configuration: str, evaluation: str) -> Iterator[Table]:
        """Ranks and how sure they are."""
        frame = self.ranking
        frame = frame[
            (frame["configuration"] == configuration) & (frame["evaluation"] == evaluation)
        ]
        unit = unit_name(self.results.of(configuration, evaluation))
        caption = (
            f"Ranks by the mean over the {unit}s that all arms have, with 95 % range when {unit}s "
            "and trainings are drawn anew, and how often the arm is first"
        )
        if len(frame):
            yield rank_table(caption, frame)

    def empties(self, configuration: str, evaluation: str) -> Iterator[Table]:
        """How often labels were missed entirely or found where there are none."""
        scores = self.results.of(configuration, evaluation)
        heads = {"prediction": "missed entirely", "truth": "found where there is none"}
        heads |= {"both": "rightly absent", "": "in both"}
        counts = pd.crosstab(scores["arm"], scores["empty"])
        counts = counts.reindex([arm for arm in self.results.arms if arm in counts.index])
        counts = counts.reindex(columns=list(heads), fill_value=0).rename(columns=heads)
        caption = "Labels that are absent from prediction or truth, counted over cases and seeds"
        if any(scores["empty"] != ""):
            yield Table(caption, counts.astype(str).reset_index())

    def costs(self, configuration: str) -> Iterator[Table]:
        """What training took, if that is known."""
        baseline = self.results.baseline

        def cells(key: str, row: Record, text: str, *details: str) -> Cell:
            ratio = row[f"times_{key}"]
            known = row["arm"] != baseline and not math.isnan(ratio)
            return Cell(text, (*details, *([f"{ratio:.2f} \N{MULTIPLICATION SIGN}"] * known)))

        rows = [
            {
                "arm": row["arm"],
                "done": f"{row['done']:.0f} of {row['trainings']}",
                "epochs": number(row["epochs"], 0),
                "seconds per epoch": cells(
                    "seconds_per_epoch",
                    row,
                    number(row["seconds_per_epoch"], 1),
                    *[f"{row['fastest']:.1f} to {row['slowest']:.1f}"] * (row["done"] > 1),
                ),
                "one training": cells("seconds", row, duration(row["seconds"])),
                "all trainings": duration(row["total_seconds"]),
                "peak memory (MiB)": cells(
                    "peak_memory_mib", row, number(row["peak_memory_mib"], 0), row["memory_kind"]
                ),
            }
            for row in self.cost[self.cost["configuration"] == configuration].to_dict("records")
            if row["total_seconds"] > 0
        ]
        caption = (
            "Cost of training: medians over the trainings that are done (with the fastest and the "
            f"slowest; \N{MULTIPLICATION SIGN}: relative to {baseline}), their sum, and the "
            "highest peak of memory"
        )
        note = (
            "Wall time on the hardware named below, whatever else ran there. Memory at its peak: "
            "on a GPU what PyTorch reserved, in RAM the resident set of the process."
        )
        if rows:
            yield Table(caption, pd.DataFrame(rows), note=note)

    def cases(self, configuration: str, evaluation: str) -> Table:
        """Mean Dice of every case."""
        scores = self.results.of(configuration, evaluation)
        means = samples(scores, DICE.key, unit="case").groupby(["subject", "arm"])["value"].mean()
        means = means.unstack("arm").reindex(columns=[*self.results.arms]).rename_axis("case")
        means = means.loc[means.mean(axis=1).sort_values(kind="stable").index[:MOST_CASES]]
        facts = scores.drop_duplicates("case").set_index("case")
        more = {"subject": unit_name(scores) == "subject", "domain": any(scores["domain"] != "")}
        facts = facts.loc[means.index, [name for name in more if more[name]]]
        frame = facts.join(means.map(number)).reset_index()
        most = f"; the worst {MOST_CASES}" * (scores["case"].nunique() > MOST_CASES)
        caption = f"Dice of every case, mean over its labels and trainings, worst first{most}"
        note = "All metrics of every label and training, with their files, are in scores.csv."
        return Table(caption, frame, 1 + facts.shape[1], note=note)

    # ----------------------------------------------------------------------------------- parts

    def _measured(
        self, frame: pd.DataFrame, caption: str, group: str = "", note: str = ""
    ) -> Table:
        """Means by name and arm (rows) and metric, with the numbers of subjects and trainings."""
        shown = frame.assign(shown=[measured(row) for row in frame.to_dict("records")])
        shown = shown.pivot(index=["name", "arm"], columns="metric", values="shown")
        heads = {metric.key: metric.head(self.results.distance_unit()) for metric in METRICS}
        shown = shown.reindex(columns=list(heads)).rename(columns=heads)
        dice = frame[frame["metric"] == DICE.key].set_index(["name", "arm"])
        counts = dice[["subjects", "trainings"]].rename(
            columns={"subjects": f"{unit_name(self.results.scores)}s"}
        )
        every = pd.MultiIndex.from_product([frame["name"].unique(), self.results.arms])
        counts = counts.reindex(every, fill_value=0).astype(int).astype(str)
        shown = shown.reindex(every).join(counts).rename_axis([group or "name", "arm"])
        shown = shown.reset_index() if group else shown.droplevel("name").reset_index()
        return Table(caption, shown, 1, group, note)

    def _and_difference(self) -> str:
        if len(self.results.arms) < 2:
            return ""
        return f", with the difference to {self.results.baseline} [95 % interval]"
