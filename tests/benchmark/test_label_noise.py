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
    named = {"background": 0, "a": [1, 2], "b": 2, "ignore": 3}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": named}))
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
    changed = run(drop_label=1, share=share)
    assert len(changed) == count
    for case in changed:
        before, after = read(clean[case]), read(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(after, np.where(before == 1, 0, before))


def test_former_files_call_the_share_by_another_name() -> None:
    former = TypeAdapter(LabelNoise).validate_json('{"drop_label": 1, "drop_share": 0.4}')
    assert former == LabelNoise(drop_label=1, share=0.4)


def test_geometry_and_type_stay(
    run: Callable[..., list[str]], clean: Labels, tmp_path: Path
) -> None:
    case = run(drop_label=2, share=0.5)[0]
    before, after = map(sitk.ReadImage, (clean[case], tmp_path / "out" / f"{case}.nii.gz"))
    assert after.GetSpacing() == before.GetSpacing()
    assert after.GetPixelID() == before.GetPixelID()


def test_cases_without_the_label_do_not_count_as_changed(run: Callable[..., list[str]]) -> None:
    assert run(drop_label=2, share=1.0) == CASES[:-2]


def test_the_choice_depends_on_the_seed_and_not_on_the_order(
    run: Callable[..., list[str]], clean: Labels
) -> None:
    chosen = run(drop_label=1, share=0.4)
    backwards = dict(reversed(list(clean.items())))
    assert run(backwards, drop_label=1, share=0.4) == chosen
    assert run(drop_label=1, share=0.4, seed=1) != chosen


def test_a_larger_share_adds_cases_to_those_of_a_smaller(run: Callable[..., list[str]]) -> None:
    few, many = (set(run(drop_label=1, share=share)) for share in (0.2, 0.6))
    assert few < many


def test_a_label_that_no_case_has_is_refused(run: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match=r"drop_label is 7, but none of the 20 .*dataset\.json"):
        run(drop_label=7, share=0.5)


# ------------------------------------------------------------------------------ wrong structures


def test_swapped_labels_are_each_called_the_other(
    run: Callable[..., list[str]], clean: Labels, tmp_path: Path
) -> None:
    for case in run(swap_labels=(1, 2), share=0.5):
        before, after = read(clean[case]), read(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(after, np.array([0, 2, 1])[before])


def block(*corner: int) -> NDArray[Any]:
    """A cube of label 1 in an image of 8 x 8 x 8, and one of label 2 at the far corner."""
    labels = np.zeros((8, 8, 8), int)
    labels[-2:, -2:, -2:] = 2
    labels[tuple(slice(start, start + 3) for start in corner)] = 1
    return labels


def test_an_extra_structure_is_a_copy_half_an_image_away(
    run: Callable[..., list[str]], clean: Labels, tmp_path: Path
) -> None:
    for case in CASES:
        write(clean[case], block(0, 0, 0))
    extra = block(4, 4, 4)  # where label 2 is not
    for case in run(extra_label=1, share=0.3):
        after = read(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(after, np.where(block(0, 0, 0) > 0, block(0, 0, 0), extra))
        assert (after == 1).sum() == 27 + 26


def test_a_dilated_structure_grows_into_background_alone(
    run: Callable[..., list[str]], clean: Labels, tmp_path: Path
) -> None:
    for case in CASES:
        write(clean[case], block(3, 3, 3))
    changed = run(dilate_label=1, share=0.5)
    assert len(changed) == 10
    before, after = block(3, 3, 3), read(tmp_path / "out" / f"{changed[0]}.nii.gz")
    assert set(before[after != before]) == {0}
    assert set(after[after != before]) == {1}
    assert after[4, 4].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert not after[0].any()


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


def test_the_share_holds_for_another_observer_too(
    run: Callable[..., list[str]], raw: Path, clean: Labels
) -> None:
    for case in CASES:
        write(raw / "labelsTr_observer2" / f"{case}.nii.gz", 2 - read(clean[case]))
    assert len(run(labels_folder="labelsTr_observer2", share=0.3)) == 6


def test_masks_that_are_no_labels_are_refused_by_file_and_value(
    run: Callable[..., list[str]], raw: Path, clean: Labels
) -> None:
    for case in CASES[:3]:
        mask = (read(clean[case]) > 0) * (255 if case == "case_01" else 1)
        write(raw / "masks" / f"{case}.nii.gz", mask)
    with pytest.raises(UserError, match=r"masks/case_01\.nii\.gz has the value 255, .*0, 1, 2, 3"):
        run(labels_folder="masks")


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
        corrupt(clean, raw / "labelsTr", LabelNoise(drop_label=1, share=1.0), raw)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "exactly one of drop_label, extra_label, swap_labels"),
        ({"drop_label": 1, "labels_folder": "labelsTr2"}, "exactly one of drop_label"),
        ({"swap_labels": [2, 2]}, "two different labels"),
        ({"swap_labels": [2]}, "Missing required|at least 2|Field required"),
        ({"drop_label": 0}, "greater than or equal to 1"),
        ({"drop_label": 1, "share": 1.5}, "less than or equal to 1"),
        ({"drop_label": 1, "shares": 0.5}, "Unexpected keyword"),
    ],
)
def test_wishes_that_contradict_themselves_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(LabelNoise).validate_json(json.dumps(wrong))
