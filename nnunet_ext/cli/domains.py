"""``nnunet-ext domains``: which training case comes from which scanner or site."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_ext._common.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_ext.domains.splits import Split


def domains(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Number or name of a data set.")
    ],
    regex: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Assign: the group (?P<domain>...) of case names."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Assign: lines of case,domain."),
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Write folds that hold out one domain each.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace folds on which models were trained.")
    ] = False,
) -> None:
    """Show or assign the domain of each training case; write leave-one-domain-out folds.

    Domains stand in dataset.json, raw and preprocessed. Without options, they are shown.

    \b
    Examples:
      nnunet-ext domains 101
      nnunet-ext domains 101 --regex "(?P<domain>[A-Z]+)_"
      nnunet-ext domains 101 --csv scanners.csv
      nnunet-ext domains 101 --leave-one-out
    """
    from rich.console import Console

    from nnunet_ext._common.console import print_plain
    from nnunet_ext._common.files import read_object
    from nnunet_ext.domains import assignment, splits, store
    from nnunet_ext.nnunet.datasets import PREPROCESSED, find_dataset, nnunet_folder

    if regex is not None and table is not None:
        raise UserError("Assign by --regex or by --csv, not by both.")
    if overwrite and not leave_one_out:
        raise UserError("--overwrite replaces folds; give it together with --leave-one-out.")
    console = Console(highlight=False)
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
            _show(console, name, cases, assigned)
            return
    assignment.refuse_unfit(assigned, cases, where)
    folds = splits.leave_one_out(assigned) if leave_one_out else []
    preprocessed = nnunet_folder(PREPROCESSED) / name
    if folds:
        splits.refuse_other_folds_of_models(preprocessed, folds, overwrite)
    # for folds alone too, so that what was edited by hand in one copy reaches the other
    written = store.save_domains(name, assigned)
    if folds:
        _show_folds(console, name, assigned, folds)
        place_folds(console, preprocessed, folds)
    else:
        _show(console, name, cases, assigned)
    for path in written:
        print_plain(console, f"Wrote {path}")


def _show(console: "Console", name: str, cases: list[str], assigned: Mapping[str, str]) -> None:
    from nnunet_ext._common.console import print_plain
    from nnunet_ext._common.files import read_object
    from nnunet_ext.domains import assignment, store

    print_plain(console, f"{name}: {len(cases)} training cases", "bold")
    print_domains(console, {case: assigned[case] for case in cases if case in assigned})
    source, *copies = store.dataset_json_paths(name)
    try:
        assignment.refuse_unfit(assigned, cases, str(source))
    except UserError as error:
        print_plain(console, str(error))
    for copy in copies:
        if assignment.read_domains(read_object(copy), str(copy)) != assigned:
            print_plain(
                console,
                f"{copy} has other domains, and training reads these. Assign domains with this "
                "command, which writes both files.",
            )


def print_domains(console: "Console", assigned: Mapping[str, str]) -> None:
    """Print the domains with the number of their cases."""
    from nnunet_ext._common.console import print_table, some
    from nnunet_ext.domains.assignment import cases_by_domain

    members = cases_by_domain(assigned)
    rows = [(domain, str(len(cases)), some(cases)) for domain, cases in members.items()]
    print_table(console, ("domain", "cases", ""), rows)


def _show_folds(
    console: "Console", name: str, assigned: Mapping[str, str], folds: "list[Split]"
) -> None:
    from nnunet_ext._common.console import print_plain, print_table
    from nnunet_ext.domains.splits import PLANNING_WARNING

    print_plain(console, f"{name}: one fold for each domain", "bold")
    rows = [
        (str(fold), assigned[split["val"][0]], str(len(split["val"])), str(len(split["train"])))
        for fold, split in enumerate(folds)
    ]
    print_table(console, ("fold", "held out", "its cases", "training cases"), rows)
    print_plain(console, f"Warning: {PLANNING_WARNING}", "yellow")


def place_folds(console: "Console", preprocessed: Path, folds: "list[Split]") -> None:
    """Write folds that may be written, and say where they and the former ones are."""
    from nnunet_ext._common.console import print_plain
    from nnunet_ext.domains.splits import SPLITS_FILE, write_splits
    from nnunet_ext.nnunet.datasets import number_of

    kept = write_splits(preprocessed, folds)
    if kept is not None:
        print_plain(console, f"The former folds are kept in {kept}")
    print_plain(console, f"Wrote {preprocessed / SPLITS_FILE}")
    print_plain(
        console,
        f"Train with: nnUNetv2_train {number_of(preprocessed.name)} CONFIGURATION FOLD, for FOLD "
        f"0 to {len(folds) - 1}. For a higher FOLD, nnU-Net would split at random.",
    )
