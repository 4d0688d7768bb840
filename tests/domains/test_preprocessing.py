"""Images without labels through nnU-Net's preprocessor, once."""

import copy
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.processes import for_each
from nnunet_ext.domains import preprocessing
from nnunet_ext.domains.preprocessing import preprocessed_unlabelled
from tests import tiny
from tests.tiny import World

MakeWorld = Callable[..., World]

SHAPE = (12, 20, 18)
"""One axis shorter than the patch."""
VARIED = np.arange(np.prod(SHAPE)).reshape(SHAPE)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases that were preprocessed, in this process, as others take seconds to start."""
    found: list[str] = []

    def record(work: Callable[..., Any], tasks: dict[str, Any], _: int, doing: str) -> None:
        found.extend(tasks)
        for_each(work, tasks, 1, doing)

    monkeypatch.setattr(preprocessing, "for_each", record)
    return found


def write_image(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels.astype(np.float32)), path)


def with_unlabelled(world: World, cases: tuple[str, ...] = ("un_0", "un_1")) -> Path:
    """Write raw images with and without labels; returns the folder of the latter."""
    folder = world.write_raw() / "imagesUn"
    for number, case in enumerate(cases):
        for channel in range(world.task.channels):
            voxels = np.random.default_rng(number + channel).uniform(1, 2, SHAPE)
            voxels[:, :3] = 0  # cropped away
            write_image(folder / f"{case}_{channel:04d}.nii.gz", voxels)
    return folder


def prepare(world: World, **changed: Any) -> Path:
    """Preprocess for the plans with a base configuration that differs in this."""
    plans = copy.deepcopy(world.plans())
    plans["configurations"][tiny.BASE] |= changed
    manager = PlansManager(plans)
    configuration = manager.get_configuration(tiny.CONFIGURATION)
    return preprocessed_unlabelled(manager, configuration, world.task.dataset_json, processes=2)


def test_several_processes_preprocess_as_nnunet_does(make_world: MakeWorld) -> None:
    world = make_world(channels=2)
    raw = with_unlabelled(world)
    folder = prepare(world)
    assert folder.parent == world.root / "preprocessed" / tiny.DATASET / "TinyPlans_data_unlabelled"
    dataset = infer_dataset_class(str(folder))(str(folder))
    assert dataset.identifiers == ["un_0", "un_1"]
    data, seg, _, properties = dataset.load_case("un_1")
    expected = [sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in sorted(raw.glob("un_1*"))]
    np.testing.assert_array_equal(data[:], np.stack(expected)[:, :, 3:])
    assert not np.any(seg[:])
    assert properties["shape_before_cropping"] == SHAPE


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_nnunets_loader_draws_from_them(
    make_world: MakeWorld, calls: list[str], dim: Any, ignore: bool
) -> None:
    world = make_world(dim=dim, ignore=ignore)
    with_unlabelled(world)
    folder = prepare(world)
    dataset = infer_dataset_class(str(folder))(str(folder))
    size = world.task.patch_size
    labels = PlansManager(world.plans()).get_label_manager(world.task.dataset_json)
    loader = nnUNetDataLoader(dataset, 4, size, size, labels, oversample_foreground_percent=0.5)
    for _ in range(3):
        assert next(loader)["data"].shape == (4, 1, *size)


def test_they_are_preprocessed_once(make_world: MakeWorld, calls: list[str]) -> None:
    world = make_world()
    images = with_unlabelled(world)
    folder = prepare(world)
    assert prepare(world, patch_size=[8, 8, 8]) == folder  # of no consequence
    assert calls == ["un_0", "un_1"]
    os.utime(images / "un_1_0000.nii.gz", ns=(0, 0))  # copied
    assert prepare(world) == folder
    assert calls == ["un_0", "un_1"]


def test_raw_images_may_be_put_away_afterwards(
    make_world: MakeWorld, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    images = with_unlabelled(world)
    folder = prepare(world)
    for put_away in (
        lambda: shutil.rmtree(images),
        lambda: shutil.rmtree(images.parent),
        lambda: monkeypatch.delenv("nnUNet_raw"),
    ):
        put_away()
        assert prepare(world) == folder
    assert calls == ["un_0", "un_1"]
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        prepare(world, normalization_schemes=["ZScoreNormalization"])


def test_they_are_preprocessed_anew_when_something_has_changed(
    make_world: MakeWorld, calls: list[str]
) -> None:
    world = make_world()
    images = with_unlabelled(world)
    both = {"un_0", "un_1"}
    changes: list[tuple[Callable[[], Any], set[str]]] = [
        (lambda: None, both),
        (lambda: write_image(images / "un_1_0000.nii.gz", VARIED), both),
        (
            lambda: shutil.copy(images / "un_1_0000.nii.gz", images / "un_2_0000.nii.gz"),
            both | {"un_2"},
        ),
        (lambda: (images / "un_0_0000.nii.gz").unlink(), {"un_1", "un_2"}),
    ]
    for change, expected in changes:
        change()
        calls.clear()
        folder = prepare(world)
        assert set(calls) == expected
        assert set(infer_dataset_class(str(folder)).get_identifiers(str(folder))) == expected
    calls.clear()
    folder = prepare(world, normalization_schemes=["ZScoreNormalization"])
    assert set(calls) == {"un_1", "un_2"}
    data = infer_dataset_class(str(folder))(str(folder)).load_case("un_1")[0]
    assert abs(float(np.mean(data[:]))) < 1e-3


def test_an_interruption_leaves_what_was_there(make_world: MakeWorld, calls: list[str]) -> None:
    world = make_world()
    images = with_unlabelled(world)
    folder = prepare(world)
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    (images / "un_1_0000.nii.gz").write_text("damaged")
    with pytest.raises(UserError, match=r"Cannot preprocess case un_1 in imagesUn: .*un_1_0000"):
        prepare(world)
    assert {p: p.read_bytes() for p in folder.parent.rglob("*") if p.is_file()} == before
    assert not list(folder.parent.parent.glob("*.partial"))


def test_planned_channels_that_the_images_do_not_have_are_refused(
    make_world: MakeWorld, calls: list[str]
) -> None:
    world = make_world()
    with_unlabelled(world)
    with pytest.raises(UserError, match=r"un_0 in imagesUn: .* 1 channels, but the plans have 3"):
        prepare(world, normalization_schemes=["NoNormalization"] * 3)


def cut_off(path: Path) -> None:
    """Keep the header and half of the voxels."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(gzip.decompress(content)[: -4 * VARIED.size // 2])
    else:
        content = content[: -2 * VARIED.size]
    path.write_bytes(content)


def with_nan(path: Path) -> None:
    voxels = np.where(VARIED < 5, np.nan, VARIED).astype(np.float32)
    if path.name.endswith((".nii", ".nii.gz")):  # ITK would write, but not read it
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    else:
        write_image(path, voxels)


@pytest.mark.parametrize(
    ("ending", "spoil", "message"),
    [
        (".nii.gz", with_nan, "is NaN or infinite in 5 voxels"),
        (".nii", with_nan, "is NaN or infinite in 5 voxels"),
        (".nrrd", with_nan, "is NaN or infinite in 5 voxels"),
        (".mha", with_nan, "is NaN or infinite in 5 voxels"),
        (".nii.gz", cut_off, "is cut off or damaged: "),
        (".nii", cut_off, "is cut off or damaged: "),
        (
            ".nii.gz",
            lambda path: write_image(path, np.ones(SHAPE)),
            "has the same intensity everywhere",
        ),
    ],
)
def test_an_image_from_which_nothing_can_be_learned_is_named(
    make_world: MakeWorld,
    calls: list[str],
    ending: str,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    world = make_world()
    raw = world.write_raw()
    described = json.loads((raw / "dataset.json").read_text()) | {"file_ending": ending}
    (raw / "dataset.json").write_text(json.dumps(described))
    for image in (raw / "imagesTr").iterdir():
        image.rename(image.with_name(image.name.replace(".nii.gz", ending)))
    for case in tiny.UNLABELLED:
        write_image(raw / "imagesUn" / f"{case}_0000{ending}", VARIED)
    spoil(raw / "imagesUn" / f"un_1_0000{ending}")
    told = f"Cannot preprocess case un_1 in imagesUn: un_1_0000{re.escape(ending)} {message}"
    with pytest.raises(UserError, match=told):
        prepare(world)


def test_nothing_is_written_where_there_is_nothing_to_do(
    make_world: MakeWorld, calls: list[str]
) -> None:
    world = make_world()
    with_unlabelled(world)
    folder = prepare(world).parent
    lock = folder.with_name(f".{folder.name}.lock")
    lock.unlink(missing_ok=True)
    before = sorted(folder.parent.rglob("*"))
    prepare(world)
    assert sorted(folder.parent.rglob("*")) == before
    assert calls == ["un_0", "un_1"]
