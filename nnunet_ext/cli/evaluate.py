"""``nnunet-ext evaluate``: how good predictions are, wherever they and their labels come from."""

from pathlib import Path
from typing import Annotated, Any

from nnunetv2 import configuration
from typer import Argument, Option

from nnunet_ext._common.console import plural, say, say_json, show_table, some
from nnunet_ext._common.files import write_csv, write_json
from nnunet_ext.cli.options import AsJson, Labels, LabelsOf, Out, Processes, SubjectPattern
from nnunet_ext.evaluation import scoring
from nnunet_ext.evaluation.metrics import METRICS

Predictions = Annotated[Path, Argument(metavar="PREDICTIONS", help="Folder of predicted labels.")]
Domain = Annotated[
    str | None,
    Option(
        metavar="REGEX",
        help="(?P<domain>...) matches the domain in a case name; default: as in dataset.json.",
    ),
]
Lesions = Annotated[bool, Option("--lesions", help="Count found and false lesions, too.")]

MEASURES = {metric.key: (metric.name, metric.decimals) for metric in METRICS}
LESION_MEASURES = {"recall": ("lesion recall", 3), "precision": ("precision", 3), "f1": ("F1", 3)}
"""As they are shown, and with how many decimals."""

FEWEST_SUBJECTS = 5
"""With fewer, intervals say little."""

ABOUT_INTERVALS = (
    "Intervals (95 %) are about this model on other subjects. One model cannot show how much "
    "scores vary between trainings: `nnunet-ext benchmark` and `compare` take that into account."
)
LEFT = {
    "reoriented": "with labels in another orientation than the prediction, which were turned",
    "without_label": "without a label, not scored",
    "without_prediction": "with a label, but not predicted, not scored",
}
"""Cases that have to be named."""


def command(
    predictions: Predictions,
    labels: Labels = None,
    dataset: LabelsOf = None,
    subject: SubjectPattern = None,
    domain: Domain = None,
    lesions: Lesions = False,
    processes: Processes = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Score predictions against labels, by label, domain and subject.

    Dice, surface Dice (NSD), HD95 and ASSD with 95 % intervals. evaluation.csv has one row per
    case and label, evaluation.json all means; both go to the predictions' folder. Labels in
    another orientation are turned, and named; another spacing or origin, other label values than
    dataset.json's and values that are not whole numbers are refused. Predictions without labels
    are named and left out.

    If you choose settings or checkpoints by these scores, take other cases for the final scores.

    \b
    Examples:
      nnunet-ext evaluate predicted --labels labelsTs
      nnunet-ext evaluate ensembled --labels labelsTs --dataset 4 --lesions
      nnunet-ext evaluate predicted --subject "_(\\d+)$" --domain "(?P<domain>[A-Z]+)_"
    """
    found = scoring.find(predictions, labels, dataset)
    number = processes or configuration.default_num_processes
    scores, summary = scoring.score(found, subject, domain, lesions, number)
    folder = out or predictions
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(scores, folder / "evaluation.csv")
    written = summary | {"intervals": ABOUT_INTERVALS}
    write_json(folder / "evaluation.json", written)
    if as_json:
        say_json(written)
    else:
        _show(summary)
        _say_more(summary, folder)


def _say_more(summary: dict[str, Any], folder: Path) -> None:
    for key, what in LEFT.items():
        if names := summary[key]:
            say(f"{plural(len(names), 'case')} {what}: {some(names)}", "yellow")
    if summary["subjects"] < FEWEST_SUBJECTS:
        unit = "subject" if "by_subject" in summary else "case"
        say(f"Only {plural(summary['subjects'], unit)}: the intervals are rough.", "yellow")
    say(ABOUT_INTERVALS)
    for name in ("evaluation.csv", "evaluation.json"):
        say(f"Wrote {folder / name}")


def _show(summary: dict[str, Any]) -> None:
    """Print a table by label, one for each domain, and one of subjects."""
    _show_means("label", summary["labels"])
    domains = summary["by_domain"]
    for domain, part in domains.items() if len(domains) > 1 else ():
        say(f"Domain {domain}", "bold")
        _show_means("label", part["labels"])
    subjects = summary.get("by_subject", {}).items()
    of_all = {n: [*part["labels"].values()][-1] | {"cases": part["cases"]} for n, part in subjects}
    _show_means("subject", of_all)


def _show_means(what: str, rows: dict[str, dict[str, Any]]) -> None:
    for measures in (MEASURES, LESION_MEASURES):  # apart, to fit into a terminal
        shown = [
            (name, found["cases"], *(_shown(found[k], n) for k, (_, n) in measures.items()))
            for name, found in rows.items()
            if measures.keys() <= found.keys()
        ]
        show_table((what, "cases", *(name for name, _ in measures.values())), shown)


def _shown(found: dict[str, float | None], decimals: int) -> str:
    mean, low, high = found["mean"], found["low"], found["high"]
    if mean is None:
        return "-"
    limits = "" if low is None else f"\n[{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{mean:.{decimals}f}{limits}"
