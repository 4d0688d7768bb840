"""The domain of each training case: where it stands, and who may say so."""

import csv
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean

DOMAINS_KEY = "domains"
"""Key of dataset.json under which the domains stand."""

GROUP = "domain"
"""Name of the group of a pattern that matches the domain."""

COLUMNS = ("case", "domain")
SHOWN = 5
"""So many cases stand for all in a message."""

Domains: TypeAlias = dict[str, str]
"""Case -> domain."""


def read_domains(dataset_json: Mapping[str, Any], where: str = "dataset.json") -> Domains:
    """Read the domains from what dataset.json holds; empty if it has none.

    Raises:
        UserError: If they are something else than names by case.
    """
    domains = dataset_json.get(DOMAINS_KEY, {})
    if not isinstance(domains, Mapping):
        raise UserError(f'"{DOMAINS_KEY}" in {where} must be an object that maps case to domain.')
    for case, domain in domains.items():
        if not isinstance(domain, str) or not domain:
            raise UserError(f'{where}: the domain of case "{case}" must be a name, not {domain!r}.')
    return dict(domains)


def cases_by_domain(domains: Mapping[str, str]) -> dict[str, list[str]]:
    """Domain -> its cases, both in alphabetical order."""
    ordered: dict[str, list[str]] = {domain: [] for domain in sorted(set(domains.values()))}
    for case in sorted(domains):
        ordered[domains[case]].append(case)
    return ordered


def from_pattern(pattern: str, cases: Iterable[str]) -> Domains:
    """Take domains from case names.

    Args:
        pattern: Regular expression with a group named ``domain``; it must match at the start
            of every name.
        cases: Names of the cases.

    Raises:
        UserError: If the pattern is wrong, or misses a case; names the first five.
    """
    compiled = _compiled(pattern)
    if GROUP not in compiled.groupindex:
        raise UserError(
            f"The pattern {pattern} has no group named {GROUP}. An example that has, for "
            f"names such as SiteA_001: (?P<{GROUP}>[^_]+)_"
        )
    domains, missed = _captured(compiled.match, cases, GROUP)
    if missed:
        raise UserError(
            f"The pattern {pattern} finds no domain in {named_cases(missed)}. It must "
            "match at the start of every name; nothing was written."
        )
    return domains


def subjects_from_pattern(pattern: str, cases: Iterable[str]) -> dict[str, str]:
    """Take subjects (patients) from case names.

    Args:
        pattern: Regular expression with exactly one group, which captures what is the same for
            all cases of a subject; it must match somewhere in every name.
        cases: Names of the cases.

    Returns:
        Case -> subject.

    Raises:
        UserError: If the pattern is wrong, or misses a case; names the first five.
    """
    compiled = _compiled(pattern)
    if compiled.groups != 1:
        raise UserError(
            f"The pattern {pattern} has {compiled.groups} groups, but needs exactly one, which "
            r"matches the subject. An example, for names such as MR_017_left: _(\d+)"
        )
    subjects, missed = _captured(compiled.search, cases, 1)
    if missed:
        raise UserError(
            f"The pattern {pattern} finds no subject in {named_cases(missed)}. Its group "
            "must match in every name."
        )
    return subjects


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"The pattern {pattern} is not a regular expression: {error}.") from None


def _captured(
    find: Callable[[str], re.Match[str] | None], cases: Iterable[str], group: str | int
) -> tuple[dict[str, str], list[str]]:
    """What a group captures in each name, and the names in which it captures nothing."""
    matches = {case: find(case) for case in cases}
    captured = {case: match[group] for case, match in matches.items() if match and match[group]}
    return captured, [case for case in matches if case not in captured]


def from_csv(path: Path) -> Domains:
    """Read a table of case and domain; a heading of just these words may come first.

    Raises:
        UserError: If it cannot be read, or a line is not of this form or repeats a case.
    """
    domains: Domains = {}
    try:
        # with the mark that Excel puts first, or without
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: it holds the byte {error.object[error.start]:#04x}. "
            'Save it again as "CSV UTF-8".'
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"Cannot read {path}: {error}.") from None
    for number, row in enumerate(rows, start=1):
        values = tuple(value.strip() for value in row)
        if not any(values) or (number == 1 and values == COLUMNS):
            continue
        if len(values) != len(COLUMNS) or not all(values):
            raise UserError(
                f"{path}, line {number}: expected a case and its domain with a comma between, "
                f"such as case_001,SiteA, but got {','.join(row)!r}."
            )
        case, domain = values
        if case in domains:
            raise UserError(f'{path}, line {number}: case "{case}" is listed twice.')
        domains[case] = domain
    return domains


def refuse_unfit(domains: Mapping[str, str], cases: Collection[str], where: str) -> None:
    """Refuse domains of cases that do not exist, and cases without a domain."""
    known = set(cases)
    unknown = [case for case in domains if case not in known]
    if unknown:
        # as in the names of files: case_0000.nii.gz
        stem = re.sub(r"(_\d{4})?\..+$", "", unknown[0])
        meant = f" Leave out the ending: {stem}." if stem in known else ""
        raise UserError(
            f"{where} has domains of cases that are not training cases: {named_cases(unknown)}."
            f"{meant or did_you_mean(unknown[0], known)}"
        )
    missing = without_domain(domains, cases)
    if missing:
        raise UserError(
            f"{where} has no domain for {named_cases(missing)}. Every training case needs one: add "
            "it, or assign all domains with `nnunet-ext domains DATASET` and --regex or --csv."
        )


def without_domain(domains: Mapping[str, str], cases: Iterable[str]) -> list[str]:
    """The cases that have no domain."""
    return [case for case in cases if case not in domains]


def refuse_unfit_for_training(
    domains: Mapping[str, str], cases: Iterable[str], who: str, dataset: str, least: int
) -> None:
    """Refuse to train with domains on cases that have none, or too few."""
    cases = list(cases)
    missing = without_domain(domains, cases)
    assign = f"`nnunet-ext domains {dataset}` shows and assigns domains."
    if missing:
        raise UserError(
            f"{who} needs the domain of every training case, but {DOMAINS_KEY!r} in dataset.json "
            f"has none for {named_cases(missing)}. {assign}"
        )
    found = cases_by_domain({case: domains[case] for case in cases})
    if len(found) < least:
        described = "; ".join(
            f"{domain}: {named_cases(members)}" for domain, members in found.items()
        )
        raise UserError(
            f"{who} needs at least {least} domains among the training cases of the fold, but "
            f"finds {len(found)} ({described}). {assign}"
        )


def named_cases(cases: Sequence[str]) -> str:
    """How many cases, and the first of them."""
    more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
    number = f"{len(cases)} cases" if len(cases) > 1 else "1 case"
    return f"{number} ({', '.join(cases[:SHOWN])}{more})"
