"""The synthetic task: valid, varied, and the same for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import synthetic
from nnunet_ext.nnunet.datasets import training_cases

SITES = list(synthetic.SITES.items())


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_raw(tmp_path_factory.mktemp("raw"), training=6, test=3, seed=1)


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


def test_written_task_is_a_raw_data_set_with_test_labels_and_domains(task: Path) -> None:
    assert task.name == "Dataset999_Phantom"
    described = json.loads((task / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "organ": 1, "lesion": 2}
    cases = training_cases(task)
    assert len(cases) == described["numTraining"] == 6
    assert described["domains"] == {case: case[:5] for case in cases}
    tests = ["siteA_101", "siteB_101", "siteC_101"]
    assert sorted(path.name for path in (task / "imagesTs").iterdir()) == [
        f"{case}_0000.nii.gz" for case in tests
    ]
    assert sorted(path.name for path in (task / "labelsTs").iterdir()) == [
        f"{case}.nii.gz" for case in tests
    ]


def test_files_hold_what_the_generator_draws(task: Path) -> None:
    image, label = synthetic.make_case(synthetic.SITES["siteB"], seed=1, number=1)
    for file, drawn in (("imagesTr/siteB_001_0000", image), ("labelsTr/siteB_001", label)):
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(task / f"{file}.nii.gz")))
        np.testing.assert_array_equal(written, drawn)


def test_interrupted_writing_leaves_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(synthetic, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            synthetic.write_raw(tmp_path, training=3, test=3)
    assert not list(tmp_path.iterdir())
    assert synthetic.write_raw(tmp_path, training=3, test=3).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [synthetic.DATASET]


def test_it_is_written_once_and_other_cases_are_refused(task: Path) -> None:
    before = (task / "dataset.json").stat().st_mtime_ns
    assert synthetic.write_raw(task.parent, training=6, test=3, seed=1) == task
    assert (task / "dataset.json").stat().st_mtime_ns == before
    for other in ({"seed": 2}, {"training": 7}):
        with pytest.raises(UserError, match="Name another folder"):
            synthetic.write_raw(task.parent, **{"training": 6, "test": 3, "seed": 1, **other})


def test_training_and_test_cases_have_different_names_and_take_turns_of_sites() -> None:
    training, test = synthetic.case_names(24, 6)
    assert len({*training, *test}) == 30
    for site in synthetic.SITES:
        assert sum(name.startswith(f"{site}_") for name in training) == 8
        assert sum(name.startswith(f"{site}_") for name in test) == 2


def test_nnunet_finds_nothing_wrong_with_the_task(task: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(task), 1)
