"""Random convolutions of the intensities."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunet_ext.augmentation import gin
from nnunet_ext.augmentation.gin import LEAK


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def norms(x: Tensor) -> Tensor:
    return x.double().flatten(2).norm(dim=2)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    size=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    depth=st.integers(1, 5),
    in_plane=st.booleans(),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_any_images_stay_finite_and_keep_shape_and_norm(
    batch: int,
    channels: int,
    size: list[int],
    depth: int,
    in_plane: bool,
    scale: float,
    seed: int,
) -> None:
    x = scale * images(batch, channels, *size)
    y = gin(x, seeded(seed), depth=depth, in_plane=in_plane)
    assert y.shape == x.shape
    assert y.isfinite().all()
    if scale >= 1:
        torch.testing.assert_close(norms(y), norms(x), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constants_stay_finite(value: float) -> None:
    assert gin(torch.full((2, 1, 6, 6), value), seeded()).isfinite().all()


def test_equal_generators_give_equal_images_and_the_global_one_is_the_default() -> None:
    x = images(2, 1, 8, 8)
    assert torch.equal(gin(x, seeded(3)), gin(x, seeded(3)))
    assert not torch.equal(gin(x, seeded(3)), gin(x, seeded(4)))
    torch.manual_seed(3)
    assert torch.equal(gin(x), gin(x, seeded(3)))


def test_each_image_has_a_stack_of_its_own() -> None:
    x = images(1, 1, 8, 8).expand(4, -1, -1, -1)
    y = gin(x, seeded())
    assert all(not torch.allclose(y[0], other) for other in y[1:])


def test_images_given_are_not_changed_and_get_no_gradient() -> None:
    x = images(2, 1, 8, 8).requires_grad_()
    before = x.detach().clone()
    assert not gin(x, seeded()).requires_grad
    assert torch.equal(x, before)


def test_without_probability_nothing_changes_and_with_half_of_it_some_do() -> None:
    x = images(40, 1, 4, 4)
    assert torch.equal(gin(x, seeded(), probability=0), x)
    changed = (gin(x, seeded(), probability=0.5) != x).flatten(1).any(1)
    assert 10 < int(changed.sum()) < 30


def test_half_precision_stays_half_precision() -> None:
    assert gin(images(1, 2, 5, 6, 7).half(), seeded()).dtype == torch.float16


def test_in_plane_slices_do_not_see_each_other() -> None:
    x = images(1, 1, 6, 8, 8)
    other = x.clone()
    other[:, :, 3:] = images(1, 1, 3, 8, 8, seed=9)
    other[:, :, 3:] *= x[:, :, 3:].norm() / other[:, :, 3:].norm()
    mixed, of_other = (gin(each, seeded(5), in_plane=True) for each in (x, other))
    # the norm of the whole image may scale them
    scale = (mixed[:, :, :3] / of_other[:, :, :3]).flatten()
    torch.testing.assert_close(scale, scale[:1].expand_as(scale), rtol=1e-3, atol=1e-3)


def test_it_is_the_mixture_that_the_paper_describes() -> None:
    x = images(1, 1, 6, 6)
    y = gin(x, seeded(2), depth=2)

    drawn = seeded(2)
    _, alpha = torch.rand(2, 1, generator=drawn)
    stacked = x
    for before, after in ((1, 2), (2, 1)):
        side = 3 if torch.rand(1, generator=drawn) < 0.5 else 1
        weight = torch.randn(1, after, before, side, side, generator=drawn)[0]
        shift = torch.randn(after, generator=drawn)
        stacked = F.conv2d(stacked, weight, shift, padding=side // 2)
        stacked = F.leaky_relu(stacked, LEAK) if after == 2 else stacked
    mixed = alpha * stacked + (1 - alpha) * x
    torch.testing.assert_close(y, mixed * x.norm() / mixed.norm())


def test_it_reorders_tissues_which_gamma_cannot() -> None:
    dark, middle, bright = -1.0, 0.0, 1.0
    x = torch.tensor([dark, middle, bright]).repeat_interleave(64).view(1, 1, 24, 8)
    orders = set()
    for seed in range(30):
        rows = gin(x, seeded(seed))[0, 0].view(3, 8, 8)[:, 3:5, 3:5].mean((1, 2))
        orders.add(tuple(rows.argsort().tolist()))
    assert len(orders) >= 4


@pytest.mark.parametrize(("shape", "depth"), [((2, 8, 8), 4), ((1, 1, 2, 2, 2, 2), 4)])
def test_other_numbers_of_axes_are_refused(shape: tuple[int, ...], depth: int) -> None:
    with pytest.raises(ValueError, match="2 or 3 axes"):
        gin(torch.zeros(shape), depth=depth)


def test_a_stack_without_convolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="depth of at least 1"):
        gin(torch.zeros(1, 1, 4, 4), depth=0)
