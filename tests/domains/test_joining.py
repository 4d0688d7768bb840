"""One raw data set of several: names, domains, files, and what does not go together."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from skimage.io import imsave

from nnunet_ext._common.errors import UserError
from nnunet_ext.domains import joining
from nnunet_ext.domains.joining import Case, Joined
from nnunet_ext.nnunet.datasets import training_cases

MakeRaw = Callable[..., Path]


def join(
    labelled: list[str], unlabelled: list[str] | None = None, name: str = "All", link: bool = False
) -> Joined:
    joined = joining.gather(labelled, unlabelled or [], 9, name)
    joining.write(joined, link)
    return joined


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "dataset.json"
    }


def test_cases_keep_their_names_and_each_source_becomes_a_domain(make_raw: MakeRaw) -> None:
    make_raw("Dataset001_Bern", ["b1", "b2"], channels=2, licence="CC0")
    make_raw("Dataset002_Ulm", ["u1"], channels=2)
    folder = join(["1", "Ulm"]).folder
    assert folder.name == "Dataset009_All"
    assert files(folder) == {
        **{
            f"imagesTr/b{n}_000{c}.nii.gz": f"Dataset001_Bern b{n} {c}"
            for n in (1, 2)
            for c in (0, 1)
        },
        **{f"imagesTr/u1_000{c}.nii.gz": f"Dataset002_Ulm u1 {c}" for c in (0, 1)},
        **{f"labelsTr/b{n}.nii.gz": f"Dataset001_Bern b{n}" for n in (1, 2)},
        "labelsTr/u1.nii.gz": "Dataset002_Ulm u1",
    }
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "MR0", "1": "MR1"},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".nii.gz",
        "numTraining": 3,
        "name": "All",
        "domains": {"b1": "Bern", "b2": "Bern", "u1": "Ulm"},
        "joined_from": {"Dataset001_Bern": {"licence": "CC0"}, "Dataset002_Ulm": {}},
    }


def test_domains_of_a_source_get_its_name_in_front(make_raw: MakeRaw) -> None:
    make_raw("Dataset001_Bern", ["b1", "b2"], domains={"b1": "old", "b2": "new"})
    make_raw("Dataset002_Ulm", ["u1"])
    domains = join(["1", "2"]).content["domains"]
    assert domains == {"b1": "Bern_old", "b2": "Bern_new", "u1": "Ulm"}


def test_a_name_that_two_sources_have_gets_the_source_in_front(make_raw: MakeRaw) -> None:
    make_raw("Dataset001_Bern", ["case", "other"])
    make_raw("Dataset002_Ulm", ["Case"])  # the same file on some file systems
    joined = join(["1", "2"])
    assert list(joined.cases) == ["Bern_case", "other", "Ulm_Case"]
    assert files(joined.folder)["imagesTr/Ulm_Case_0000.nii.gz"] == "Dataset002_Ulm Case 0"
    assert joined.content["domains"]["Ulm_Case"] == "Ulm"


def test_sources_of_one_name_are_told_apart_by_their_number(make_raw: MakeRaw) -> None:
    make_raw("Dataset001_Ulm", ["case"])
    make_raw("Dataset002_Ulm", ["case"])
    domains = join(["1", "2"]).content["domains"]
    assert domains == {
        "Dataset001_Ulm_case": "Dataset001_Ulm",
        "Dataset002_Ulm_case": "Dataset002_Ulm",
    }


def test_names_that_collide_all_the_same_are_refused(make_raw: MakeRaw) -> None:
    make_raw("Dataset001_Bern", ["case", "Ulm_case"])
    make_raw("Dataset002_Ulm", ["case"])
    with pytest.raises(UserError, match="called Ulm_case, from Dataset001_Bern and Dataset002_Ulm"):
        join(["1", "2"])


def test_unlabelled_images_go_where_nnunet_never_looks(make_raw: MakeRaw) -> None:
    make_raw("Dataset001_Bern", ["case"])
    source = make_raw("Dataset002_Ulm", ["case", "u"], channel_names={"0": "CT"})
    (source / "imagesUn").mkdir()
    (source / "imagesUn" / "more_0000.nii.gz").write_text("more")
    joined = join(["1"], ["2"])
    assert files(joined.folder) == {
        "imagesTr/Bern_case_0000.nii.gz": "Dataset001_Bern case 0",
        "labelsTr/Bern_case.nii.gz": "Dataset001_Bern case",
        "imagesUn/Ulm_case_0000.nii.gz": "Dataset002_Ulm case 0",
        "imagesUn/u_0000.nii.gz": "Dataset002_Ulm u 0",
        "imagesUn/more_0000.nii.gz": "more",
    }
    assert joined.content["domains"] == {"Bern_case": "Bern"}
    assert training_cases(joined.folder).keys() == {"Bern_case"}


def test_links_lead_to_the_sources_and_the_spacing_of_tiff_files_comes_along(
    make_raw: MakeRaw, tmp_path: Path
) -> None:
    source = make_raw("Dataset001_Bern", ["b1"], ending=".tif")
    voxels = np.zeros((4, 5, 6), dtype=np.uint8)
    tifffile.imwrite(source / "imagesTr" / "b1_0000.tif", voxels, photometric="minisblack")
    (source / "imagesTr" / "b1.json").write_text('{"spacing": [1, 2, 3]}')
    # a link in the source, relative to it
    (source / "labelsTr" / "b1.tif").rename(source / "real.tif")
    (source / "labelsTr" / "b1.tif").symlink_to("../real.tif")
    folder = join(["1"], link=True).folder
    assert (folder / "imagesTr" / "b1_0000.tif").resolve() == source / "imagesTr" / "b1_0000.tif"
    assert (folder / "labelsTr" / "b1.tif").readlink() == source / "real.tif"
    assert json.loads((folder / "imagesTr" / "b1.json").read_text()) == {"spacing": [1, 2, 3]}


def write_voxels(path: Path, shape: tuple[int, ...]) -> None:
    voxels = np.zeros(shape, dtype=np.uint8)
    if path.name.endswith(".nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=False), path)
    else:
        imsave(path, voxels, check_contrast=False)


@pytest.mark.parametrize(
    ("ending", "shape"), [(".png", (4, 5, 3)), (".tif", (4, 5, 3)), (".nii.gz", (3, 4, 5, 6))]
)
def test_channels_are_counted_and_not_files(
    make_raw: MakeRaw, ending: str, shape: tuple[int, ...]
) -> None:
    colours = {str(channel): name for channel, name in enumerate(("R", "G", "B"))}
    for name in ("Dataset001_Bern", "Dataset002_Ulm", "Dataset003_Genf"):
        raw = make_raw(name, [name], ending=ending, channel_names=colours)
        write_voxels(raw / "imagesTr" / f"{name}_0000{ending}", shape)
    joined = join(["1", "2"], ["3"])
    assert (len(joined.cases), len(joined.unlabelled)) == (2, 1)


@pytest.mark.parametrize(
    ("channels", "shape", "found"), [(3, (4, 5), 1), (1, (4, 5, 3), 3), (3, (4, 5, 4), 4)]
)
def test_pictures_with_other_colours_than_planned_are_refused(
    make_raw: MakeRaw, channels: int, shape: tuple[int, ...], found: int
) -> None:
    names = {str(channel): str(channel) for channel in range(channels)}
    raw = make_raw("Dataset001_Bern", ["b1"], ending=".png", channel_names=names)
    write_voxels(raw / "imagesTr" / "b1_0000.png", shape)
    with pytest.raises(UserError, match=f"b1 has images of {found} channels, but .* {channels}"):
        join(["1"])


def test_a_source_may_list_its_files_in_dataset_json(make_raw: MakeRaw, tmp_path: Path) -> None:
    source = make_raw("Dataset001_Bern", ["b1"])
    shutil.move(source / "imagesTr", tmp_path / "elsewhere")
    path = source / "dataset.json"
    image = str(tmp_path / "elsewhere" / "b1_0000.nii.gz")
    listed = {"b1": {"images": [image], "label": "labelsTr/b1.nii.gz"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": listed}))
    folder = join(["1"]).folder
    assert files(folder)["imagesTr/b1_0000.nii.gz"] == "Dataset001_Bern b1 0"
    assert "dataset" not in json.loads((folder / "dataset.json").read_text())


@given(
    st.lists(
        st.sets(st.from_regex("[abAB]{1,2}_?[01]?", fullmatch=True)).filter(
            lambda names: len(names) == len({name.casefold() for name in names})
        ),
        max_size=4,
    )
)
def test_no_name_is_given_twice_and_names_that_need_not_change_stay(
    sources: list[set[str]],
) -> None:
    prefixes = {f"Dataset00{number}_S{number}": f"S{number}" for number in range(len(sources))}
    cases = [
        Case(source, name, ())
        for source, names in zip(prefixes, sources, strict=True)
        for name in names
    ]
    new = joining.new_names(cases, prefixes)
    assert len({name.casefold() for name in new}) == len(cases)
    for case, name in zip(cases, new, strict=True):
        alone = sum(case.name.casefold() == other.name.casefold() for other in cases) == 1
        assert name == (case.name if alone else f"{prefixes[case.source]}_{case.name}")


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"labels": {"background": 0, "lesion": 1}},
            'labels "organ" is 1 in Dataset001_Bern and missing in Dataset002_Ulm; labels "lesion"',
        ),
        ({"labels": {"background": 0, "organ": 2}}, '"organ" is 1 .* and 2 in Dataset002_Ulm'),
        ({"labels": {"background": 0, "organ": 1, "ignore": 2}}, 'labels "ignore" is mis'),
        ({"labels": {"background": 0, "organ": [1, 2]}}, r'"organ" is 1 .* and \[1, 2\] in'),
        ({"regions_class_order": [1]}, r"regions_class_order is missing .* and \[1\] in Data"),
        ({"channels": 2}, 'channel_names "1" is missing .* and "MR1" in Dataset002_Ulm'),
        (
            {"channel_names": {"0": "CT"}},
            'channel_names "0" is "MR0" in Dataset001_Bern and "CT" in Dataset002',
        ),
        ({"ending": ".png"}, 'file_ending is ".nii.gz" in Dataset001_Bern and ".png" in Data'),
        ({"overwrite_image_reader_writer": "NibabelIO"}, "overwrite_image_reader_writer is mis"),
    ],
)
def test_sources_that_differ_are_refused_with_the_difference(
    make_raw: MakeRaw, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    make_raw("Dataset001_Bern", ["b1"])
    make_raw("Dataset002_Ulm", ["u1"], **other)
    with pytest.raises(UserError, match=f"Dataset001_Bern and Dataset002_Ulm .*{message}"):
        join(["1", "2"])
    assert len(list((tmp_path / "nnUNet_raw").iterdir())) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"channels": 2},
            "Dataset002_Ulm: case u1 has images of 2 channels, but Dataset001_Bern has 1",
        ),
        ({"ending": ".png"}, 'file_ending is ".nii.gz" in Dataset001_Bern and ".png" in Data'),
        ({"images": "imagesTs"}, "no images in imagesTr or imagesUn"),
    ],
)
def test_unlabelled_images_that_cannot_be_read_alike_are_refused(
    make_raw: MakeRaw, other: dict[str, Any], message: str
) -> None:
    make_raw("Dataset001_Bern", ["b1"])
    make_raw("Dataset002_Ulm", ["u1"], labels={"background": 0}, **other)
    with pytest.raises(UserError, match=message):
        join(["1"], ["2"])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("imagesTr/b1_0001.nii.gz", "case b1 has images of 1 channels, but Dataset001_Bern has 2"),
        ("labelsTr/b1.nii.gz", r"case b1 has no label .*--unlabeled"),
    ],
)
def test_a_case_that_misses_a_file_is_named(make_raw: MakeRaw, file: str, message: str) -> None:
    raw = make_raw("Dataset001_Bern", ["b1", "b2"], channels=2)
    write_voxels(raw / "imagesTr" / "b1_0000.nii.gz", (4, 5, 6))
    (raw / file).unlink()
    with pytest.raises(UserError, match=message):
        join(["1"])


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"b1": "A"}, r"no domain for 1 case \(b2\)"),
        ({"x": "A"}, r"not training cases: 1 case \(x"),
    ],
)
def test_domains_of_a_source_must_fit_its_cases(
    make_raw: MakeRaw, domains: dict[str, str], message: str
) -> None:
    make_raw("Dataset001_Bern", ["b1", "b2"], domains=domains)
    with pytest.raises(UserError, match=f"Dataset001_Bern.*{message}"):
        join(["1"])


@pytest.mark.parametrize("given", [(["1", "Bern"], []), (["1"], ["Dataset001_Bern"])])
def test_a_source_that_is_named_twice_is_refused(
    make_raw: MakeRaw, given: tuple[list[str], list[str]]
) -> None:
    make_raw("Dataset001_Bern", ["b1"])
    with pytest.raises(UserError, match="Dataset001_Bern is named twice"):
        join(*given)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_a_number_that_is_taken_is_refused(
    make_raw: MakeRaw, tmp_path: Path, variable: str
) -> None:
    make_raw("Dataset001_Bern", ["b1"])
    (tmp_path / variable / "Dataset009_Old").mkdir()
    with pytest.raises(UserError, match=r"number 9 already: .*Dataset009_Old"):
        join(["1"])


@pytest.mark.parametrize("name", ["", "../x", "a b", "_a", "a/b"])
def test_a_name_that_is_no_folder_name_is_refused(make_raw: MakeRaw, name: str) -> None:
    make_raw("Dataset001_Bern", ["b1"])
    with pytest.raises(UserError, match=f'"{name}" cannot be the name'):
        join(["1"], name=name)


@pytest.mark.parametrize("key", ["channel_names", "labels", "file_ending"])
def test_a_dataset_json_that_misses_a_key_is_named(make_raw: MakeRaw, key: str) -> None:
    path = make_raw("Dataset001_Bern", ["b1"]) / "dataset.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f'Dataset001_Bern.* has no "{key}"'):
        join(["1"])


def test_a_full_disk_leaves_nothing_behind(
    make_raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_raw("Dataset001_Bern", ["b1", "b2"])
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == "b2.nii.gz":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"Cannot write .*Dataset009_All.*No space left"):
        join(["1"])
    assert [path.name for path in (tmp_path / "nnUNet_raw").iterdir()] == ["Dataset001_Bern"]
