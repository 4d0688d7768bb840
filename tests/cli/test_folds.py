"""``nnunet-ext folds``: folds that keep patients together, the check, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATASET = "Dataset012_Hearts"
CASES = [f"{sequence}_{patient}" for sequence in ("CT", "MR") for patient in range(6)]
DOMAINS = {case: case.split("_")[0] for case in CASES}
SUBJECT = ("--subject", r"_(\d)$")
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "Dataset102_CardiacMR"

Folds = Callable[..., Any]


@pytest.fixture
def preprocessed(make_raw: Callable[..., Path], tmp_path: Path) -> Path:
    """Preprocessed folder of a data set of two scans of each patient."""
    raw = make_raw(DATASET, CASES, domains=DOMAINS)
    folder = tmp_path / "nnUNet_preprocessed" / DATASET
    folder.mkdir()
    shutil.copy(raw / "dataset.json", folder)
    return folder


@pytest.fixture
def folds(cli: Callable[..., Any], preprocessed: Path) -> Folds:
    """Call ``folds`` on this data set."""
    return lambda *arguments: cli("folds", "12", *arguments)


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_folds_keep_patients_together_and_get_their_share_of_each_domain(
    folds: Folds, preprocessed: Path
) -> None:
    outcome = folds(*SUBJECT, "--number", "3", "--stratify", "domains")
    assert outcome.code == 0, outcome.err
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert len(splits) == 3
    for split in splits:
        assert sorted(split["train"] + split["val"]) == CASES
        assert [case[-1] for case in split["val"][:2]] == [case[-1] for case in split["val"][2:]]
    assert ["0", "2", "4", "2", "2", "8"] in lines(outcome.out)
    assert f"Wrote {preprocessed / 'splits_final.json'}\n" in outcome.out
    assert "for FOLD 0 to 2." in outcome.out
    assert folds(*SUBJECT, "--check").out.endswith(
        "None of the 6 patients is in both training and validation of a fold.\n"
    )


def test_check_names_patients_that_folds_divide_and_fails(folds: Folds, preprocessed: Path) -> None:
    path = preprocessed / "splits_final.json"
    path.write_text(json.dumps([{"train": ["CT_0", "CT_1", "MR_2"], "val": ["MR_1", "CT_3"]}]))
    outcome = folds(*SUBJECT, "--check")
    assert outcome.code == 1
    assert ["0", "2", "1", "1"] in lines(outcome.out)
    assert "1 of 6 patients are in both training and validation of a fold" in outcome.err
    assert "with 1 of 2 held-out cases" in outcome.err


def test_without_folds_those_that_nnunet_would_make_are_checked(
    folds: Folds, preprocessed: Path
) -> None:
    outcome = folds(*SUBJECT, "--check")
    assert outcome.code == 1
    assert outcome.out.startswith(f"nnU-Net's own folds of {DATASET}, as there is no ")
    assert not (preprocessed / "splits_final.json").exists()


def test_folds_of_models_are_replaced_only_when_told_and_kept(
    folds: Folds, preprocessed: Path, tmp_path: Path
) -> None:
    path = preprocessed / "splits_final.json"
    path.write_text('[{"train": ["CT_0"], "val": ["MR_0"]}]')
    before = path.read_text()
    model = tmp_path / "nnUNet_results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    model.mkdir(parents=True)
    (model / "checkpoint_final.pth").touch()
    outcome = folds(*SUBJECT)
    assert outcome.code == 1
    assert str(model) in outcome.err
    assert path.read_text() == before
    assert folds(*SUBJECT, "--overwrite").code == 0
    assert (preprocessed / "splits_final.json.bak").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--subject", r"CT_(\d)"), "finds no subject in 6 cases (MR_0, MR_1,"),
        (("--subject", "_."), "needs exactly one"),
        (("--subject", "(_)"), "All 12 cases are of one subject, '_'"),
        ((*SUBJECT, "--number", "7"), "12 cases are of 6 subjects. Ask for at most 6 folds."),
        ((*SUBJECT, "--number", "1"), "leave no case to train on"),
        ((*SUBJECT, "--stratify", "sites"), "'sites' is not"),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_written(
    folds: Folds, preprocessed: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = folds(*arguments)
    assert outcome.code != 0
    assert message in outcome.err
    assert not (preprocessed / "splits_final.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a list of folds"),
        ([{"train": ["CT_0"]}], 'fold 0 needs a list of cases under "val"'),
        ([{"train": [], "val": ["CT_0"]}], "fold 0 has no training cases"),
        ([{"train": ["CT_0"], "val": ["US_7"]}], ": 1 case (US_7). Correct the file"),
    ],
)
def test_folds_that_are_none_are_refused_by_the_check(
    folds: Folds, preprocessed: Path, content: Any, message: str
) -> None:
    (preprocessed / "splits_final.json").write_text(json.dumps(content))
    outcome = folds(*SUBJECT, "--check")
    assert outcome.code == 1
    assert message in outcome.err


def test_strata_need_the_domain_of_every_case(
    cli: Callable[..., Any], make_raw: Callable[..., Path]
) -> None:
    make_raw(DATASET, CASES)
    outcome = cli("folds", "12", *SUBJECT, "--stratify", "domains")
    assert outcome.code == 1
    assert "12 cases (CT_0, CT_1, CT_2, CT_3, CT_4 and 7 more) have no domain" in outcome.err


def test_a_data_set_that_was_not_preprocessed_is_refused(
    cli: Callable[..., Any], make_raw: Callable[..., Path]
) -> None:
    make_raw(DATASET, CASES)
    outcome = cli("folds", "12", *SUBJECT)
    assert outcome.code == 1
    assert "nnUNetv2_plan_and_preprocess -d 012" in outcome.err


@pytest.mark.skipif(not REAL.is_dir(), reason="the cardiac data are not on this machine")
def test_the_same_hearts_are_trained_on_and_held_out_by_nnunets_folds_and_not_by_these(
    cli: Callable[..., Any], make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    names = json.loads((REAL / "dataset.json").read_text())["domains"]
    make_raw("Dataset102_CardiacMR", names, domains=names)
    (tmp_path / "nnUNet_preprocessed" / "Dataset102_CardiacMR").mkdir()
    arguments = ("folds", "102", "--subject", r"_(\d+)$")
    assert "62 of 70 held-out cases" in cli(*arguments, "--check").err
    assert cli(*arguments, "--stratify", "domains").code == 0
    assert cli(*arguments, "--check").code == 0
