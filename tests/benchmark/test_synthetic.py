"""The synthetic task: valid, varied, and the same for the same seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.benchmark import synthetic
from nnunet_ext.nnunet.decathlon import check_task_folder

SITES = list(synthetic.SITES.items())


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_task(tmp_path_factory.mktemp("task"), training=6, test=3, seed=1)


def test_same_seed_gives_same_voxels() -> None:
    first, again = (synthetic.make_case(SITES[0][1], seed=3, number=7) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize(("seed", "number"), [(4, 7), (3, 8)])
def test_other_seed_or_number_gives_other_anatomy(seed: int, number: int) -> None:
    first = synthetic.make_case(SITES[0][1], seed=3, number=7)[1]
    other = synthetic.make_case(SITES[0][1], seed=seed, number=number)[1]
    assert (first != other).any()


@pytest.mark.parametrize(("name", "site"), SITES)
def test_every_case_shows_both_structures_at_a_reasonable_size(
    name: str, site: synthetic.Site
) -> None:
    for number in range(8):
        image, label = synthetic.make_case(site, seed=0, number=number)
        assert image.shape == label.shape == synthetic.SHAPE
        assert set(np.unique(label)) == {0, 1, 2}
        assert (label == 1).sum() > 1000
        assert (label == 2).sum() > 100


def test_sites_see_the_same_anatomy_with_other_contrast() -> None:
    cases = {name: synthetic.make_case(site, seed=0, number=0) for name, site in SITES}
    labels = [label for _, label in cases.values()]
    np.testing.assert_array_equal(labels[0], labels[1])

    def lesion_over_organ(name: str) -> float:
        image, label = cases[name]
        return float(image[label == 2].mean() / image[label == 1].mean())

    assert lesion_over_organ("siteA") > 1.1
    assert lesion_over_organ("siteB") < 0.9
    means = [image[label == 1].mean() for image, label in cases.values()]
    assert max(means) > 3 * min(means)


def test_written_task_is_a_valid_decathlon_task_with_test_labels(task: Path) -> None:
    checked = check_task_folder(task)
    assert checked.dataset_name == "Dataset999_Phantom"
    assert checked.labels == {0: "background", 1: "organ", 2: "lesion"}
    assert len(checked.training) == 6
    assert checked.test == ("siteA_101", "siteB_101", "siteC_101")
    assert checked.has_test_labels


def test_dataset_json_lists_files_that_exist(task: Path) -> None:
    described = json.loads((task / "dataset.json").read_text())
    listed = [path for entry in described["training"] for path in entry.values()]
    assert len(listed) == 2 * described["numTraining"] == 12
    assert len(described["test"]) == described["numTest"] == 3
    assert all((task / path).is_file() for path in [*listed, *described["test"]])


def test_files_hold_what_the_generator_draws(task: Path) -> None:
    image, label = synthetic.make_case(synthetic.SITES["siteB"], seed=1, number=1)
    for folder, drawn in (("imagesTr", image), ("labelsTr", label)):
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(task / folder / "siteB_001.nii.gz")))
        np.testing.assert_array_equal(written, drawn)


def test_interrupted_writing_leaves_no_task_folder(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_task(tmp_path, training=6, test=3, progress=interrupt)
    assert not (tmp_path / synthetic.TASK_NAME).exists()
    assert synthetic.write_task(tmp_path, training=6, test=3).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [synthetic.TASK_NAME]


def test_training_and_test_cases_have_different_names_and_take_turns_of_sites() -> None:
    training, test = synthetic.case_names(24, 6)
    assert len({*training, *test}) == 30
    for site in synthetic.SITES:
        assert sum(synthetic.site_of(name) == site for name in training) == 8
        assert sum(synthetic.site_of(name) == site for name in test) == 2


@pytest.mark.parametrize("case", ["hippocampus_001", "siteD_001", "siteA_x"])
def test_cases_of_other_tasks_have_no_site(case: str) -> None:
    assert synthetic.site_of(case) is None


def test_nnunet_converts_the_task(task: Path, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir()
    subprocess.run(
        [
            *(sys.executable, "-m", "nnunet_ext.cli.launch", "nnUNetv2_convert_MSD_dataset"),
            *("-i", str(task), "-np", "2"),
        ],
        env={**os.environ, **{f"nnUNet_{name}": path for name, path in folders.items()}},
        check=True,
        capture_output=True,
    )
    raw = tmp_path / "raw" / "Dataset999_Phantom"
    assert len(list((raw / "imagesTr").iterdir())) == 6
    assert json.loads((raw / "dataset.json").read_text())["labels"]["lesion"] == 2
