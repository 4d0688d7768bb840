"""Domains of cases: from names and tables, and what does not fit is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext._common.errors import UserError
from nnunet_ext.domains.assignment import (
    cases_by_domain,
    from_csv,
    from_pattern,
    read_domains,
    refuse_unfit,
    refuse_unfit_for_training,
    subjects_from_pattern,
)

DOMAINS = {"a1": "A", "b1": "B", "a2": "A"}
NAMES = st.text("abcXYZ019-.", min_size=1)


@given(st.dictionaries(NAMES, NAMES))
def test_every_case_is_listed_once_under_its_domain_in_alphabetical_order(
    domains: dict[str, str],
) -> None:
    members = cases_by_domain(domains)
    assert {c: domain for domain, cases in members.items() for c in cases} == domains
    for names in (list(members), *members.values()):
        assert names == sorted(set(names))


def test_a_data_set_without_the_key_has_no_domains() -> None:
    assert read_domains({"labels": {}}) == {}


@pytest.mark.parametrize("broken", [["a1", "A"], "A", None, {"a1": 1}, {"a1": ""}, {"a1": None}])
def test_domains_that_are_no_names_by_case_are_refused(broken: object) -> None:
    with pytest.raises(UserError, match=r"/data/dataset\.json"):
        read_domains({"domains": broken}, "/data/dataset.json")


# --------------------------------------------------------------------------- regular expressions


@given(st.lists(st.tuples(NAMES, st.integers(0, 99)), min_size=1, unique=True))
def test_the_named_group_of_a_pattern_is_the_domain(parts: list[tuple[str, int]]) -> None:
    expected = {f"{site}_{number}": site for site, number in parts}
    assert from_pattern(r"(?P<domain>[^_]+)_\d+$", expected) == expected


def test_a_pattern_that_misses_cases_names_the_first_five() -> None:
    with pytest.raises(UserError) as refusal:
        from_pattern("(?P<domain>A)_", ["A_1", *(f"b_{number}" for number in range(7))])
    assert "7 cases (b_0, b_1, b_2, b_3, b_4 and 2 more)" in str(refusal.value)


def test_a_pattern_must_match_at_the_start_as_re_match_does() -> None:
    with pytest.raises(UserError, match=r"1 case \(x_A_1\)"):
        from_pattern("(?P<domain>A)_", ["x_A_1"])


@pytest.mark.parametrize("pattern", ["(?P<domain>A)?", "(?P<domain>A*)"])
def test_a_pattern_that_matches_without_a_domain_misses_the_case(pattern: str) -> None:
    with pytest.raises(UserError, match=r"1 case \(b\)"):
        from_pattern(pattern, ["A", "b"])


@pytest.mark.parametrize("pattern", ["[A-Z]+", "(A)", "(?P<site>A)"])
def test_a_pattern_without_the_group_gets_an_example(pattern: str) -> None:
    with pytest.raises(UserError, match=r"no group named domain.*\(\?P<domain>"):
        from_pattern(pattern, ["A"])


def test_a_pattern_that_is_none_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"not a regular expression: .*position"):
        from_pattern("(?P<domain>[A-Z", ["A"])


# --------------------------------------------------------------------------------------- subjects


def test_the_only_group_of_a_pattern_is_the_subject_wherever_it_matches() -> None:
    found = subjects_from_pattern(r"_(\d+)", ["LGE_07", "bSSFP_07_b"])
    assert found == {"LGE_07": "07", "bSSFP_07_b": "07"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("_(", "not a regular expression"),
        (r"_\d+", "has 0 groups, but needs exactly one"),
        (r"(.*)_(\d+)", "has 2 groups, but needs exactly one"),
        (r"_(\d+)$", r"finds no subject in 1 case \(a_x\)"),
        (r"_(\d*)", r"finds no subject in 1 case \(a_x\)"),
    ],
)
def test_a_pattern_that_finds_no_subject_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        subjects_from_pattern(pattern, ["a_1", "a_x"])


# ----------------------------------------------------------------------------------------- tables


def written(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    path = folder / "scanners.csv"
    path.write_text(content, encoding=encoding)
    return path


@pytest.mark.parametrize("heading", ["", "case,domain\n", "case, domain\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_with_and_without_heading(
    tmp_path: Path, heading: str, encoding: str
) -> None:
    content = heading + 'a1,A\n\na2, "A"\r\n"b,1",Zürich\n'
    expected = {"a1": "A", "a2": "A", "b,1": "Zürich"}
    path = written(tmp_path, content.replace('a2, "A"', "a2, A"), encoding)
    assert from_csv(path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a1,A\na2;A\n", r"line 2: expected .* got 'a2;A'"),
        ("a1,A,x\n", "line 1: expected"),
        ("a1,A\na2,\n", "line 2: expected"),
        ("a1,A\na1,B\n", 'line 2: case "a1" is listed twice'),
    ],
)
def test_a_line_that_is_no_case_and_domain_is_named(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        from_csv(written(tmp_path, content))


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*absent\.csv"):
        from_csv(tmp_path / "absent.csv")
    told = r'scanners.csv is not UTF-8: it holds the byte 0xfc\. Save .* "CSV UTF-8"'
    with pytest.raises(UserError, match=told):
        from_csv(written(tmp_path, "a1,Zürich", "latin-1"))


# -------------------------------------------------------------------------------------- refusals


def test_domains_of_unknown_cases_are_refused_with_the_near_name() -> None:
    with pytest.raises(UserError, match=r"here .*not training cases: 1 case \(b1\).*mean b01\?"):
        refuse_unfit(DOMAINS, ["a1", "a2", "b01"], "here")


@pytest.mark.parametrize("name", ["c.nii.gz", "c_0000.nii.gz", "c.png"])
def test_the_name_of_a_file_in_place_of_a_case_gets_the_case(name: str) -> None:
    with pytest.raises(UserError, match=r"Leave out the ending: c\.$"):
        refuse_unfit({name: "A"}, ["b", "c"], "here")


def test_a_case_without_domain_is_refused_with_the_cure() -> None:
    with pytest.raises(UserError, match=r"no domain for 2 cases \(c1, c2\).*nnunet-ext domains"):
        refuse_unfit(DOMAINS, [*DOMAINS, "c1", "c2"], "here")


def test_domains_that_fit_pass() -> None:
    refuse_unfit(DOMAINS, list(DOMAINS), "here")
    refuse_unfit_for_training(DOMAINS, DOMAINS, "X", "Dataset001_A", least=2)
    refuse_unfit_for_training(DOMAINS, ["a1"], "X", "Dataset001_A", least=1)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({}, r"X needs the domain .*3 cases \(a1, b1, a2\).*nnunet-ext domains Dataset001_A"),
        ({"a1": "A", "a2": "A"}, r"1 case \(b1\)"),
        (dict.fromkeys(DOMAINS, "A"), r"at least 2 domains .*finds 1 \(A: 3 cases \(a1, a2, b1"),
    ],
)
def test_a_fold_that_misses_domains_is_refused(domains: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        refuse_unfit_for_training(domains, DOMAINS, "X", "Dataset001_A", least=2)
