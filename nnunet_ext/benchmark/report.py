"""The report of benchmarks: one HTML page, the same as Markdown, and its numbers as CSV."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from nnunet_ext import __version__
from nnunet_ext._common.console import plural
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import replacing, write_csv
from nnunet_ext.benchmark import overlays, plots
from nnunet_ext.benchmark import results as records
from nnunet_ext.benchmark.analysis import samples, unit_name
from nnunet_ext.benchmark.page import Block, Figure, Writer
from nnunet_ext.benchmark.results import CLEAN, SEEDED, TEST, Results
from nnunet_ext.benchmark.tables import (
    Tables,
    arms_table,
    evaluation_title,
    glance_table,
    number,
    rank_table,
)
from nnunet_ext.evaluation.metrics import DICE, METRICS
from nnunet_ext.evaluation.statistics import ranks

FEW = 10
"""With fewer subjects than that, intervals and tests are rough."""
MOST_DIFFERENCES = 60
"""More are not drawn in one plot."""


def write_report(
    results: Results | Sequence[Results], folder: Path, root: Path | None = None
) -> Path:
    """Write the report of what was measured on one data set or several.

    Args:
        results: What was measured, by data set. Arms of the same name are the same.
        folder: Where ``index.html``, ``report.md`` and the other files go; made if need be.
        root: What paths of images in the results are relative to.

    Returns:
        The page, ``folder/index.html``.

    Raises:
        UserError: If there are two results of one data set.
    """
    several = [results] if isinstance(results, Results) else list(results)
    for title, count in Counter(each.title for each in several).items():
        if count > 1:
            raise UserError(
                f"There are results of {title} twice, but a report shows each data set once. "
                "Remove one of them."
            )
    arms = {arm: facts for each in several for arm, facts in each.arms.items()}
    baselines = list(dict.fromkeys(each.baseline for each in several))
    styles = plots.arm_styles([*arms], baselines[0])
    chapters = [
        Chapter(each, styles, root or folder, f"{each.title}: " if len(several) > 1 else "")
        for each in several
    ]
    units = {each.distance_unit() for each in several}
    dates = dict.fromkeys(str(each.environment.get("date", "")) for each in several)
    content = {
        "title": f"{len(several)} data sets" if len(several) > 1 else several[0].title,
        "overline": " · ".join(filter(None, ["nnU-Net benchmark", *dates])),
        "chapters": chapters,
        "overview": [arms_table(arms), *_overview(chapters, baselines)],
        "evaluation_title": evaluation_title,
        "unit": units.pop() if len(units) == 1 and "" not in units else "units of the spacing",
        "margins": " or ".join(sorted({f"{each.margin:g}" for each in several})),
        "unseeded": [arm for arm, facts in arms.items() if facts.get("seeds", SEEDED) != SEEDED],
        "version": __version__,
    }
    colours = {arm: style.colour for arm, style in styles.items()}
    names = {"report.md": False, "index.html": True}
    texts = {
        name: Writer(html, colours, baselines).write(**content) for name, html in names.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        own = folder / chapter.results.title if chapter.prefix else folder
        records.write(chapter.results, own)
        for name in ("comparison", "ranking", "cost"):
            write_csv(getattr(chapter, name), own / f"{name}.csv")
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / "index.html"


def _overview(chapters: "Sequence[Chapter]", baselines: Sequence[str]) -> Iterator[Block]:
    """Dice wherever there is a section for it, and ranks over data sets."""
    places = [
        (chapter, configuration, evaluation)
        for chapter in chapters
        for configuration in chapter.results.configurations()
        for evaluation in chapter.results.main(configuration)
    ]
    if len(places) < 2:
        return
    names = pd.DataFrame(
        [(c.results.title, conf, evaluation_title(e).lower()) for c, conf, e in places]
    )
    telling = names.loc[:, names.nunique() > 1].agg(", ".join, axis=1)
    rows = pd.concat(
        chapter.rows(configuration, evaluation, "all").assign(name=name)
        for (chapter, configuration, evaluation), name in zip(places, telling, strict=True)
    )
    rows = rows[rows["metric"] == DICE.key]
    yield glance_table(rows, baselines)
    yield from _forest(rows, chapters[0].styles, " or ".join(baselines))
    # data sets of which each has one configuration are compared whatever it is
    alike = [2] if len(names[[0, 1]].drop_duplicates()) == len(chapters) else [1, 2]
    for place, group in names.groupby(alike) if len(chapters) > 1 else ():
        found = [
            places[i][0].results.of(*places[i][1:]).assign(dataset=names[0][i]) for i in group.index
        ]
        arms = set.intersection(*(set(scores["arm"]) for scores in found))
        scores = pd.concat(found)
        scores = scores[scores["arm"].isin(arms)]
        if len(found) > 1 and len(arms) > 1:
            frames = [
                ranks(samples(scores, metric.key), metric.higher).assign(metric=metric.key)
                for metric in METRICS
            ]
            caption = (
                f"Ranks averaged over {len(found)} data sets ({', '.join(place)}), with 95 % range "
                "when data sets, subjects and trainings are drawn anew, and how often the arm is "
                "first"
            )
            yield rank_table(caption, pd.concat(frames), decimals=1)


def _forest(frame: pd.DataFrame, styles: plots.Styles, baseline: str) -> Iterator[Block]:
    frame = frame[frame["metric"] == DICE.key]
    if 0 < frame["difference"].count() <= MOST_DIFFERENCES:
        label = f"Dice, difference to {baseline}"
        caption = f"{label}, with 95 % interval. Right of the line is better."
        yield Figure(partial(plots.forest, frame, styles, label), caption)


@dataclass(frozen=True)
class Chapter(Tables):
    """What a page says of one data set."""

    styles: plots.Styles  # how arms look in plots
    root: Path  # what paths in the results are relative to
    prefix: str  # tells this data set from others on the page

    # ------------------------------------------------------------------------------------ lead

    def lead(self) -> str:
        """What was asked and how much of it is there."""
        results, trainings = self.results, self.results.trainings()
        asked = {
            "arm": len(results.arms),
            "configuration": len(results.configurations()),
            "fold": trainings["fold"].nunique(),
            "seed": trainings["seed"].nunique(),
        }
        counts = ", ".join(plural(count, word) for word, count in asked.items())
        done = (trainings["status"] == "done").sum()
        scored = []
        for name, scores in results.scores.groupby("evaluation", sort=False):
            names = {"case": "case", unit_name(scores): "subject"}
            found = [plural(scores[key].nunique(), word) for word, key in names.items()]
            scored.append(f"{' of '.join(found)} ({evaluation_title(name).lower()})")
        baseline = f" Differences are to {results.baseline}, the baseline." * (asked["arm"] > 1)
        return (
            f"{self.prefix}{counts}: {done} of {plural(len(trainings), 'training')} done. "
            f"Scored: {', '.join(scored) or 'nothing yet'}.{baseline}"
        )

    def warnings(self) -> Iterator[str]:
        """What has to be known before any result is looked at."""
        states = Counter(self.results.cells["status"])
        if left := [f"{states[state]} {state}" for state in states if state != "done"]:
            yield (
                f"This is an interim result. Of {plural(states.total(), 'run')}, "
                f"{', '.join(left)}; all numbers are about those that are done."
            )
        gaps = defaultdict(list)
        for configuration in self.results.configurations():
            for evaluation in self.results.evaluations(configuration):
                for gap in self._gaps(configuration, evaluation):
                    gaps[f"{configuration}: {gap}"].append(evaluation_title(evaluation).lower())
            if not self.results.main(configuration):
                yield f"{configuration}: no finished training has been scored."
        yield from (f"{gap} ({', '.join(where)})." for gap, where in gaps.items())
        yield from self.results.problems

    def _gaps(self, configuration: str, evaluation: str) -> Iterator[str]:
        """What keeps the arms from being compared on equal terms, or surely."""
        results = self.results
        scores = results.of(configuration, evaluation).dropna(subset=DICE.key)
        runs = Counter(scores.drop_duplicates(["arm", "case", "seed", "fold"])["arm"])
        most = max(runs.values(), default=0)
        for arm in results.arms:
            if arm not in runs and arm == results.baseline and len(results.arms) > 1:
                yield f"{arm} has no scores, so there is nothing to compare the others with"
            elif arm not in runs:
                yield f"{arm} has no scores"
            elif runs[arm] < most:
                yield (
                    f"{arm} has {runs[arm]} of {most} predictions (cases times seeds); it is "
                    "compared over the cases that it has"
                )
        frame = self.rows(configuration, evaluation, "all")
        pairs = frame[frame["metric"] == DICE.key]["pairs"].min()
        if pairs < FEW:
            rough = "intervals from so few are rough" if pairs > 1 else "there are no intervals"
            yield f"only {plural(int(pairs), unit_name(scores))} to compare; {rough}"

    # --------------------------------------------------------------------------- configuration

    def parts(self, configuration: str) -> Iterator[tuple[str, list[Block]]]:
        """Headings and what stands below them."""
        parts = {
            evaluation_title(evaluation): self._answer(configuration, evaluation)
            for evaluation in self.results.main(configuration)
        }
        parts["Degraded images"] = self._degraded(configuration)
        parts["Training curves"] = self._curves(configuration)
        parts["Cost"] = self.costs(configuration)
        return ((heading, found) for heading, part in parts.items() if (found := [*part]))

    def _answer(self, configuration: str, evaluation: str) -> Iterator[Block]:
        styles, baseline = self.styles, self.results.baseline
        yield self.answer(configuration, evaluation)
        frame = self.rows(configuration, evaluation, "all")
        yield self._luck(frame, configuration, evaluation)
        yield from _forest(frame, styles, baseline)
        cases = samples(self.results.of(configuration, evaluation), DICE.key, unit="case")
        if len(cases):
            caption = "Dice of every case; box: quartiles and median; white diamond: mean"
            yield Figure(partial(plots.strips, cases, styles, "Dice of a case"), caption)
        yield self.seeds(configuration, evaluation)
        yield from self.ranks(configuration, evaluation)
        for scope in ("label", "domain", "seen"):
            frame = self.rows(configuration, evaluation, scope)
            yield from _forest(frame, styles, baseline)
            yield from self.grouped(configuration, evaluation, scope)
        yield from self.empties(configuration, evaluation)

    def _luck(self, frame: pd.DataFrame, configuration: str, evaluation: str) -> str:
        """What the intervals cover, or why there are none."""
        unit = unit_name(self.results.of(configuration, evaluation))
        if (frame["trainings"] < 2).any():
            return (
                "Where an arm was trained only once, its luck cannot be told from its merit: there "
                "is no interval of its difference, no p-value and no verdict, and the interval of "
                "its mean is about this one training. Two seeds or two folds give them."
            )
        means, _ = self.seed_means(configuration, evaluation)
        spread = (means.max(axis=1) - means.min(axis=1))[means.count(axis=1) > 1].max()
        moved = f" (up to {number(spread)} here)" * bool(spread > 0)
        return (
            f"Intervals, p-values and verdicts count both {unit}s and trainings as samples: they "
            f"say what others may find who train again and test other {unit}s. How much an arm's "
            f"mean moves from seed to seed{moved} is in the table of seeds."
        )

    def _degraded(self, configuration: str) -> Iterator[Block]:
        for table in self.degradations(configuration):
            frame = self.comparison.query("configuration == @configuration and scope == 'all'")
            frame = frame[frame["evaluation"] != TEST]
            frame = frame.assign(name=frame["evaluation"].replace(CLEAN, "none"))
            yield from _forest(frame, self.styles, self.results.baseline)
            yield table

    def _curves(self, configuration: str) -> Iterator[Block]:
        frame = self.results.curves
        trained = frame["arm"].isin(self.results.trainings()["arm"])
        frame = frame[(frame["configuration"] == configuration) & trained]
        columns = {"train_loss": "Training loss", "val_loss": "Validation loss"}
        for column, label in (columns | {"pseudo_dice": "Pseudo Dice"}).items():
            if frame[column].notna().any():
                drawn = partial(plots.curves, frame, self.styles, column, label)
                yield Figure(drawn, f"{label} by epoch.")
        if len(frame):
            yield (
                "Thin: one training, that is one fold and seed. Thick: their mean, as far as all "
                "have come. Losses of different methods need not be comparable. Pseudo Dice (here "
                "the mean over labels) is nnU-Net's estimate from validation patches, not the Dice "
                "of the tables."
            )

    def label_colours(self) -> dict[str, str]:
        """Name of a label -> its colour in pictures."""
        colours = overlays.label_colours([*self.results.labels])
        names = self.results.label_names()
        return {names[key]: colour for key, colour in colours.items()}

    def pictures(
        self, configuration: str, evaluation: str
    ) -> Iterator[tuple[str, list[overlays.Picture]]]:
        """Arms, and pictures of their worst, median and best cases."""
        scores = self.results.of(configuration, evaluation)
        for arm in self.results.arms:
            mine = scores[scores["arm"] == arm]
            yield arm, [*overlays.overlays(mine, self.results, self.root)]

    # ------------------------------------------------------------------------------------ rest

    def environment(self) -> Iterator[str]:
        """Versions, hardware, date."""
        for name, value in pd.json_normalize(self.results.environment, sep=", ").items():
            yield f"{self.prefix}{name}: {value[0]}"

    def listings(self) -> Iterator[tuple[str, str]]:
        """What is needed to repeat it, as text by name."""
        contents = {"Settings of the arms": self.results.arms} | self.results.reproduction
        if "commands" not in contents:
            contents["commands"] = list(dict.fromkeys(self.results.cells["command"].dropna()))
        for name, content in contents.items():
            if content:
                yield name, json.dumps(content, indent=2, ensure_ascii=False, default=str)
