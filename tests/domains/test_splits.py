"""Folds that hold out domains or keep subjects whole, and models that must not lose theirs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext._common.errors import UserError
from nnunet_ext.domains.splits import (
    divided_subjects,
    grouped_folds,
    leave_one_out,
    refuse_other_folds_of_models,
    trained_folds,
    write_splits,
)

FOLDS = leave_one_out({"a": "A", "b": "B"})
OTHER = [{"train": ["a"], "val": ["b"]}]


@given(st.dictionaries(st.text(min_size=1), st.sampled_from("CBA"), min_size=1))
def test_each_domain_is_held_out_once_by_its_alphabetical_place(domains: dict[str, str]) -> None:
    names = sorted(set(domains.values()))
    if len(names) < 2:
        with pytest.raises(UserError, match=f'at least two domains; there is only "{names[0]}"'):
            leave_one_out(domains)
        return
    folds = leave_one_out(domains)
    assert [{domains[case] for case in fold["val"]} for fold in folds] == [{n} for n in names]
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(domains)
        assert not set(fold["train"]) & set(fold["val"])


def test_no_domains_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="there is none"):
        leave_one_out({})


# ------------------------------------------------------------------------------ folds by subject

HEARTS = [f"{sequence}_{patient:02d}" for sequence in ("bSSFP", "LGE") for patient in range(35)]
SEQUENCES = {case: case.split("_")[0] for case in HEARTS}
SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=20)


def patient(case: str) -> str:
    return case.split("_")[1]


@given(SIZES, st.integers(2, 6), st.integers(0, 3))
def test_no_subject_is_divided_and_each_case_held_out_once(
    sizes: list[int], number: int, seed: int
) -> None:
    cases = [f"{'ABC'[scan % 3]}{scan}_{i}" for i, size in enumerate(sizes) for scan in range(size)]
    if number > len(sizes):
        with pytest.raises(UserError, match=f"Ask for at most {len(sizes)} folds"):
            grouped_folds(cases, patient, number, seed=seed)
        return
    for stratify in (None, {case: case[0] for case in cases}):
        folds = grouped_folds(cases, patient, number, stratify, seed)
        assert sorted(case for fold in folds for case in fold["val"]) == sorted(cases)
        for fold in folds:
            assert fold["train"]
            assert fold["val"]
            assert fold["train"] == sorted(set(cases) - set(fold["val"]))
        assert not any(divided_subjects(folds, patient))


@given(SIZES, st.integers(2, 5))
def test_folds_differ_by_no_more_than_the_largest_subject(sizes: list[int], number: int) -> None:
    if number > len(sizes):
        return
    cases = [f"{scan}_{i}" for i, size in enumerate(sizes) for scan in range(size)]
    held_out = [len(fold["val"]) for fold in grouped_folds(cases, patient, number)]
    assert max(held_out) - min(held_out) <= max(sizes)


def test_every_fold_gets_its_share_of_each_domain() -> None:
    # the first ten patients have both sequences, the others one
    cases = [case for case in HEARTS if case < "LGE_10" or case > "bSSFP_20"]
    domains = {case: SEQUENCES[case] for case in cases}
    for seed in range(5):
        folds = grouped_folds(cases, patient, 5, domains, seed)
        for domain in ("bSSFP", "LGE"):
            found = [sum(domains[case] == domain for case in fold["val"]) for fold in folds]
            assert max(found) - min(found) <= 1


def test_folds_depend_on_the_seed_and_not_on_the_order_of_cases() -> None:
    first = grouped_folds(HEARTS, patient)
    assert grouped_folds(HEARTS[::-1], patient) == first
    assert grouped_folds(HEARTS, patient, seed=1) != first


@pytest.mark.parametrize(
    ("number", "domains", "message"),
    [
        (1, None, "1 folds leave no case to train on"),
        (36, None, "70 cases are of 35 subjects. Ask for at most 35 folds"),
        (5, {"LGE_00": "LGE"}, r"69 cases \(bSSFP_00, .*have no domain"),
    ],
)
def test_folds_that_cannot_be_are_refused(
    number: int, domains: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        grouped_folds(HEARTS, patient, number, domains)


def test_one_subject_in_all_is_refused() -> None:
    with pytest.raises(UserError, match="All 70 cases are of one subject, 'heart'"):
        grouped_folds(HEARTS, lambda case: "heart")


def test_divided_subjects_are_found_where_they_are_held_out() -> None:
    splits = [
        {"train": ["LGE_01", "LGE_02"], "val": ["bSSFP_01", "LGE_03"]},
        {"train": ["LGE_03"], "val": ["LGE_01", "bSSFP_01"]},
    ]
    assert divided_subjects(splits, patient) == [{"01": ["bSSFP_01"]}, {}]


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set; nnUNet_results is a folder that does not exist yet."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    folder = tmp_path / "preprocessed" / "Dataset001_A"
    folder.mkdir(parents=True)
    return folder


def model(tmp_path: Path, fold: str, file: str = "checkpoint_latest.pth") -> Path:
    folder = tmp_path / "results" / "Dataset001_A" / "nnUNetTrainer__nnUNetPlans__2d" / fold
    folder.mkdir(parents=True)
    (folder / file).touch()
    return folder


def test_folds_are_written_where_nnunet_reads_them(preprocessed: Path) -> None:
    assert write_splits(preprocessed, FOLDS) is None
    assert json.loads((preprocessed / "splits_final.json").read_text()) == FOLDS


def test_former_folds_are_all_kept_and_equal_ones_only_once(preprocessed: Path) -> None:
    kept = [write_splits(preprocessed, splits) for splits in (FOLDS, FOLDS, OTHER, FOLDS)]
    backups = [preprocessed / f"splits_final.json{end}" for end in (".bak", ".bak1")]
    assert kept == [None, None, *backups]
    assert [json.loads(path.read_text()) for path in backups] == [FOLDS, OTHER]


def test_folds_of_models_are_not_replaced(preprocessed: Path, tmp_path: Path) -> None:
    write_splits(preprocessed, OTHER)
    refuse_other_folds_of_models(preprocessed, FOLDS)
    folder = model(tmp_path, "fold_0")
    with pytest.raises(UserError, match=f"(?s){folder}.*--overwrite"):
        refuse_other_folds_of_models(preprocessed, FOLDS)
    refuse_other_folds_of_models(preprocessed, OTHER)  # nothing would change


def test_only_folders_with_a_model_of_a_numbered_fold_count(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        model(tmp_path, "fold_all")  # trained on all cases, whatever the folds are
        model(tmp_path, "fold_1", "debug.json")
        assert trained_folds("Dataset001_A") == []
        folder = model(tmp_path, "fold_2", "checkpoint_final.pth")
        assert trained_folds("Dataset001_A") == [folder]


def test_without_a_results_folder_nobody_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(UserError, match="nnUNet_results is not set"):
        trained_folds("Dataset001_A")
