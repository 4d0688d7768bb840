"""The report of a benchmark: one HTML page, the same as Markdown, and its numbers as CSV."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from nnunet_ext import __version__
from nnunet_ext._common.files import replacing
from nnunet_ext.benchmark import overlays, plots
from nnunet_ext.benchmark.analysis import DICE, analyse, unit_name
from nnunet_ext.benchmark.page import (
    Beside,
    Block,
    Bullets,
    Facts,
    Figure,
    Folded,
    Gallery,
    Key,
    Listing,
    Page,
    Section,
    Text,
)
from nnunet_ext.benchmark.results import CLEAN, TEST, Results
from nnunet_ext.benchmark.tables import Tables, evaluation_title, number, plural
from nnunet_ext.evaluation.statistics import unit_values

FEW = 10
"""With fewer units than that, intervals and tests are rough."""
MOST_ROWS = 60
"""Longer tables are folded, forest plots left out."""

FILES = (
    ("scores.csv", "every metric of every label, case, seed and fold, and where it comes from"),
    ("comparison.csv", "means and differences over all, by label, domain, degradation and seed"),
    ("ranking.csv", "ranks"),
    ("cost.csv", "what the arms cost"),
    ("runs.csv", "every training and prediction of a test set, with command and log"),
    ("curves.csv", "every epoch of every training"),
    ("report.md", "this page without its pictures"),
)
"""What lies beside the page."""


def write_report(results: Results, folder: Path, root: Path | None = None) -> Path:
    """Write the report of a benchmark.

    Args:
        results: What was measured.
        folder: Where ``index.html``, ``report.md`` and the ``.csv`` files go; made if need be.
        root: What paths in the results are relative to; default: ``folder``.

    Returns:
        The page, ``folder/index.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    analysis = analyse(results)
    styles = plots.arm_styles([*results.arms], results.baseline)
    colours = {arm: style.colour for arm, style in styles.items()}
    tables = Tables(results, analysis, colours, root or folder, folder)
    page = Composer(tables, styles).page()
    files = {
        "report.md": page.markdown(),
        "scores.csv": _csv(results.scores),
        "comparison.csv": _csv(analysis.comparison),
        "ranking.csv": _csv(analysis.ranking),
        "cost.csv": _csv(analysis.cost),
        "runs.csv": _csv(results.cells),
        "curves.csv": _csv(results.curves),
        "index.html": page.html(),
    }
    for name, text in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / "index.html"


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")


class Composer:
    """Puts a page together.

    Args:
        tables: Makes the tables.
        styles: How each arm looks in plots.
    """

    def __init__(self, tables: Tables, styles: dict[str, plots.ArmStyle]) -> None:
        self.tables, self.styles = tables, styles
        self.results, self.analysis = tables.results, tables.analysis
        self.several = len(self.results.arms) > 1

    def page(self) -> Page:
        """The whole page."""
        sections = [
            section
            for i, configuration in enumerate(self.results.configurations())
            for section in self._configuration(f"c{i}", configuration)
        ]
        date = self.results.environment.get("date", "")
        return Page(
            self.results.title,
            " · ".join(part for part in ("nnU-Net benchmark", str(date)) if part),
            [*self._lead()],
            [*sections, self._methods(), self._reproduction()],
            f"Written by nnunet-ext {__version__}.",
        )

    # ------------------------------------------------------------------------------------ lead

    def _lead(self) -> Iterator[Block]:
        yield Text(self._one_sentence(), "lead")
        if self.results.description:
            yield Text(self.results.description)
        yield from self._problems()
        yield self.tables.arms()
        pairs = [
            (configuration, evaluation)
            for configuration in self.results.configurations()
            for evaluation in self._main(configuration)
        ]
        if len(pairs) > 1:
            yield self.tables.glance(pairs)

    def _main(self, configuration: str) -> list[str]:
        """Evaluations that get a section of their own."""
        scored = self.analysis.comparison[self.analysis.comparison["scope"] == "all"]
        found = set(scored[scored["configuration"] == configuration]["evaluation"])
        return [evaluation for evaluation in (CLEAN, TEST) if evaluation in found]

    def _one_sentence(self) -> str:
        results = self.results
        trainings = results.trainings()
        done = int((trainings["status"] == "done").sum())
        configurations = results.configurations()
        names = f" ({'; '.join(results.arms)})" if len(results.arms) <= 6 else ""
        asked = (
            f"{plural(len(results.arms), 'arm')}{names}, "
            f"{plural(len(configurations), 'configuration')} ({', '.join(configurations)}), "
            f"{plural(trainings['fold'].nunique(), 'fold')}, "
            f"{plural(trainings['seed'].nunique(), 'seed')}: "
            f"{done} of {plural(len(trainings), 'training')} done."
        )
        scored = [
            f"{self._counted(results.scores[results.scores['evaluation'] == evaluation])} {where}"
            for evaluation, where in ((CLEAN, "held out from training"), (TEST, "of a test set"))
            if (results.scores["evaluation"] == evaluation).any()
        ]
        degradations = set(results.scores["evaluation"]) - {CLEAN, TEST}
        if degradations:
            scored.append(f"held-out images under {plural(len(degradations), 'degradation')}")
        if not scored:
            return f"{asked} Nothing has been scored yet."
        baseline = f" Differences are to {results.baseline}, the baseline." * self.several
        return f"{asked} Scored: {', '.join(scored)}.{baseline}"

    def _counted(self, scores: pd.DataFrame) -> str:
        cases = plural(scores["case"].nunique(), "case")
        if unit_name(scores) == "case":
            return cases
        return f"{cases} of {plural(scores['subject'].nunique(), 'subject')}"

    def _problems(self) -> Iterator[Block]:
        unfinished = self.tables.unfinished()
        items = [*self._gaps(), *self._small_samples(), *self.results.problems]
        if unfinished is not None:
            states = self.results.cells["status"].value_counts()
            left = [f"{states[state]} {state}" for state in states.index if state != "done"]
            items.insert(
                0,
                f"This is an interim result. Of {plural(len(self.results.cells), 'run')}, "
                f"{', '.join(left)}; all numbers are about those that are done.",
            )
        if items:
            yield Bullets(items, "warning")
        if unfinished is not None:
            yield unfinished

    def _gaps(self) -> Iterator[str]:
        """What keeps the arms from being compared on equal terms."""
        results = self.results
        gaps: dict[str, list[str]] = {}
        for configuration in results.configurations():
            for evaluation in results.evaluations(configuration):
                scores = self._scores(configuration, evaluation).dropna(subset=DICE.key)
                runs = scores.drop_duplicates(["arm", "case", "seed", "fold"])["arm"].value_counts()
                for arm in results.arms:
                    gap = ""
                    if arm not in runs:
                        gap = "has no scores"
                        if arm == results.baseline and self.several:
                            gap += ", so there is nothing to compare the others with"
                    elif runs[arm] < runs.max():
                        gap = (
                            f"has {runs[arm]} of {runs.max()} predictions (cases times seeds); "
                            "it is compared over the cases that it has"
                        )
                    if gap:
                        where = gaps.setdefault(f"{configuration}: {arm} {gap}", [])
                        where.append(evaluation_title(evaluation).lower())
            if not self._main(configuration):
                yield f"{configuration}: no finished training has been scored."
        for gap, evaluations in gaps.items():
            yield f"{gap} ({', '.join(evaluations)})."

    def _small_samples(self) -> Iterator[str]:
        if not self.several:
            return
        frame = self.analysis.comparison
        frame = frame[(frame["scope"] == "all") & (frame["metric"] == DICE.key)]
        for (configuration, evaluation), rows in frame.groupby(
            ["configuration", "evaluation"], sort=False
        ):
            pairs = rows["pairs"].min()
            if not pairs < FEW:
                continue
            unit = unit_name(self._scores(configuration, evaluation))
            text = (
                f"{configuration}, {evaluation_title(evaluation).lower()}: only "
                f"{plural(int(pairs), unit)} to compare; intervals from so few are rough"
            )
            if pairs < 2:
                text = text.replace("intervals from so few are rough", "there are no intervals")
            elif pairs < 6:
                text += f", and their p-values cannot fall below {2 ** (1 - pairs):.3g}"
            yield f"{text}."

    # --------------------------------------------------------------------------- configuration

    def _configuration(self, anchor: str, configuration: str) -> Iterator[Section]:
        main = self._main(configuration)
        cells = self.results.cells
        done = (cells["configuration"] == configuration) & (cells["status"] == "done")
        nothing = [] if main or done.any() else [Text("Nothing is finished yet.")]
        yield Section(anchor, f"Configuration {configuration}", 2, nothing)
        for evaluation in main:
            blocks = [*self._answer(configuration, evaluation)]
            yield Section(f"{anchor}-{evaluation}", evaluation_title(evaluation), 3, blocks)
        degraded = [*self._degradations(configuration)]
        if degraded:
            yield Section(f"{anchor}-degradations", "Degraded images", 3, degraded)
        curves = [*self._curves(configuration)]
        if curves:
            yield Section(f"{anchor}-curves", "Training curves", 3, curves)
        if done.any():
            yield Section(f"{anchor}-cost", "Cost", 3, [self.tables.cost(configuration)])
        for evaluation in main[:1]:
            blocks = [*self._overlays(configuration, evaluation)]
            yield Section(f"{anchor}-pictures", "Worst, median and best cases", 3, blocks)
        if main:
            blocks = [
                Folded(
                    f"{evaluation_title(evaluation)}: Dice of every case",
                    [self.tables.cases(configuration, evaluation)],
                )
                for evaluation in main
            ]
            yield Section(f"{anchor}-cases", "Every case", 3, blocks)

    def _scores(self, configuration: object, evaluation: object) -> pd.DataFrame:
        scores = self.results.scores
        return scores[
            (scores["configuration"] == configuration) & (scores["evaluation"] == evaluation)
        ]

    def _answer(self, configuration: str, evaluation: str) -> Iterator[Block]:
        tables = self.tables
        yield tables.answer(configuration, evaluation)
        yield from self._forest_and_seeds(configuration, evaluation)
        ranking = tables.ranking(configuration, evaluation)
        spread = [*([ranking] if ranking else []), *self._strips(configuration, evaluation)]
        if spread:
            yield Beside(spread)
        for scope, table in (
            ("label", tables.labels(configuration, evaluation)),
            ("domain", tables.domains(configuration, evaluation)),
        ):
            if table is not None:
                frame = self.analysis.rows(configuration, evaluation, scope)
                if scope == "label":
                    frame = frame.assign(name=frame["name"].map(tables.label_name))
                yield from self._pair_of_plots(frame, scope)
                long = len(table.rows) > MOST_ROWS
                yield Folded(f"Every {scope} in numbers", [table]) if long else table
        for table in (
            tables.seen(configuration, evaluation),
            tables.empties(configuration, evaluation),
        ):
            if table is not None:
                yield table

    def _strips(self, configuration: str, evaluation: str) -> Iterator[Block]:
        cases = unit_values(self._scores(configuration, evaluation), DICE.key, unit="case")
        if cases["value"].notna().any():
            lines = " Thin lines join the dots of a case." * (1 < len(self.results.arms) <= 4)
            yield Figure(
                plots.strips(cases, self.styles, "Dice of a case"),
                "Dice of every case, mean over labels and seeds; box: quartiles and median; white "
                f"diamond: mean.{lines}",
            )

    def _forest_and_seeds(self, configuration: str, evaluation: str) -> Iterator[Block]:
        frame = self.analysis.rows(configuration, evaluation, "all")
        frame = frame[frame["metric"] == DICE.key]
        seeds = self.tables.seeds(configuration, evaluation)
        unit = unit_name(self._scores(configuration, evaluation))
        coverage = (
            f"The intervals cover the variation between {unit}s: how far the difference may move "
            f"if other {unit}s of the same kind were tested. They do not cover the variation "
            "between trainings, over which scores are averaged first. "
        )
        means = self.analysis.seed_means(configuration, evaluation)
        spread = (means.max(axis=1) - means.min(axis=1))[means.count(axis=1) > 1].max()
        if math.isnan(spread):
            luck = (
                "No arm has two seeds, so nothing is known about the variation between trainings."
            )
        else:
            luck = (
                "How much a mean moves from seed to seed is in the table beside: up to "
                f"{number(spread, DICE.decimals)} within one arm. A difference of that size may be "
                "the luck of training."
            )
        if frame["difference"].notna().any():
            label = f"Dice, difference to {self.results.baseline}"
            forest = Figure(
                plots.forest(frame, self.styles, label),
                f"Difference in Dice to {self.results.baseline}, with 95 % interval over {unit}s. "
                "Right of the line is better.",
            )
            yield Beside([forest, seeds])
            yield Text(coverage + luck)
        else:
            yield seeds
            yield Text(luck)

    def _pair_of_plots(self, frame: pd.DataFrame, scope: str) -> Iterator[Block]:
        frame = frame[frame["metric"] == DICE.key]
        if frame.empty:
            return
        means = Figure(
            plots.levels(frame, self.styles, "mean Dice"), f"Mean Dice in every {scope}."
        )
        differences = frame["difference"].count()
        if not 0 < differences <= MOST_ROWS:
            yield means
            return
        label = f"Dice, difference to {self.results.baseline}"
        forest = Figure(
            plots.forest(frame, self.styles, label),
            f"Difference in Dice to {self.results.baseline} in every {scope}, with 95 % interval, "
            "not adjusted for their number.",
        )
        yield Beside([means, forest])

    def _degradations(self, configuration: str) -> Iterator[Block]:
        table = self.tables.degradations(configuration)
        if table is None:
            return
        frame = self.analysis.comparison
        frame = frame[
            (frame["configuration"] == configuration)
            & (frame["scope"] == "all")
            & (frame["evaluation"] != TEST)
        ]
        named = frame.assign(name=frame["evaluation"].replace(CLEAN, "none"))
        yield from self._pair_of_plots(named, "degradation")
        yield table

    def _curves(self, configuration: str) -> Iterator[Block]:
        frame = self.results.curves
        trained = frame["arm"].isin(self.results.trainings()["arm"])
        frame = frame[(frame["configuration"] == configuration) & trained]
        figures = [
            Figure(plots.curves(frame, self.styles, column, label), f"{label} by epoch.")
            for column, label in (
                ("train_loss", "Training loss"),
                ("val_loss", "Validation loss"),
                ("pseudo_dice", "Pseudo Dice"),
            )
            if frame[column].notna().any()
        ]
        if figures:
            yield Beside(figures)
            yield Text(
                "Thin: one training, that is one fold and seed. Thick: their mean, as far as all "
                "have come. Losses of different methods need not be comparable. Pseudo Dice (here "
                "the mean over labels) is nnU-Net's estimate from validation patches, not the Dice "
                "of the tables.",
                "note",
            )

    def _overlays(self, configuration: str, evaluation: str) -> Iterator[Block]:
        if not self.results.shows_images():
            yield Text("Pictures are left out.")
            return
        colours = overlays.label_colours([*self.results.labels])
        names = [(self.tables.label_name(key), colour) for key, colour in colours.items()]
        yield Key(
            names,
            "Line: truth. Area: prediction. Point at a picture to see it without them. The slice "
            "is the one that shows most of the labels; of thin structures it is the part where "
            "truth and prediction differ most. Intensities run from the 0.5th to the 99.5th "
            "percentile of what is shown.",
        )
        scores = self._scores(configuration, evaluation)
        for arm in self.results.arms:
            mine = scores[scores["arm"] == arm]
            pictures = [*overlays.overlays(mine, self.results, self.tables.root)]
            if pictures:
                yield Gallery(arm, self.styles[arm].colour, pictures)

    # ------------------------------------------------------------------------ methods and rest

    def _methods(self) -> Section:
        unit = self.results.distance_unit() or "units of the images' spacing"
        facts = [
            (
                "Dice",
                "Twice the voxels that truth and prediction share, by the sum of both; taken from "
                "nnU-Net's own summary.json. 0 to 1.",
            ),
            (
                "NSD",
                "Normalised surface Dice: the share of both surfaces that is no farther from the "
                "other one than the smallest spacing of the image, that is one voxel along its "
                "finest axis [1, 2]. 0 to 1.",
            ),
            (
                "HD95",
                "The larger of the two directed 95th percentiles of the distances between the "
                f"border voxels of truth and prediction [2], in {unit}.",
            ),
            (
                "ASSD",
                f"Mean of these distances, both directions pooled [2], in {unit}.",
            ),
            (
                "Absent labels",
                "A label that is in neither truth nor prediction is not counted. One that is in "
                "only one of them gets the worst values: Dice and NSD 0, HD95 and ASSD the "
                "diagonal of the image. An arm that rightly finds nothing in a case without "
                "any label gets no value for it, so false alarms there are only seen in the "
                "count of absent labels.",
            ),
            (
                "Averaging",
                "Within a case over its labels, then over folds and seeds that predicted it, then "
                "over the cases of a subject; every subject counts once. Configurations and "
                "evaluations are never pooled.",
            ),
            (
                "Intervals",
                "95 %, of the mean paired difference to the baseline, over the cases or subjects "
                "that both arms have: studentised bootstrap, symmetric, 9999 resamples, never "
                "narrower than Student's t [3, 4]. Held-out cases of one fold share a model, which "
                "the intervals cannot see.",
            ),
            (
                "p-values",
                "Two-sided Wilcoxon signed-rank test in Pratt's version on the same pairs [5], "
                "adjusted by Holm's method for the number of arms compared with the baseline in "
                "one configuration, evaluation and metric [6]. Interval and p-value may disagree: "
                "one is about the mean difference, the other about differences being symmetric "
                "around zero. Single labels, domains and "
                "degradations have intervals only, not adjusted: they describe, they do not test.",
            ),
            (
                "Ranks",
                "By the mean over the units that all arms have; their range and the share of first "
                "places are from 9999 bootstrap resamples of the units [7].",
            ),
            ("Seeds", self._seeds()),
        ]
        references = (
            "Nikolov et al., J Med Internet Res 23(7), 2021. https://doi.org/10.2196/26151",
            "Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21, 2024. "
            "https://doi.org/10.1038/s41592-023-02151-z",
            "Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.",
            "Hall, Theoretical comparison of bootstrap confidence intervals, Ann Stat 16(3), 1988. "
            "https://doi.org/10.1214/aos/1176350933",
            "Pratt, Remarks on zeros and ties in the Wilcoxon signed rank procedures, J Am Stat "
            "Assoc 54, 1959. https://doi.org/10.1080/01621459.1959.10501526",
            "Holm, A simple sequentially rejective multiple test procedure, Scand J Stat 6(2), "
            "1979. https://www.jstor.org/stable/4615733",
            "Wiesenfarth et al., Methods and open-source toolkit for analyzing and visualizing "
            "challenge results, Scientific Reports 11, 2021. "
            "https://doi.org/10.1038/s41598-021-82017-6",
        )
        cited = [(f"[{i}]", reference) for i, reference in enumerate(references, 1)]
        return Section("methods", "How it was measured", 2, [Facts(facts), Facts(cited)])

    def _seeds(self) -> str:
        unseeded = [
            arm
            for arm, facts in self.results.arms.items()
            if str(facts.get("seeds")).startswith("repetitions")
        ]
        text = (
            "Every seed is a training of its own. Stock trainers of nnU-Net take no seed: theirs "
            "are repetitions that differ by chance"
        )
        return f"{text}, here those of {'; '.join(unseeded)}." if unseeded else f"{text}."

    def _reproduction(self) -> Section:
        results = self.results
        listings = [Listing("Settings of the arms", _json(results.arms))]
        commands = [str(command) for command in results.cells["command"].dropna() if command]
        if commands and not results.reproduction.get("commands"):
            listings.append(Listing("Commands", "\n".join(dict.fromkeys(commands))))
        for name, content in results.reproduction.items():
            if content:
                listings.append(Listing(name, _listed(content)))
        blocks: list[Block] = []
        if results.environment:
            blocks.append(Facts([*_flat(results.environment)]))
        return Section(
            "reproduction",
            "Reproduction",
            2,
            [
                *blocks,
                *listings,
                Folded("Every run", [self.tables.runs()]),
                Text("Files beside this page:"),
                Facts(FILES),
            ],
        )


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as one list."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}, ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            shown = "none" if value is None else shown
            yield f"{prefix}{key}", shown


def _listed(content: object) -> str:
    """Texts line by line, under their names if they have some; everything else as JSON."""
    if isinstance(content, str):
        return content
    if _texts(content):
        return "\n".join(content)
    if isinstance(content, dict) and all(map(_texts, content.values())):
        named = ("\n".join([f"# {name}", *texts]) for name, texts in content.items())
        return "\n\n".join(named)
    return _json(content)


def _texts(content: object) -> TypeGuard[list[str]]:
    return isinstance(content, list) and all(isinstance(text, str) for text in content)


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)
