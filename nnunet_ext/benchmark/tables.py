"""The tables of a report."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from nnunet_ext.benchmark.analysis import DICE, METRICS, Analysis, Metric, unit_name
from nnunet_ext.benchmark.page import Cell, Row, Table
from nnunet_ext.benchmark.results import ALL_FOLDS, CLEAN, TEST, Results, in_folder
from nnunet_ext.evaluation.statistics import unit_values

MISSING = "\N{EN DASH}"
MOST_CASES = 200
"""So many cases are shown in the page, the worst; the file of scores has all."""


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number with a true minus sign; no sign at zero, a dash for a missing one."""
    if math.isnan(value):
        return MISSING
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """A time span, as precise as people read it."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def plural(count: int, word: str) -> str:
    """A count with its noun."""
    return f"{count} {word}{'s' * (count != 1)}"


def evaluation_title(evaluation: str) -> str:
    """How an evaluation is called on the page."""
    return {CLEAN: "Held-out cases", TEST: "Test set"}.get(evaluation, evaluation)


@dataclass(frozen=True)
class Tables:
    """Makes the tables of a page.

    Attributes:
        results: What was measured.
        analysis: The numbers.
        colours: Colour of each arm.
        root: What paths in the results are relative to.
        folder: Where the page lies.
    """

    results: Results
    analysis: Analysis
    colours: dict[str, str]
    root: Path
    folder: Path

    def arms(self) -> Table:
        """What the arms are."""
        rows = []
        for arm, facts in self.results.arms.items():
            purpose = str(facts.get("description") or facts.get("purpose") or "")
            trainer, plans = (str(facts.get(key) or MISSING) for key in ("trainer", "plans"))
            remarks = [
                f"{key} {facts[key]}" for key in ("instead of", "weights of") if facts.get(key)
            ]
            cells = [self._arm(arm), Cell(trainer, tuple(remarks)), Cell(plans), Cell(purpose)]
            rows.append(Row(cells, self.colours[arm]))
        heads = ["arm", "trainer", "plans", "description"]
        if not any(row.cells[-1].text for row in rows):
            heads, rows = heads[:-1], [Row(row.cells[:-1], row.colour) for row in rows]
        return Table("What was compared", heads, rows, words=len(heads))

    def unfinished(self) -> Table | None:
        """Cells that are not done, if there are any."""
        cells = self.results.cells
        alike = ["arm", "configuration", "status", "reason"]
        unfinished = cells[cells["status"] != "done"].fillna({"reason": ""})
        rows = []
        for (arm, configuration, status, reason), runs in unfinished.groupby(alike, sort=False):
            folds = {
                fold: " and ".join(str(seed) for seed in part["seed"])
                for fold, part in runs.assign(fold=runs["fold"].map(_fold)).groupby("fold")
            }
            which = "; ".join(f"{fold}, seed {seeds}" for fold, seeds in folds.items())
            logs = () if status == "missing" else tuple(self._logs(runs))
            shown = [Cell(str(text)) for text in (arm, configuration, status)]
            shown += [Cell(which, links=logs), Cell(str(reason))]
            rows.append(Row(shown, self.colours.get(str(arm), "")))
        heads = ["arm", "configuration", "status", "runs", "reason"]
        return Table("Runs that are not finished", heads, rows, words=5) if rows else None

    def glance(self, pairs: Iterable[tuple[str, str]]) -> Table:
        """Mean Dice in all configurations and evaluations that have sections of their own."""
        columns = {
            f"{configuration}, {evaluation_title(evaluation).lower()}": self._by_arm(
                self.analysis.rows(configuration, evaluation, "all"), DICE
            )
            for configuration, evaluation in pairs
        }
        rows = [
            self._row(arm, [self._metric(by_arm.get(arm), DICE) for by_arm in columns.values()])
            for arm in self.results.arms
        ]
        caption = f"Mean Dice{self._and_difference()}; each column is explained in its own section"
        return Table(caption, ["arm", *columns], rows)

    def answer(self, configuration: str, evaluation: str) -> Table:
        """Every metric of every arm, with its difference to the baseline."""
        frame = self.analysis.rows(configuration, evaluation, "all")
        caption = f"Means over {self._units(configuration, evaluation)}s"
        if len(self.results.arms) > 1:
            caption += f"{self._and_difference()} and its p-value, adjusted for several arms (Holm)"
        return self._metrics_table(frame, caption, configuration, evaluation, p=True)

    def labels(self, configuration: str, evaluation: str) -> Table | None:
        """The same for every label."""
        frame = self.analysis.rows(configuration, evaluation, "label")
        named = frame.assign(name=frame["name"].map(self.label_name))
        return self._grouped(named, "label", "Labels one by one", configuration, evaluation)

    def seen(self, configuration: str, evaluation: str) -> Table | None:
        """The same for domains that training has seen, and for others."""
        frame = self.analysis.rows(configuration, evaluation, "seen")
        caption = "Domains that are not among the training cases, and domains that are"
        return self._grouped(frame, "domains", caption, configuration, evaluation)

    def domains(self, configuration: str, evaluation: str) -> Table | None:
        """The same for every domain, and the worst one of every arm."""
        frame = self.analysis.rows(configuration, evaluation, "domain")
        table = self._grouped(frame, "domain", "Domains one by one", configuration, evaluation)
        if table is not None:
            table.rows = [*table.rows, *self._worst_domains(frame)]
        return table

    def _worst_domains(self, frame: pd.DataFrame) -> Iterator[Row]:
        for arm, rows in frame.groupby("arm", sort=False):
            cells = [Cell("")]
            for metric in METRICS:
                means = rows[rows["metric"] == metric.key].set_index("name")["mean"]
                worst = means.idxmin() if metric.better == "↑" else means.idxmax()
                cells.append(Cell(number(means[worst], metric.decimals), (str(worst),)))
            yield self._row(str(arm), cells, "the worst of each arm")

    def degradations(self, configuration: str) -> Table | None:
        """Every metric under every degradation, and what it changes."""
        names = self._degradations(configuration)
        if not names:
            return None
        unit = self._units(configuration, names[0])
        rows = []
        for name in ([CLEAN] if CLEAN in self.results.evaluations(configuration) else []) + names:
            frame = self.analysis.rows(configuration, name, "all")
            change = self._by_arm(self.analysis.rows(configuration, name, "change"), DICE)
            group = "none (held-out cases as they are)" if name == CLEAN else name
            for row in self._metric_rows(frame, group, p=False):
                arm = row.cells[0].text
                rows.append(Row([*row.cells, self._change(change.get(arm))], row.colour, group))
        heads = ["arm", f"{unit}s", *(self._head(metric) for metric in METRICS)]
        caption = (
            f"Degraded images of the held-out cases: means over {unit}s{self._and_difference()} "
            "under the same degradation; on the right, the change of Dice that it makes"
        )
        return Table(
            caption,
            [*heads, "Dice vs. none"],
            rows,
            group_head="degradation",
            note=self._reading_note(),
        )

    def seeds(self, configuration: str, evaluation: str) -> Table:
        """Mean Dice of every seed and how far they lie apart."""
        means = self.analysis.seed_means(configuration, evaluation)
        rows = []
        for arm in self.results.arms:
            mine = means.loc[arm] if arm in means.index else means.mean() * math.nan
            shown = [*mine, mine.max() - mine.min() if mine.count() > 1 else math.nan]
            rows.append(self._row(arm, [Cell(number(mean, DICE.decimals)) for mean in shown]))
        frame = self.analysis.rows(configuration, evaluation, "seed")
        cases = plural(int(frame["cases"].max()), "case")
        heads = [f"seed\N{NO-BREAK SPACE}{name}" for name in means.columns]
        caption = f"Mean Dice of every seed that has predicted all {cases}"
        return Table(caption, ["arm", *heads, "range"], rows)

    def ranking(self, configuration: str, evaluation: str) -> Table | None:
        """Ranks and how sure they are."""
        frame = self.analysis.ranking
        frame = frame[
            (frame["configuration"] == configuration) & (frame["evaluation"] == evaluation)
        ]
        if frame.empty:
            return None
        rows = []
        for arm in frame[frame["metric"] == DICE.key]["arm"]:
            cells = []
            for metric in METRICS:
                found = frame[(frame["arm"] == arm) & (frame["metric"] == metric.key)]
                cells.append(_rank_cell(found.iloc[0].to_dict()) if len(found) else Cell(MISSING))
            rows.append(self._row(str(arm), cells))
        unit = self._units(configuration, evaluation)
        caption = (
            f"Ranks by the mean over the {plural(int(frame['units'].min()), unit)} that all arms "
            f"have, with 95 % range when {unit}s are resampled, and how often the arm is first"
        )
        return Table(caption, ["arm", *(metric.name for metric in METRICS)], rows)

    def empties(self, configuration: str, evaluation: str) -> Table | None:
        """How often labels were missed entirely or found where there are none."""
        scores = self._scores(configuration, evaluation)
        if not scores["empty"].isin(["prediction", "truth", "both"]).any():
            return None
        counts = pd.crosstab(scores["arm"], scores["empty"])
        rows = []
        for arm in self.results.arms:
            if arm in counts.index:
                mine = counts.loc[arm]
                shown = [int(mine.get(kind, 0)) for kind in ("prediction", "truth", "both", "")]
                rows.append(self._row(arm, [Cell(str(count)) for count in shown]))
        heads = ["arm", "missed entirely", "found where there is none", "rightly absent", "in both"]
        caption = "Labels that are absent from prediction or truth, counted over cases and seeds"
        return Table(caption, heads, rows)

    def cost(self, configuration: str) -> Table:
        """What training took."""
        frame = self.analysis.cost
        rows = []
        for cost in frame[frame["configuration"] == configuration].to_dict("records"):
            other = cost["arm"] != self.results.baseline
            spread = (f"{cost['fastest']:.1f} to {cost['slowest']:.1f}",)
            memory = number(cost["peak_memory_mib"], 0)
            more = _ratio(cost["times_memory"], other)
            epoch = number(cost["seconds_per_epoch"], 1)
            cells = [
                Cell(f"{cost['done']} of {cost['trainings']}"),
                Cell(number(cost["epochs"], 0)),
                Cell(epoch, _ratio(cost["times_epoch"], other) + spread * (cost["done"] > 1)),
                Cell(duration(cost["seconds"]), _ratio(cost["times_seconds"], other)),
                Cell(duration(cost["total_seconds"])),
                Cell(memory, ((cost["memory_kind"],) if cost["memory_kind"] else ()) + more),
            ]
            rows.append(self._row(str(cost["arm"]), cells))
        heads = ["arm", "done", "epochs", "seconds per epoch", "one training"]
        relative = f", relative to {self.results.baseline} below" * (len(self.results.arms) > 1)
        caption = (
            "Cost of training: medians over the trainings that are done (with the fastest and the "
            f"slowest), their sum, and the highest peak of memory{relative}"
        )
        note = (
            "Wall time on the hardware named below, whatever else ran there. Memory at its peak: "
            "on a GPU what PyTorch reserved, in RAM the resident set of the process."
        )
        return Table(caption, [*heads, "all trainings", "peak memory (MiB)"], rows, note=note)

    def cases(self, configuration: str, evaluation: str) -> Table:
        """Dice of every case and seed, each with a link to where it comes from, if that is near."""
        scores = self._scores(configuration, evaluation)
        means = unit_values(scores, DICE.key, unit="case")
        wide = means.pivot(index="unit", columns="arm", values="value").astype(float)
        worst = wide.mean(axis=1).sort_values(kind="stable").index
        keys = ["case", "arm", "seed", "fold", "summary"]
        trainings = scores.groupby(keys, sort=True, dropna=False)[DICE.key].mean().reset_index()
        sources = dict(iter(trainings.groupby(["case", "arm"])))
        facts = scores.drop_duplicates("case").set_index("case")
        extra = [
            column
            for column, shown in (
                ("subject", unit_name(scores) == "subject"),
                ("domain", bool((scores["domain"] != "").any())),
            )
            if shown
        ]
        arms = [arm for arm in self.results.arms if arm in wide]
        rows = []
        for case in worst[:MOST_CASES]:
            cells = [Cell(str(case)), *(Cell(str(facts.loc[case, column])) for column in extra)]
            for arm in arms:
                mean = number(wide.loc[case, arm], DICE.decimals)
                found = sources.get((case, arm))
                cells.append(Cell(mean) if found is None else self._with_seeds(mean, found))
            rows.append(Row(cells))
        left_out = f"; the worst {MOST_CASES} of {len(worst)} cases" * (len(worst) > MOST_CASES)
        linked = " with a link to nnU-Net's summary.json" * self._is_near
        caption = (
            "Dice of every case, mean over its labels and the seeds, worst first; below, each "
            f"seed's{linked}{left_out}"
        )
        return Table(
            caption,
            ["case", *extra, *arms],
            rows,
            words=1 + len(extra),
            note="All metrics of every label, with their files, are in scores.csv.",
        )

    def _with_seeds(self, mean: str, trainings: pd.DataFrame) -> Cell:
        seeds = [number(value, DICE.decimals) for value in trainings[DICE.key]]
        if not self._is_near:
            return Cell(mean, tuple(seeds))
        sources = zip(seeds, trainings["summary"], strict=True)
        links = (self._links(**{seed: summary}) for seed, summary in sources)
        return Cell(mean, links=tuple(chain.from_iterable(links)))

    def _logs(self, runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
        for run in runs.to_dict("records"):
            name = f"log of {_fold(run['fold'])}, seed {run['seed']}"
            yield from self._links(**{name: run["log"]})

    def runs(self) -> Table:
        """Every training and every prediction of a test set, with its log."""
        rows = [
            Row(
                [
                    Cell(str(cell["arm"])),
                    Cell(str(cell["configuration"])),
                    Cell(_fold(cell["fold"])),
                    Cell(str(cell["seed"])),
                    Cell(str(cell["status"]), links=self._links(log=cell["log"])),
                    Cell(number(_float(cell["epochs"]), 0)),
                    Cell(number(_float(cell["seconds_per_epoch"]), 1)),
                    Cell(duration(_float(cell["seconds"]) or math.nan)),
                    Cell(number(_float(cell["peak_memory_mib"]), 0), (str(cell["memory_kind"]),)),
                ],
                self.colours.get(str(cell["arm"]), ""),
            )
            for cell in self.results.cells.to_dict("records")
        ]
        heads = ["arm", "configuration", "fold", "seed", "status", "epochs", "s/epoch", "time"]
        return Table("Every run", [*heads, "memory (MiB)"], rows, words=5)

    def label_name(self, key: str) -> str:
        """Name of a label, with its key where the name alone would not tell."""
        name = self.results.labels.get(key, key)
        names = list(self.results.labels.values())
        return name if name and names.count(name) < 2 else f"{name} [{key}]"

    # ----------------------------------------------------------------------------------- parts

    def _scores(self, configuration: str, evaluation: str) -> pd.DataFrame:
        scores = self.results.scores
        return scores[
            (scores["configuration"] == configuration) & (scores["evaluation"] == evaluation)
        ]

    def _units(self, configuration: str, evaluation: str) -> str:
        return unit_name(self._scores(configuration, evaluation))

    def _degradations(self, configuration: str) -> list[str]:
        names = self.results.evaluations(configuration)
        return [name for name in names if name not in (CLEAN, TEST)]

    def _head(self, metric: Metric) -> str:
        return metric.head(self.results.distance_unit())

    def _and_difference(self) -> str:
        if len(self.results.arms) < 2:
            return ""
        return f", with the difference to {self.results.baseline} [95 % interval]"

    def _reading_note(self) -> str:
        if len(self.results.arms) < 2:
            return ""
        return (
            "Bold: the interval excludes 0; in the page, blue is better than the baseline and "
            "orange is worse."
        )

    def _arm(self, arm: str) -> Cell:
        several = len(self.results.arms) > 1
        return Cell(arm, ("baseline",) if several and arm == self.results.baseline else ())

    def _row(self, arm: str, cells: Sequence[Cell], group: str = "") -> Row:
        return Row([self._arm(arm), *cells], self.colours.get(arm, ""), group)

    def _grouped(
        self, frame: pd.DataFrame, what: str, caption: str, configuration: str, evaluation: str
    ) -> Table | None:
        if frame.empty:
            return None
        unit = self._units(configuration, evaluation)
        caption = f"{caption}: means over {unit}s{self._and_difference()}"
        table = self._metrics_table(frame, caption, configuration, evaluation)
        table.group_head = what
        return table

    def _metrics_table(
        self,
        frame: pd.DataFrame,
        caption: str,
        configuration: str,
        evaluation: str,
        p: bool = False,
    ) -> Table:
        rows = [
            row
            for name, part in frame.groupby("name", sort=False)
            for row in self._metric_rows(part, str(name), p)
        ]
        unit = self._units(configuration, evaluation)
        heads = ["arm", f"{unit}s", *(self._head(metric) for metric in METRICS)]
        return Table(caption, heads, rows, note=self._reading_note() if p else "")

    def _metric_rows(self, frame: pd.DataFrame, group: str, p: bool) -> Iterator[Row]:
        by_metric = {metric: self._by_arm(frame, metric) for metric in METRICS}
        most = frame["units"].max()
        for arm in self.results.arms:
            found = by_metric[DICE].get(arm)
            units = "0" if found is None else str(found["units"])
            cells = [
                self._metric(by_arm.get(arm), metric, p, most)
                for metric, by_arm in by_metric.items()
            ]
            yield self._row(arm, [Cell(units), *cells], group)

    def _by_arm(self, frame: pd.DataFrame, metric: Metric) -> dict[str, dict[str, Any]]:
        rows = frame[frame["metric"] == metric.key].to_dict("records")
        return {str(row["arm"]): row for row in rows}

    def _metric(
        self, row: dict[str, Any] | None, metric: Metric, p: bool = False, most: int = 0
    ) -> Cell:
        """A mean, and its difference to the baseline with how sure that is."""
        if row is None:
            return Cell(MISSING)
        text = number(row["mean"], metric.decimals)
        if math.isnan(row["difference"]):
            return Cell(text)
        details = [_interval(row, metric)]
        if p and not math.isnan(row["p_holm"]):
            details.append(_p_value(row["p_holm"]))
        if row["pairs"] < most:
            details.append(f"over {row['pairs']:.0f} in common")
        return Cell(text, tuple(details), tone=metric.tone(row["low"], row["high"]))

    def _change(self, row: dict[str, Any] | None) -> Cell:
        if row is None:
            return Cell("")
        low, high = (number(row[key], DICE.decimals, signed=True) for key in ("low", "high"))
        interval = () if math.isnan(row["low"]) else (f"[{low}, {high}]",)
        return Cell(number(row["difference"], DICE.decimals, signed=True), interval)

    @property
    def _is_near(self) -> bool:
        """Whether the page lies within the benchmark; elsewhere links would lead nowhere."""
        return self.folder.is_relative_to(self.root)

    def _links(self, **paths: object) -> tuple[tuple[str, str], ...]:
        """Text -> path, as links from the page."""
        links = []
        for text, path in paths.items():
            file = in_folder(self.root, path)
            if file is not None and self._is_near:
                relative = os.path.relpath(file, self.folder)
                links.append((text, quote(Path(relative).as_posix())))
        return tuple(links)


def _interval(row: dict[str, Any], metric: Metric) -> str:
    difference, low, high = (
        number(row[key], metric.decimals, signed=True) for key in ("difference", "low", "high")
    )
    known = not math.isnan(row["low"])
    return f"{difference} [{low}, {high}]" if known else f"{difference} (no interval)"


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _rank_cell(row: dict[str, Any]) -> Cell:
    text = f"{row['rank']:.0f}"
    if math.isnan(row["rank_low"]):
        return Cell(text)
    spread = f"{text} [{row['rank_low']:.0f}, {row['rank_high']:.0f}]"
    return Cell(spread, (f"{100 * row['first']:.0f} % first",))


def _ratio(ratio: float, other: bool) -> tuple[str, ...]:
    return (f"{ratio:.2f} \N{MULTIPLICATION SIGN}",) if other and not math.isnan(ratio) else ()


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _fold(fold: object) -> str:
    return "test set" if fold == ALL_FOLDS else f"fold {fold}"
