"""Disturbed class maps: still class maps, each kind of change where it was drawn."""

import pytest
import torch
from torch import Tensor

from nnunet_ext.augmentation import disturbed, prior

SIZES = ((40, 48), (16, 40, 48))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(size: tuple[int, ...], batch: int = 8, channels: int = 3) -> Tensor:
    return (torch.randn(batch, channels, *size, generator=draw()) * 3).softmax(1)


def only(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Let every map be changed in one way and in no other."""
    for name in ("BOUNDARY", "COMPONENT", "SHIFT", "CLASS"):
        monkeypatch.setattr(prior, f"CHANCE_OF_{name}", float(name == kind))


def two_balls(size: tuple[int, ...]) -> Tensor:
    """A small and a smaller component of one foreground class, apart: (1, 2, *S)."""
    grid = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    centres = torch.tensor([[side // 4 for side in size], [3 * side // 4 for side in size]])
    shape = (2, -1, *[1] * len(size))
    distance = (grid - centres.view(shape)).float().norm(dim=1)
    foreground = (distance[0] < 3) | (distance[1] < 2)
    return torch.stack([~foreground, foreground]).float()[None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("regions", [False, True])
def test_maps_stay_probabilities(size: tuple[int, ...], regions: bool) -> None:
    before = torch.rand(8, 3, *size, generator=draw()) if regions else probabilities(size)
    after = disturbed(before, 1.0, regions=regions, generator=draw())
    assert after.shape == before.shape
    assert after.min() >= 0
    assert after.max() <= 1 + 1e-6
    assert not torch.equal(after, before)
    if not regions:
        torch.testing.assert_close(after.sum(1), torch.ones_like(after[:, 0]))


def test_without_strength_nothing_changes_and_images_change_independently() -> None:
    before = probabilities(SIZES[0], batch=40)
    assert torch.equal(disturbed(before, 0.0), before)

    def share(strength: float) -> float:
        after = disturbed(before, strength, generator=draw())
        return (after != before).flatten(1).any(1).float().mean().item()

    assert 0.4 < share(1.0) < 0.9  # 1 - 0.6 * 0.8 * 0.8 * 0.9 = 0.65 are expected
    assert 0.15 < share(0.5) < share(1.0)


def test_equal_generators_give_equal_maps() -> None:
    before = probabilities(SIZES[1])
    assert torch.equal(*(disturbed(before, 1.0, generator=draw(3)) for _ in range(2)))
    torch.manual_seed(3)
    assert torch.equal(disturbed(before, 1.0), disturbed(before, 1.0, generator=draw(3)))


def test_a_lost_class_becomes_background(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "CLASS")
    before = probabilities(SIZES[0])
    after = disturbed(before, 1.0, generator=draw())
    lost = after.flatten(2).sum(2) == 0
    assert (lost.sum(1) == 1).all()
    assert not lost[:, 0].any()
    assert lost[:, 1].any()
    assert lost[:, 2].any()
    for image, old, gone in zip(after, before, lost.int().argmax(1), strict=True):
        (kept,) = {1, 2} - {int(gone)}
        assert (image[kept] >= old[kept] - 1e-6).all()  # it may take over, as background does


@pytest.mark.parametrize("size", SIZES)
def test_a_lost_component_is_one_of_several(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "COMPONENT")
    before = two_balls(size)
    half = tuple(slice(0, side // 2) for side in size)
    larger = before[0, 1][half].sum().item()
    smaller = before[0, 1].sum().item() - larger
    left = {disturbed(before, 1.0, generator=draw(s))[0, 1].sum().item() for s in range(12)}
    assert left == {larger, smaller}


def test_a_component_that_fills_the_patch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "COMPONENT")
    before = torch.zeros(1, 2, 32, 32)
    before[:, 1, :16] = 1
    before[:, 0, 16:] = 1
    assert torch.equal(disturbed(before, 1.0), before)
    nothing = torch.zeros(1, 2, 32, 32)
    nothing[:, 0] = 1
    assert torch.equal(disturbed(nothing, 1.0), nothing)


def test_a_shift_moves_all_classes_alike_and_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "SHIFT")
    labels = torch.arange(32 * 32).view(1, 1, 32, 32).float()
    moved = disturbed(labels.repeat(1, 3, 1, 1), 1.0, regions=True, generator=draw(1))[0]
    assert torch.equal(moved[0], moved[1])
    inside = moved[0, 4:-4, 4:-4] - labels[0, 0, 4:-4, 4:-4]
    assert inside.unique().numel() == 1
    rows, columns = divmod(int(inside[0, 0]) + 16, 32)
    assert max(abs(rows), abs(columns - 16)) <= 2


def test_boundaries_grow_shrink_and_blur(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "BOUNDARY")
    before = torch.zeros(60, 2, 64, 64)
    before[:, 1, 20:40, 20:40] = 1
    before[:, 0] = 1 - before[:, 1]
    after = disturbed(before, 1.0, generator=draw())
    areas = after[:, 1].flatten(1).sum(1)
    is_sharp = ((after == 0) | (after == 1)).flatten(1).all(1)
    assert is_sharp.float().mean().item() == pytest.approx(2 / 3, abs=0.2)
    assert (areas[is_sharp] > 400).any()
    assert (areas[is_sharp] < 400).any()
    assert areas.max() <= (20 + 2 * 4) ** 2
    assert (areas[~is_sharp] - 400).abs().max() < 1


def test_thin_stacks_keep_the_order_of_their_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "SHIFT")
    before = torch.rand(4, 2, 6, 64, 64, generator=draw())
    after = disturbed(before, 1.0, regions=True, generator=draw())
    assert not torch.equal(after, before)
    means = after.mean((3, 4)) - before.mean((3, 4))
    assert means.abs().max() < 0.02
