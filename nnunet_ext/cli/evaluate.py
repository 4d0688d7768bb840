"""``nnunet-ext evaluate``: how good predictions are, wherever they and their labels come from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_ext.cli.options import LabelsOf, Processes, SubjectPattern

if TYPE_CHECKING:
    from rich.console import Console

MEASURES = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95", "assd": "ASSD"}
LESION_MEASURES = {"recall": "lesion recall", "precision": "precision", "f1": "F1"}
"""As they are shown."""

FEWEST_SUBJECTS = 5
"""With fewer, intervals say little."""

ABOUT_INTERVALS = (
    "Intervals (95 %) are about this model on other subjects. How much another training would "
    "differ, one model cannot tell: `nnunet-ext benchmark` and `compare` count that, too."
)


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Folder of predicted labels.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option("-l", "--labels", metavar="FOLDER", help="Default: its labelsUn or labelsTs."),
    ] = None,
    dataset: LabelsOf = None,
    subject: SubjectPattern = None,
    domain: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="(?P<domain>...); default: as dataset.json says."),
    ] = None,
    lesions: Annotated[
        bool, typer.Option("--lesions", help="Count found and false lesions, too.")
    ] = False,
    processes: Processes = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Default: PREDICTIONS."),
    ] = None,
) -> None:
    """Score predictions against labels, by label, domain and subject.

    Dice, surface Dice (NSD), HD95 and ASSD with 95 % intervals. evaluation.csv has one row per
    case and label, evaluation.json all means. Labels in another orientation are turned, and
    named; another spacing or origin, other label values than dataset.json's and values that are
    not whole numbers are refused. Predictions without labels are named and left out.

    Whoever chooses settings or checkpoints by these scores needs other cases for the final ones.

    \b
    Examples:
      nnunet-ext evaluate predicted --labels labelsTs
      nnunet-ext evaluate ensembled --labels labelsTs --dataset 4 --lesions
      nnunet-ext evaluate predicted --subject "_(\\d+)$" --domain "(?P<domain>[A-Z]+)_"
    """
    from nnunetv2.configuration import default_num_processes
    from rich.console import Console

    from nnunet_ext._common.console import print_plain
    from nnunet_ext._common.files import replacing, write_json
    from nnunet_ext.evaluation import scoring

    found = scoring.find(predictions, labels, dataset)
    number = processes or default_num_processes
    scores, summary = scoring.score(found, subject, domain, lesions, number)
    folder = out or predictions
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "evaluation.csv") as partial:
        scores.to_csv(partial, index=False)
    write_json(folder / "evaluation.json", summary | {"intervals": ABOUT_INTERVALS})
    console = Console(highlight=False)
    _show(console, summary)
    _warn(console, summary)
    print_plain(console, ABOUT_INTERVALS)
    for name in ("evaluation.csv", "evaluation.json"):
        print_plain(console, f"Wrote {folder / name}")


def _warn(console: "Console", summary: dict[str, Any]) -> None:
    from nnunet_ext._common.console import print_plain, some

    warnings = {
        "reoriented": "stored in another orientation than the prediction, so their labels were "
        "turned",
        "without_label": "without a label, not scored",
        "without_prediction": "with a label, but not predicted, not scored",
    }
    for key, what in warnings.items():
        if names := summary[key]:
            print_plain(console, f"{len(names)} {what}: {some(names)}", "yellow")
    if summary["subjects"] < FEWEST_SUBJECTS:
        few = f"{summary['subjects']} {'subjects' if 'by_subject' in summary else 'cases'}"
        print_plain(console, f"Only {few}: the intervals say little.", "yellow")


def _show(console: "Console", summary: dict[str, Any]) -> None:
    """Print a table by label, one for each domain, and one of subjects."""
    from nnunet_ext._common.console import print_plain

    _print_means(console, "label", summary["labels"])
    domains = summary["by_domain"]
    for domain, part in domains.items() if len(domains) > 1 else ():
        print_plain(console, f"Domain {domain}", "bold")
        _print_means(console, "label", part["labels"])
    subjects = summary.get("by_subject", {}).items()
    of_all_labels = {name: [*part["labels"].values()][-1] for name, part in subjects}
    counts = {name: {"cases": part["cases"]} for name, part in subjects}
    _print_means(console, "subject", {n: found | counts[n] for n, found in of_all_labels.items()})


def _print_means(console: "Console", what: str, rows: dict[str, dict[str, Any]]) -> None:
    from nnunet_ext._common.console import print_table

    for names in (MEASURES, LESION_MEASURES):  # apart, to fit into a terminal
        shown = {
            name: [str(found["cases"]), *(_shown(key, found[key]) for key in names)]
            for name, found in rows.items()
            if names.keys() <= found.keys()
        }
        heading = (what, "cases", *names.values())
        print_table(console, heading, [(name, *cells) for name, cells in shown.items()])


def _shown(measure: str, found: dict[str, float | None]) -> str:
    mean, low, high = found["mean"], found["low"], found["high"]
    decimals = 2 if measure in ("hd95", "assd") else 3
    if mean is None:
        return "-"
    limits = "" if low is None else f"\n[{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{mean:.{decimals}f}{limits}"
