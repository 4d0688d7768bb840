"""Leave-one-domain-out folds, and models that must not lose theirs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext._common.errors import UserError
from nnunet_ext.domains.splits import (
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
