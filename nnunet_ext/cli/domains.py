"""``nnunet-ext domains``: which training case comes from which scanner or site."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from typer import Option

from nnunet_ext._common.console import say, show_table, some
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object
from nnunet_ext.cli.options import Dataset, Overwrite
from nnunet_ext.domains import assignment, splits, store
from nnunet_ext.nnunet.datasets import PREPROCESSED, find_dataset, nnunet_folder, number_of

Regex = Annotated[
    str | None, Option(metavar="PATTERN", help="Assign what (?P<domain>...) matches in case names.")
]
Csv = Annotated[
    Path | None, Option("--csv", metavar="FILE", help="Assign from a file of lines case,domain.")
]


def command(
    dataset: Dataset,
    regex: Regex = None,
    table: Csv = None,
    leave_one_out: Annotated[
        bool, Option(help="Write folds that hold out one domain each.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Show or assign the domain of each training case; write leave-one-domain-out folds.

    Domains are kept in dataset.json, raw and preprocessed. Without options, they are shown.

    \b
    Examples:
      nnunet-ext domains 101
      nnunet-ext domains 101 --regex "(?P<domain>[A-Z]+)_"
      nnunet-ext domains 101 --csv scanners.csv
      nnunet-ext domains 101 --leave-one-out
    """
    if regex is not None and table is not None:
        raise UserError("Assign by --regex or by --csv, not by both.")
    if overwrite and not leave_one_out:
        raise UserError("--overwrite replaces folds; give it together with --leave-one-out.")
    name = find_dataset(dataset)
    cases = store.case_names(name)
    source, *_ = store.dataset_json_paths(name)
    where = str(source)
    if regex is not None:
        assigned = assignment.from_pattern(regex, cases)
    elif table is not None:
        assigned, where = assignment.from_csv(table), str(table)
    else:
        assigned = assignment.read_domains(read_object(source), where)
        if not leave_one_out:
            _show(name, cases, assigned)
            return
    assignment.refuse_unfit(assigned, cases, where)
    folds = splits.leave_one_out(assigned) if leave_one_out else []
    preprocessed = nnunet_folder(PREPROCESSED) / name
    if folds:
        splits.refuse_other_folds_of_models(preprocessed, folds, overwrite)
    # for folds alone too, so that what was edited by hand in one copy reaches the other
    written = store.save_domains(name, assigned)
    if folds:
        say(f"{name}: one fold for each domain", "bold")
        rows = [(assigned[s["val"][0]], len(s["val"]), len(s["train"])) for s in folds]
        heading = ("fold", "held out", "its cases", "training cases")
        show_table(heading, [(fold, *row) for fold, row in enumerate(rows)])
        say(f"Warning: {splits.PLANNING_WARNING}", "yellow")
        place_folds(preprocessed, folds)
    else:
        _show(name, cases, assigned)
    for path in written:
        say(f"Wrote {path}")


def _show(name: str, cases: list[str], assigned: Mapping[str, str]) -> None:
    say(f"{name}: {len(cases)} training cases", "bold")
    show_domains({case: assigned[case] for case in cases if case in assigned})
    source, *copies = store.dataset_json_paths(name)
    try:
        assignment.refuse_unfit(assigned, cases, str(source))
    except UserError as error:
        say(str(error))
    for copy in copies:
        if assignment.read_domains(read_object(copy), str(copy)) != assigned:
            say(
                f"{copy} has other domains than {source}, and training reads the former. Assign "
                "the domains again with --regex or --csv, which writes both files."
            )


def show_domains(assigned: Mapping[str, str]) -> None:
    """Print the domains with the number of their cases."""
    members = assignment.cases_by_domain(assigned)
    rows = [(domain, len(cases), some(cases)) for domain, cases in members.items()]
    show_table(("domain", "cases", ""), rows)


def place_folds(preprocessed: Path, folds: list[splits.Split]) -> None:
    """Write folds that may be written, and say where they and the former ones are."""
    kept = splits.write_splits(preprocessed, folds)
    if kept is not None:
        say(f"The previous folds are kept in {kept}")
    say(f"Wrote {preprocessed / splits.SPLITS_FILE}")
    say(
        f"Train with: nnUNetv2_train {number_of(preprocessed.name)} CONFIGURATION FOLD, for FOLD "
        f"0 to {len(folds) - 1}. For a higher FOLD, nnU-Net would split at random."
    )
