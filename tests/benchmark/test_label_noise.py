"""Which cases get which labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark.label_noise import LabelNoise, corrupt

CASES = [f"case_{number:02d}" for number in range(20)]
Labels = dict[str, Path]


def write(path: Path, labels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing((0.5, 1.0, 2.0))
    sitk.WriteImage(image, path)


def read(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(path))
    return array


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw data set; every case has label 1, all but the last two have label 2."""
    for number, case in enumerate(CASES):
        labels = np.random.default_rng(number).integers(0, 2, (3, 4, 5))
        labels[1] = 1 if number >= len(CASES) - 2 else 2
        write(tmp_path / "raw" / "labelsTr" / f"{case}.nii.gz", labels)
    return tmp_path / "raw"


@pytest.fixture
def clean(raw: Path) -> Labels:
    return {case: raw / "labelsTr" / f"{case}.nii.gz" for case in CASES}


@pytest.fixture
def run(raw: Path, clean: Labels, tmp_path: Path) -> Callable[..., list[str]]:
    """Corrupt into a folder "out"; checks that every case is there and the others are clean."""

    def call(labels: Labels | None = None, **noise: Any) -> list[str]:
        out = tmp_path / "out"
        changed = corrupt(labels or clean, out, LabelNoise(**noise), raw)
        assert {path.name for path in out.iterdir()} == {path.name for path in clean.values()}
        for case, path in clean.items():
            same = (out / path.name).read_bytes() == path.read_bytes()
            assert same == (case not in changed)
            assert not (out / path.name).samefile(path)
        assert changed == sorted(changed)
        return changed

    return call


# ------------------------------------------------------------------------------- dropping a label


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 6), (0.52, 10), (1.0, 20)])
def test_a_label_goes_in_exactly_this_share_of_the_cases(
    run: Callable[..., list[str]], clean: Labels, tmp_path: Path, share: float, count: int
) -> None:
    changed = run(drop_label=1, drop_share=share)
    assert len(changed) == count
    for case in changed:
        before, after = read(clean[case]), read(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(after, np.where(before == 1, 0, before))


def test_geometry_and_type_stay(
    run: Callable[..., list[str]], clean: Labels, tmp_path: Path
) -> None:
    case = run(drop_label=2, drop_share=0.5)[0]
    before, after = map(sitk.ReadImage, (clean[case], tmp_path / "out" / f"{case}.nii.gz"))
    assert after.GetSpacing() == before.GetSpacing()
    assert after.GetPixelID() == before.GetPixelID()


def test_cases_without_the_label_do_not_count_as_changed(run: Callable[..., list[str]]) -> None:
    assert run(drop_label=2, drop_share=1.0) == CASES[:-2]


def test_the_choice_depends_on_the_seed_and_not_on_the_order(
    run: Callable[..., list[str]], clean: Labels
) -> None:
    chosen = run(drop_label=1, drop_share=0.4)
    backwards = dict(reversed(list(clean.items())))
    assert run(backwards, drop_label=1, drop_share=0.4) == chosen
    assert run(drop_label=1, drop_share=0.4, seed=1) != chosen


def test_a_larger_share_adds_cases_to_those_of_a_smaller(run: Callable[..., list[str]]) -> None:
    few, many = (set(run(drop_label=1, drop_share=share)) for share in (0.2, 0.6))
    assert few < many


def test_a_label_that_no_case_has_is_refused(run: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match=r"drop_label is 7, but none of the 20 .*dataset\.json"):
        run(drop_label=7, drop_share=0.5)


# ------------------------------------------------------------------------------ another observer


def test_labels_of_another_observer_replace_those_that_differ(
    run: Callable[..., list[str]], raw: Path, clean: Labels, tmp_path: Path
) -> None:
    other = raw / "labelsTr_observer2"
    for case in ("case_03", "case_07"):
        write(other / f"{case}.nii.gz", 2 - read(clean[case]))
    write(other / "case_05.nii.gz", read(clean["case_05"]))  # both observers agree
    write(other / "unknown.nii.gz", read(clean["case_05"]))
    assert run(labels_folder=other.name) == ["case_03", "case_07"]
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "case_07.nii.gz"), read(other / "case_07.nii.gz")
    )


def test_a_missing_folder_is_named_with_those_that_are_there(
    run: Callable[..., list[str]], raw: Path
) -> None:
    (raw / "labelsTr_observer2").mkdir()
    with pytest.raises(UserError, match=r"labelsTr_obsrver2.*mean labelsTr_observer2\?"):
        run(labels_folder="labelsTr_obsrver2")


def test_a_folder_without_any_of_the_cases_is_refused(
    run: Callable[..., list[str]], raw: Path, clean: Labels
) -> None:
    write(raw / "labelsTs" / "test_01.nii.gz", read(clean["case_00"]))
    with pytest.raises(UserError, match=r"labelsTs has labels of none .* such as case_00\.nii\.gz"):
        run(labels_folder="labelsTs")


def test_other_labels_of_another_shape_are_refused(
    run: Callable[..., list[str]], raw: Path
) -> None:
    write(raw / "labelsTr_observer2" / "case_03.nii.gz", np.ones((3, 4, 6)))
    with pytest.raises(UserError, match=r"observer2/case_03.* shape is \(3, 4, 6\).*\(3, 4, 5\)"):
        run(labels_folder="labelsTr_observer2")


# ---------------------------------------------------------------------------------------- wishes


def test_clean_labels_are_never_overwritten(raw: Path, clean: Labels) -> None:
    with pytest.raises(UserError, match="holds the clean labels"):
        corrupt(clean, raw / "labelsTr", LabelNoise(drop_label=1, drop_share=1.0), raw)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, 'either "drop_label" or "labels_folder"'),
        ({"drop_label": 1, "labels_folder": "labelsTr2"}, 'either "drop_label" or "labels_folder"'),
        ({"labels_folder": "labelsTr2", "drop_share": 0.5}, 'needs a "drop_label"'),
        ({"drop_label": 0}, "greater than or equal to 1"),
        ({"drop_label": 1, "drop_share": 1.5}, "less than or equal to 1"),
        ({"drop_label": 1, "share": 0.5}, "Unexpected keyword"),
    ],
)
def test_wishes_that_contradict_themselves_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(LabelNoise).validate_json(json.dumps(wrong))
