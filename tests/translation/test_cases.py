"""Whole cases in target looks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ext.networks.mind_the_gap.translator import SOURCE
from nnunet_ext.settings.mind_the_gap import TranslatorSettings
from nnunet_ext.translation.cases import translate, translate_all, translated_cases
from nnunet_ext.translation.training import CHECKPOINT, TranslatorTraining
from tests import tiny
from tests.tiny import CPU, World

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TranslatorTraining, "draw", lambda *_: None)


def settings(**changed: Any) -> TranslatorSettings:
    quick = {"iterations": 1, "batch": 2, "filters": 2, "blocks": 1} | changed
    return TranslatorSettings(**{f"translator_{name}": value for name, value in quick.items()})


def domains(world: World) -> list[nnUNetDatasetBlosc2]:
    """The data set of the tests as source, and two of its cases as target."""
    folder = str(world.root / "preprocessed" / tiny.DATASET / f"{tiny.PLANS}_data")
    return [nnUNetDatasetBlosc2(folder), nnUNetDatasetBlosc2(folder, list(tiny.CASES[:2]))]


def make(world: World, folder: Path, **changed: Any) -> Path:
    beside = world.root / "preprocessed" / tiny.DATASET / f"{tiny.PLANS}_data"
    return translated_cases(domains(world), settings(**changed), beside, CPU, log=lambda _: None)


def untrained(world: World, folder: Path, **changed: Any) -> TranslatorTraining:
    return TranslatorTraining(domains(world), settings(**changed), folder, CPU, log=lambda _: None)


@pytest.mark.parametrize("dim", [2, 3])
def test_cases_keep_labels_and_properties(make_world: MakeWorld, tmp_path: Path, dim: int) -> None:
    world = make_world(channels=2)
    folder = make(world, tmp_path, dim=dim)
    source, translated = domains(world)[0], nnUNetDatasetBlosc2(str(folder))
    assert translated.identifiers == source.identifiers
    for case in source.identifiers:
        (was, labels, _, properties), now = source.load_case(case), translated.load_case(case)
        assert now[0].shape == was.shape
        assert now[0].chunks == was.chunks
        assert not np.allclose(now[0][:], was[:])
        np.testing.assert_array_equal(now[1][:], labels[:])
        assert tiny.same(now[3], properties)


def test_what_our_first_edition_has_made_is_used_again(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    made_from = json.loads((make(make_world(), tmp_path).parent / "made_from.json").read_text())
    assert made_from["settings"] == {
        "translator_iterations": 1,
        "translator_starts": 4,
        "translator_batch": 2,
        "translator_crop": 256,
        "translator_dim": 2,
        "translator_filters": 2,
        "translator_blocks": 1,
        "translator_lr": 0.0002,
        "translator_reconstruction": 20.0,
        "translator_cycle": 20.0,
        "translator_content": 1.0,
        "translator_pool": 50,
        "translator_variant": "v1",
        "translator_seed": 0,
    }


def test_it_is_made_once_for_each_choice_of_settings(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    folder = make(world, tmp_path)
    assert (folder.parent / CHECKPOINT).exists()
    other = make(world, tmp_path, seed=1)
    assert other != folder
    monkeypatch.setattr(TranslatorTraining, "run", lambda _: pytest.fail("trained again"))
    assert make(world, tmp_path) == folder
    assert make(world, tmp_path, seed=1) == other
    case = world.root / "preprocessed" / tiny.DATASET / f"{tiny.PLANS}_data" / "case_0.pkl"
    case.touch()  # as a copy is newer than its original
    assert make(world, tmp_path) == folder
    case.write_bytes(case.read_bytes() + b" ")
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        make(world, tmp_path)


def test_an_interruption_leaves_no_cases(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    save = nnUNetDatasetBlosc2.save_case

    def killed(data: Any, seg: Any, properties: Any, path: str, **layout: Any) -> None:
        if path.endswith("case_2"):
            raise KeyboardInterrupt
        save(data, seg, properties, path, **layout)

    with monkeypatch.context() as context:
        context.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(killed))
        with pytest.raises(KeyboardInterrupt):
            make(world, tmp_path)
    (folder,) = (world.root / "preprocessed" / tiny.DATASET).glob("*_translated_*")
    assert (folder / CHECKPOINT).exists()
    assert not (folder / "cases").exists()
    assert len(list(make(world, tmp_path).glob("*.pkl"))) == len(tiny.CASES)


@pytest.mark.parametrize("dim", [2, 3])
def test_sizes_that_do_not_fit_the_networks_are_padded_and_cut_again(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    training = untrained(make_world(), tmp_path, dim=dim)
    monkeypatch.setattr(training.translator, "forward", lambda images, domain: images)
    training.ranges = training.ranges[:1] * 2
    low, high = training.ranges[SOURCE].low[0], training.ranges[SOURCE].high[0]
    voxels = np.random.default_rng(0).uniform(low, high, (1, 3, 5, 13)).astype(np.float32)
    np.testing.assert_allclose(translate(voxels, training), voxels, atol=1e-5)


def test_small_images_are_padded_as_in_training(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = untrained(make_world(), tmp_path)
    given = []

    def recording(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        given.append(images.shape[2:])
        return images

    monkeypatch.setattr(training.translator, "forward", recording)
    training.shape = (24, 32)
    for size, seen in (((12, 12), (24, 32)), ((30, 40), (32, 40))):
        voxels = np.random.default_rng(0).random((1, 1, *size), dtype=np.float32)
        assert translate(voxels, training).shape == voxels.shape
        assert tuple(given.pop()) == seen


@pytest.mark.filterwarnings("ignore:Warning. Received empty chunks")
def test_what_lies_outside_of_nnunets_mask_stays_zero(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(channels=2)
    training = untrained(world, tmp_path)
    monkeypatch.setattr(training.translator, "forward", lambda images, domain: images - 0.5)
    source = domains(world)[0]
    load_case = source.load_case

    def with_mask(case: str) -> Any:
        voxels, labels, *others = load_case(case)
        outside = labels[:]
        outside[:, :4] = -1
        return np.asarray(voxels[:]), outside, *others

    monkeypatch.setattr(source, "load_case", with_mask)
    translate_all(source, training, tmp_path, zero_outside=[False, True])
    voxels = nnUNetDatasetBlosc2(str(tmp_path)).load_case(source.identifiers[0])[0][:]
    assert np.all(voxels[1, :4] == 0)
    assert np.any(voxels[0, :4] != 0)
    assert np.any(voxels[1, 4:] != 0)


def test_slices_without_contrast_only_change_their_range(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    training = untrained(make_world(), tmp_path)
    voxels = torch.rand(1, 2, 12, 12).numpy()
    voxels[:, 1] = training.ranges[SOURCE].low[0]
    translated = translate(voxels, training)
    np.testing.assert_allclose(translated[:, 1], training.ranges[1].low[0], atol=1e-6)
    assert translated[:, 0].std() > 1e-3
