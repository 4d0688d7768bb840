"""Finding data sets in nnU-Net's folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet.datasets import (
    PREPROCESSED,
    RAW,
    find_dataset,
    label_names,
    nnunet_folder,
    number_of,
    short_name,
    training_cases,
)
from tests.tiny import CASES, DATASET, World


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw data sets 4 and 5, of which 5 is preprocessed as well, and 6 that is that only."""
    for name in ("raw/Dataset004_Heart", "raw/Dataset005_Lung", "pre/Dataset005_Lung"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pre" / "Dataset006_Brain_MR").mkdir()
    (tmp_path / "raw" / "Dataset007_Packed.zip").touch()
    monkeypatch.setenv(RAW, str(tmp_path / "raw"))
    monkeypatch.setenv(PREPROCESSED, str(tmp_path / "pre"))
    return tmp_path


@pytest.mark.parametrize("given", ["6", "006", "Brain_MR", "Dataset006_Brain_MR"])
def test_a_data_set_is_found_by_number_name_and_full_name(folders: Path, given: str) -> None:
    assert find_dataset(given) == find_dataset(given, PREPROCESSED) == "Dataset006_Brain_MR"


def test_a_data_set_is_looked_for_only_where_it_is_asked_for(folders: Path) -> None:
    with pytest.raises(UserError, match=r"no data set \"4\".*There are: .*plan_and_preprocess"):
        find_dataset("4", PREPROCESSED)


@pytest.mark.parametrize("given", ["8", "7", "Dataset004", "heart", "../x", "²", ""])
def test_an_unknown_data_set_gets_what_there_is(folders: Path, given: str) -> None:
    with pytest.raises(UserError, match=f'no data set "{given}".*Dataset004_Heart'):
        find_dataset(given)


def test_a_misspelt_name_gets_the_near_one(folders: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean Dataset004_Heart\?"):
        find_dataset("Dataset004_Haert")


@pytest.mark.parametrize(
    ("given", "twin"), [("4", "Dataset004_Twin"), ("Heart", "Dataset009_Heart")]
)
def test_several_data_sets_that_are_meant_are_all_named(
    folders: Path, given: str, twin: str
) -> None:
    (folders / "pre" / twin).mkdir()
    with pytest.raises(UserError, match=f"Dataset004_Heart, {twin}.*full name"):
        find_dataset(given)


def test_an_unset_variable_gets_the_command_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAW, raising=False)
    with pytest.raises(UserError, match=f"{RAW} is not set.*export {RAW}="):
        nnunet_folder(RAW)


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAW, str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone, but there is no such folder"):
        nnunet_folder(RAW)


def test_a_name_falls_into_number_and_short_name() -> None:
    assert number_of("Dataset006_Brain_MR") == "006"
    assert short_name("Dataset006_Brain_MR") == "Brain_MR"


def test_training_cases_come_with_their_files(make_world: Callable[..., World]) -> None:
    raw = make_world(channels=2).write_raw(test=True)
    cases = training_cases(raw)
    assert cases.keys() == set(CASES)
    assert [Path(path).name for path in cases["case_1"]["images"]] == [
        "case_1_0000.nii.gz",
        "case_1_0001.nii.gz",
    ]
    assert Path(cases["case_1"]["label"]) == raw / "labelsTr" / "case_1.nii.gz"
    assert raw.name == DATASET


def test_hidden_files_of_other_systems_are_no_cases(make_world: Callable[..., World]) -> None:
    raw = make_world().write_raw()
    for hidden in ("imagesTr/._case_0_0000.nii.gz", "labelsTr/._case_0.nii.gz"):
        (raw / hidden).write_text("Mac OS X")
    (raw / "imagesTr" / ".DS_Store").touch()
    assert training_cases(raw).keys() == set(CASES)


def test_a_folder_without_training_images_is_refused(make_world: Callable[..., World]) -> None:
    raw = make_world().write_raw()
    for path in (raw / "imagesTr").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no training cases"):
        training_cases(raw)
    (raw / "imagesTr").rmdir()
    with pytest.raises(UserError, match=r"there is no .*imagesTr"):
        training_cases(raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "must hold a JSON object"), ("{}", "has no key 'file_en")],
)
def test_a_damaged_dataset_json_is_named(
    make_world: Callable[..., World], content: str, message: str
) -> None:
    raw = make_world().write_raw()
    (raw / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=f"{raw}/dataset.json .*{message}"):
        training_cases(raw)
    (raw / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"Cannot read .*dataset\.json"):
        training_cases(raw)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"tumour": 1, "ignore": 2}, {"1": "tumour"}),
        ({"tumour": [1]}, {"1": "tumour"}),
        (
            {"whole": [1, 2], "core": [2], "edge": 3},
            {"(1, 2)": "whole", "(2,)": "core", "3": "edge"},
        ),
    ],
)
def test_labels_are_named_by_the_keys_of_nnunets_summaries(
    labels: dict[str, Any], names: dict[str, str]
) -> None:
    labels = {"background": 0} | labels
    assert label_names({"labels": labels}) == names
    manager = LabelManager(labels, [1, 2, 3])
    summarised = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    assert [str(each) for each in summarised] == list(names)
