"""Step A: what it draws, what it learns, and that it goes on where it was."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext._common.errors import CheckpointError, NonFiniteLossError, UserError
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET
from nnunet_ext.settings.mind_the_gap import TranslatorSettings
from nnunet_ext.translation import training
from nnunet_ext.translation.crops import CropBatches, crop_shape, is_flat, pad
from nnunet_ext.translation.intensities import IntensityRange, survey
from nnunet_ext.translation.pool import HistoryPool
from nnunet_ext.translation.training import CHECKPOINT, TranslatorTraining
from tests.tiny import CPU, same

SMALL: dict[str, Any] = {
    "translator_iterations": 4,
    "translator_batch": 1,
    "translator_filters": 2,
    "translator_blocks": 1,
}


class Phantoms:
    """A data set of bright balls on grey, or, inverted, of dark ones."""

    def __init__(
        self, inverted: bool = False, shape: tuple[int, ...] = (4, 24, 28), cases: int = 2
    ) -> None:
        self.identifiers = [f"case_{number}" for number in range(cases)]
        self.inverted = inverted
        self.shape = shape

    def load_case(self, identifier: str) -> tuple[np.ndarray, None, None, dict]:
        rng = np.random.default_rng(self.identifiers.index(identifier))
        grid = np.stack(np.meshgrid(*map(np.arange, self.shape[1:]), indexing="ij"))
        slices = []
        for _ in range(self.shape[0]):
            middle = rng.uniform(0.35, 0.65, 2) * self.shape[1:]
            distance = np.linalg.norm(grid - middle[:, None, None], axis=0)
            edge = min(self.shape[1:])
            slices.append(1.0 * (distance < edge / 3) + (distance < edge / 6))
        voxels = np.stack(slices) + rng.normal(0, 0.03, self.shape)
        return (2 - voxels if self.inverted else voxels).astype(np.float32)[None], None, None, {}


def make(folder: Path, **changed: Any) -> TranslatorTraining:
    settings = TranslatorSettings(**SMALL | changed)
    datasets = Phantoms(), Phantoms(inverted=True)
    return TranslatorTraining(datasets, settings, folder, CPU, log=lambda _: None)


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TranslatorTraining, "draw", lambda *_: None)
    monkeypatch.setattr(training, "POOL", 2)


# ------------------------------------------------------------------------------------ intensities


@given(
    low=st.floats(-100, 100),
    width=st.floats(0.5, 100),
    share=st.floats(0, 1),
)
def test_mapping_there_and_back_changes_nothing_inside_the_range(
    low: float, width: float, share: float
) -> None:
    intensities = IntensityRange((low, 0.0), (low + width, 1.0))
    voxels = np.array([low + share * width, share], np.float32).reshape(2, 1, 1)
    unit = intensities.to_unit(voxels)
    assert np.abs(unit).max() <= 1
    error = np.abs(intensities.from_unit(unit) - voxels) / (np.abs(voxels) + width)
    assert error.max() < 1e-6


def test_what_is_outside_the_range_is_clipped() -> None:
    intensities = IntensityRange((0.0,), (2.0,))
    np.testing.assert_array_equal(
        intensities.to_unit(np.array([[-1, 0, 1, 2, 9]], np.float32)), [[-1, -1, 0, 1, 1]]
    )


def test_an_inverted_range_makes_dark_of_bright() -> None:
    intensities = IntensityRange((0.0,), (10.0,)).inverted
    voxels = np.array([[0, 2, 10, 12]], np.float32)
    unit = intensities.to_unit(voxels)
    np.testing.assert_allclose(unit, [[1, 0.6, -1, -1]], atol=1e-6)
    np.testing.assert_allclose(intensities.from_unit(unit), [[0, 2, 10, 10]], atol=1e-5)


def test_the_range_leaves_out_the_extreme_half_per_cent() -> None:
    class Ramp(Phantoms):
        def load_case(self, identifier: str) -> Any:
            return np.arange(10_000, dtype=np.float32).reshape(1, 4, 50, 50), None, None, {}

    found = survey(Ramp(), "labelled")
    assert found.largest == (4, 50, 50)
    assert found.intensities.low[0] == pytest.approx(50, abs=15)
    assert found.intensities.high[0] == pytest.approx(9950, abs=15)


def test_constant_images_are_refused() -> None:
    class Constant(Phantoms):
        def load_case(self, identifier: str) -> Any:
            return np.ones((1, 4, 24, 24), np.float32), None, None, {}

    with pytest.raises(UserError, match="Channel 0 of the unlabelled images has the same"):
        survey(Constant(), "unlabelled")


def test_an_image_that_is_not_finite_is_named_before_the_first_step() -> None:
    class Broken(Phantoms):
        def load_case(self, identifier: str) -> Any:
            voxels, *others = super().load_case(identifier)
            if identifier == "case_1":
                voxels[0, 0, 0, :3] = np.nan, np.inf, np.nan
            return voxels, *others

    told = "Case case_1 of the labelled images is NaN or infinite in 3 preprocessed voxels"
    with pytest.raises(UserError, match=told):
        survey(Broken(), "labelled")


# ------------------------------------------------------------------------------------------ crops


@pytest.mark.parametrize(
    ("largest", "longest", "dim", "expected"),
    [
        ((9, 300, 130), 256, 2, (256, 132)),
        ((9, 16, 40), 38, 2, (24, 36)),
        ((33, 300, 130), 64, 3, (36, 64, 64)),
    ],
)
def test_crops_fit_the_networks(
    largest: tuple[int, ...], longest: int, dim: int, expected: tuple[int, ...]
) -> None:
    assert crop_shape(largest, longest, dim) == expected


@pytest.mark.parametrize("shape", [(32, 24), (4, 24, 24)])
def test_batches_hold_both_domains_and_repeat_themselves(shape: tuple[int, ...]) -> None:
    datasets = Phantoms(), Phantoms(inverted=True)
    ranges = [survey(dataset, "").intensities for dataset in datasets]
    batches = CropBatches(datasets, ranges, shape, batch=2)
    images = batches[3]
    assert images.shape == (4, 1, *shape)
    assert images.abs().max() <= 1
    assert torch.equal(batches[3], images)
    assert not torch.equal(batches[4], images)
    assert not torch.equal(CropBatches(datasets, ranges, shape, 2, seed=1)[3], images)
    source, target = images[:, :, ..., 10:14, 10:14].chunk(2)
    assert source.mean() > 0 > target.mean()
    if shape == (32, 24):  # rows are padded on both sides
        assert torch.equal(images[:, :, [0, 3, 28, 31]], images[:, :, [7, 4, 27, 24]])


def test_nearly_constant_slices_are_passed_over() -> None:
    class MostlyEmpty(Phantoms):
        def load_case(self, identifier: str) -> Any:
            voxels, *others = super().load_case(identifier)
            voxels[:, 1:] = 0
            return voxels, *others

    datasets = MostlyEmpty(), MostlyEmpty()
    ranges = [IntensityRange((0.0,), (2.0,))] * 2
    images = CropBatches(datasets, ranges, (24, 24), batch=4)[0]
    assert images.std(dim=(1, 2, 3)).min() > 0.1


def test_small_images_are_mirrored_rather_than_framed() -> None:
    unit = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = pad(unit, (4, 3))
    assert padded[0, :, 0].tolist() == [0, 0, 3, 3]
    assert pad(unit, (2, 9))[0, 0].tolist() == [2, 1, 0, 0, 1, 2, 2, 1, 0]
    np.testing.assert_array_equal(pad(unit, (1, 2)), unit)


def test_channels_that_are_constant_at_different_values_are_flat() -> None:
    unit = np.stack([np.full((8, 8), value, np.float32) for value in (-0.2, -0.45)])
    assert is_flat(unit)
    unit[1, :4] = 0.5
    assert not is_flat(unit)


@pytest.mark.parametrize(("crop", "warned"), [(24, True), (32, False)])
def test_crops_that_show_too_little_of_an_image_are_doubted(
    tmp_path: Path, crop: int, warned: bool
) -> None:
    lines: list[str] = []
    datasets = Phantoms(shape=(2, 40, 40)), Phantoms(inverted=True)
    quick = TranslatorSettings(translator_filters=2, translator_blocks=1, translator_crop=crop)
    TranslatorTraining(datasets, quick, tmp_path, CPU, lines.append)
    assert any("raise mind_the_gap.translator_crop" in line for line in lines) == warned


# ------------------------------------------------------------------------------------------- pool


def test_the_pool_fills_and_then_answers_old_for_new_half_of_the_time() -> None:
    pool, generator = HistoryPool(5), torch.Generator().manual_seed(0)
    numbers = torch.arange(400.0).view(-1, 1, 1, 1)
    answers = pool.exchange(numbers, generator).flatten()
    assert torch.equal(answers[:5], numbers.flatten()[:5])
    assert len(pool.images) == 5
    assert 0.4 < float((answers[5:] < numbers.flatten()[5:]).float().mean()) < 0.6
    seen = torch.cat([answers, torch.stack(pool.images).flatten()])
    assert set(numbers.flatten().tolist()) == set(seen.tolist())  # nothing gets lost


# --------------------------------------------------------------------------------------- training


def test_each_network_learns_from_its_own_losses(tmp_path: Path) -> None:
    trained = make(tmp_path)
    before = {k: v.clone() for k, v in trained.translator.state_dict().items()}
    judged = {k: v.clone() for k, v in trained.discriminator.state_dict().items()}
    parts = trained.step(trained.batches[0])
    assert set(parts) == {"reconstruction", "cycle", "content", "adversarial", "discriminator"}
    assert any(not torch.equal(v, before[k]) for k, v in trained.translator.state_dict().items())
    assert any(not torch.equal(v, judged[k]) for k, v in trained.discriminator.state_dict().items())


def test_the_rate_is_constant_for_half_of_the_time_and_then_falls(tmp_path: Path) -> None:
    trained = make(tmp_path, translator_iterations=10)
    rates = []
    for trained.iteration in (0, 5, 6, 9):
        trained._set_learning_rate()
        rates.append([group["lr"] for o in trained.optimizers for group in o.param_groups])
    assert rates == [[pytest.approx(rate)] * 2 for rate in (2e-4, 2e-4, 1.6e-4, 4e-5)]


@pytest.mark.parametrize("dim", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_stopped_training_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    monkeypatch.setattr(training, "REPORT_EVERY", 2)
    folders = [tmp_path / name for name in ("straight", "stopped")]
    for folder in folders:
        folder.mkdir()
    straight = make(folders[0], translator_dim=dim)
    straight.run()
    stopped = make(folders[1], translator_dim=dim)
    step = stopped.step

    def killed(images: torch.Tensor) -> Any:
        if stopped.iteration == 3:  # no trial gets as far
            raise KeyboardInterrupt
        return step(images)

    monkeypatch.setattr(stopped, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = make(folders[1], translator_dim=dim)
    assert resumed.iteration == 2
    assert [len(pool.images) for pool in resumed.pools] == [2, 2]
    resumed.run()
    assert resumed.is_finished
    assert same(resumed.translator.state_dict(), straight.translator.state_dict())
    assert same(resumed.discriminator.state_dict(), straight.discriminator.state_dict())
    finished = make(folders[1], translator_dim=dim)
    assert finished.is_finished
    assert same(finished.translator.state_dict(), straight.translator.state_dict())
    assert finished.ranges == straight.ranges


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_start_that_looks_most_real_goes_on(tmp_path: Path, best: int) -> None:
    lines: list[str] = []
    three = TranslatorSettings(**SMALL | {"translator_iterations": 16, "translator_starts": 3})
    tried = TranslatorTraining((Phantoms(), Phantoms(True)), three, tmp_path, CPU, lines.append)
    states: list[dict[str, Any]] = []
    step = tried.step

    def scored(images: torch.Tensor) -> Any:
        parts = step(images)
        if tried.iteration == 1:  # the last of two steps
            states.append(copy.deepcopy(tried.translator.state_dict()))
        return parts | {"adversarial": torch.tensor(float(len(states) - 1 != best))}

    tried.step = scored  # type: ignore[method-assign]
    tried._choose_start()
    assert len(states) == len(lines) == 3
    assert not same(states[0], states[1])
    resumed = TranslatorTraining((Phantoms(), Phantoms(True)), three, tmp_path, CPU, lines.append)
    for chosen in (tried, resumed):
        assert chosen.iteration == 2
        assert same(chosen.translator.state_dict(), states[best])
        assert chosen.batches.ranges is chosen.ranges
        # in every other start the source is inverted
        assert (chosen.ranges[SOURCE].low > chosen.ranges[SOURCE].high) == (best == 1)
        assert chosen.ranges[TARGET].low < chosen.ranges[TARGET].high
    assert [len(pool.images) for pool in resumed.pools] == [2, 2]


def test_the_log_tells_the_time_beforehand_and_what_starts_are(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = TranslatorSettings(**SMALL | {"translator_iterations": 16, "translator_starts": 2})
    training = TranslatorTraining(
        (Phantoms(), Phantoms(True)), settings, tmp_path, CPU, lines.append
    )
    training.run()
    assert "s for each iteration, about" in lines[0]
    assert lines[1].startswith("Step A, start 1 of 2: ")
    assert lines[2].startswith("Step A, start 2 of 2, labelled images inverted: ")


def test_steps_in_half_precision_are_those_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, half = make(tmp_path), make(tmp_path)
    half_precision = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    monkeypatch.setattr(half, "_mixed_precision", half_precision)
    seen: list[torch.dtype] = []
    half.discriminator.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    images = full.batches[0]
    expected, parts = full.step(images), half.step(images)
    assert {part.dtype for part in parts.values()} == {torch.float32}
    for name, part in expected.items():
        assert float(parts[name]) == pytest.approx(float(part), rel=0.03)
    assert set(seen) == {torch.bfloat16}


class Telling(Phantoms):
    """Notes which processes read it."""

    readers: Path

    def load_case(self, identifier: str) -> tuple[np.ndarray, None, None, dict]:
        (self.readers / str(os.getpid())).touch()
        return super().load_case(identifier)


def test_workers_are_started_once_for_all_trials(tmp_path: Path) -> None:
    three = TranslatorSettings(**SMALL | {"translator_iterations": 16, "translator_starts": 3})
    Telling.readers = tmp_path / "readers"
    Telling.readers.mkdir()
    told = Telling()
    datasets = (told, Phantoms(True))
    tried = TranslatorTraining(datasets, three, tmp_path, CPU, lambda _: None, workers=1)
    for reader in told.readers.iterdir():
        reader.unlink()  # who has looked for the range
    tried._choose_start()
    (reader,) = told.readers.iterdir()
    assert reader.name != str(os.getpid())


@pytest.mark.parametrize("changed", [{"translator_starts": 1}, {"translator_iterations": 7}])
def test_one_start_or_few_steps_need_no_trials(tmp_path: Path, changed: dict[str, int]) -> None:
    tried = make(tmp_path, **{"translator_iterations": 16} | changed)
    before = copy.deepcopy(tried.translator.state_dict())
    tried._choose_start()
    assert tried.iteration == 0
    assert same(tried.translator.state_dict(), before)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"Cannot read .*checkpoint\.pth.*delete it"):
        make(tmp_path)


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make(tmp_path)
    monkeypatch.setattr(trained, "step", lambda _: {"cycle": torch.tensor(torch.nan)})
    with pytest.raises(NonFiniteLossError, match='"cycle" became nan'):
        trained.run()
    assert not list(tmp_path.iterdir())


def test_it_draws_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    trained = make(tmp_path)
    trained.draw(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_it_learns_to_translate_phantoms(tmp_path: Path) -> None:
    settings = TranslatorSettings(
        translator_iterations=250, translator_batch=2, translator_filters=12, translator_blocks=1
    )
    datasets = [Phantoms(inverted, (4, 48, 48)) for inverted in (False, True)]
    trained = TranslatorTraining(datasets, settings, tmp_path, CPU, log=lambda _: None)
    totals = []
    for trained.iteration in range(120):  # the specification grants it 250
        parts = trained.step(trained.batches[trained.iteration])
        totals.append(float(parts["reconstruction"] + parts["cycle"] + parts["content"]))
    assert np.mean(totals[-10:]) < np.mean(totals[:3]) / 3
