"""``nnunet-ext domains``: showing, assigning, folds, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATASET = "Dataset012_Eyes"
CASES = ("Basel_1", "Basel_2", "Ulm_1")
ASSIGNED = {"Basel_1": "Basel", "Basel_2": "Basel", "Ulm_1": "Ulm"}
PATTERN = "(?P<domain>[A-Za-z]+)_"
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "Dataset101_RetinaVessels"

Domains = Callable[..., Any]


@pytest.fixture
def raw(make_raw: Callable[..., Path]) -> Path:
    return make_raw(DATASET, CASES)


@pytest.fixture
def preprocessed(raw: Path, tmp_path: Path) -> Path:
    """The same data set, preprocessed."""
    folder = tmp_path / "nnUNet_preprocessed" / DATASET
    folder.mkdir()
    shutil.copy(raw / "dataset.json", folder)
    return folder


@pytest.fixture
def domains(cli: Callable[..., Any], raw: Path) -> Domains:
    """Call ``domains`` on this data set."""
    return lambda *arguments: cli("domains", "12", *arguments)


def written(folder: Path) -> Any:
    return json.loads((folder / "dataset.json").read_text()).get("domains")


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# ------------------------------------------------------------------------- showing and assigning


def test_without_options_the_table_and_the_cases_without_domain_are_shown(
    domains: Domains, make_raw: Callable[..., Path], raw: Path
) -> None:
    shutil.rmtree(raw)
    make_raw(DATASET, [*CASES, "Ulm_2"], domains=ASSIGNED)
    before = (raw / "dataset.json").read_bytes()
    outcome = domains()
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{DATASET}: 4 training cases\n")
    assert ["Basel", "2", "Basel_1,", "Basel_2"] in lines(outcome.out)
    assert ["Ulm", "1", "Ulm_1"] in lines(outcome.out)
    assert "no domain for 1 case (Ulm_2)" in outcome.out
    assert (raw / "dataset.json").read_bytes() == before


def test_a_preprocessed_copy_with_other_domains_is_told(
    domains: Domains, raw: Path, preprocessed: Path
) -> None:
    assert domains("--regex", PATTERN).code == 0
    assert "has other domains" not in domains().out
    content = json.loads((preprocessed / "dataset.json").read_text())
    (preprocessed / "dataset.json").write_text(json.dumps(content | {"domains": {}}))
    assert f"{preprocessed / 'dataset.json'} has other domains" in domains().out


@pytest.mark.parametrize("by", ["regex", "csv"])
def test_domains_are_assigned_in_both_copies(
    domains: Domains, raw: Path, preprocessed: Path, tmp_path: Path, by: str
) -> None:
    table = tmp_path / "sites.csv"
    table.write_text("case,domain\n" + "".join(f"{c},{d}\n" for c, d in ASSIGNED.items()))
    outcome = domains(*{"regex": ("--regex", PATTERN), "csv": ("--csv", str(table))}[by])
    assert outcome.code == 0, outcome.err
    assert written(raw) == written(preprocessed) == ASSIGNED
    for folder in (raw, preprocessed):
        assert f"Wrote {folder / 'dataset.json'}\n" in outcome.out


@pytest.mark.parametrize("name", ["12", "012", "Eyes", DATASET])
def test_the_data_set_is_known_by_number_and_names(
    cli: Callable[..., Any], raw: Path, name: str
) -> None:
    assert cli("domains", name).code == 0


# ----------------------------------------------------------------------------------------- folds


def test_each_domain_is_held_out_by_a_fold_and_planning_is_warned_of(
    domains: Domains, raw: Path, preprocessed: Path
) -> None:
    outcome = domains("--regex", PATTERN, "--leave-one-out")
    assert outcome.code == 0, outcome.err
    assert json.loads((preprocessed / "splits_final.json").read_text()) == [
        {"train": ["Ulm_1"], "val": ["Basel_1", "Basel_2"]},
        {"train": ["Basel_1", "Basel_2"], "val": ["Ulm_1"]},
    ]
    assert ["0", "Basel", "2", "1"] in lines(outcome.out)
    assert "Warning: nnU-Net has planned with all cases" in outcome.out
    assert "for FOLD 0 to 1." in outcome.out


def test_folds_take_domains_that_were_written_by_hand_into_the_other_copy(
    domains: Domains, raw: Path, preprocessed: Path
) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"domains": ASSIGNED}))
    assert domains("--leave-one-out").code == 0
    assert written(preprocessed) == ASSIGNED


def test_folds_of_models_are_replaced_only_when_told_and_kept(
    domains: Domains, preprocessed: Path, raw: Path, tmp_path: Path
) -> None:
    splits = preprocessed / "splits_final.json"
    splits.write_text('[{"train": ["Ulm_1"], "val": ["Basel_1"]}]')
    fold = tmp_path / "nnUNet_results" / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_best.pth").touch()
    before = splits.read_text()

    outcome = domains("--regex", PATTERN, "--leave-one-out")
    assert outcome.code == 1
    assert str(fold) in outcome.err
    assert splits.read_text() == before
    assert written(raw) is None  # nothing is half-written

    outcome = domains("--regex", PATTERN, "--leave-one-out", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert (preprocessed / "splits_final.json.bak").read_text() == before
    assert "The previous folds are kept in" in outcome.out
    assert domains("--leave-one-out").code == 0  # the same folds again


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--regex", "(?P<domain>Ulm)_"), "no domain in 2 cases (Basel_1, Basel_2)"),
        (("--regex", "[A-Z"), "not a regular expression"),
        (("--regex", "Ulm"), "no group named domain"),
        (("--regex", PATTERN, "--csv", "x.csv"), "not by both"),
        (("--csv", "absent.csv"), "Cannot read absent.csv"),
        (("--overwrite",), "--leave-one-out"),
        (("--leave-one-out",), "no domain for 3 cases (Basel_1, Basel_2, Ulm_1)"),
        (("--regex", "(?P<domain>.)", "--leave-one-out"), "nnUNetv2_plan_and_preprocess -d 012"),
        (("--regex", r"(?P<domain>\w)\w*_", "--leave-one-out"), "nnUNetv2_plan_and_preprocess"),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_written(
    domains: Domains, raw: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = (raw / "dataset.json").read_bytes()
    outcome = domains(*arguments)
    assert outcome.code == 1
    assert outcome.out == ""
    assert message in outcome.err
    assert (raw / "dataset.json").read_bytes() == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Basel_1,A\nBasel_2,A\nUlm_1,B\nUlm_2,B\n", "not training cases: 1 case (Ulm_2)"),
        ("Basel_1,A\nBasel_2,A\n", "no domain for 1 case (Ulm_1)"),
    ],
)
def test_a_table_that_does_not_fit_the_cases_is_refused(
    domains: Domains, raw: Path, tmp_path: Path, table: str, message: str
) -> None:
    path = tmp_path / "sites.csv"
    path.write_text(table)
    outcome = domains("--csv", str(path))
    assert outcome.code == 1
    assert f"{path} has" in outcome.err
    assert message in outcome.err
    assert written(raw) is None


def test_one_domain_cannot_be_left_out(domains: Domains, preprocessed: Path) -> None:
    outcome = domains("--regex", ".*(?P<domain>_)", "--leave-one-out")
    assert 'at least two domains; there is only "_"' in outcome.err
    assert not (preprocessed / "splits_final.json").exists()


def test_an_unknown_data_set_is_refused(cli: Callable[..., Any], raw: Path) -> None:
    outcome = cli("domains", "13")
    assert outcome.code == 1
    assert f"There are: {DATASET}." in outcome.err


# ------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not REAL.is_dir(), reason="the retina data are not on this machine")
def test_the_cameras_of_the_retina_data_are_found_in_their_names(
    cli: Callable[..., Any], raw: Path
) -> None:
    folder = raw.with_name(REAL.name)
    folder.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (folder / name).symlink_to(REAL / name)
    content = json.loads((REAL / "dataset.json").read_text())
    given = content.pop("domains")
    (folder / "dataset.json").write_text(json.dumps(content))
    outcome = cli("domains", "101", "--regex", "(?P<domain>[A-Z]+)_")
    assert outcome.code == 0, outcome.err
    assert written(folder) == given
    counts = [line[:2] for line in lines(outcome.out)[2:5]]
    assert counts == [["CHASE", "20"], ["DRIVE", "20"], ["STARE", "15"]]
