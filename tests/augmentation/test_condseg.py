"""The strong view: what it changes, what it keeps, and what survives instance normalisation."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunet_ext.augmentation import strong_view
from nnunet_ext.augmentation.condseg import _blur, _coarsen, _gamma, _jitter_colour


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(channels: int = 1, dim: int = 2, batch: int = 2) -> Tensor:
    """Draw smooth images with mean 0 and standard deviation 1."""
    coarse = torch.randn(batch, channels, *[5] * dim)
    smooth = F.interpolate(coarse, size=(20,) * dim, mode="bilinear" if dim == 2 else "trilinear")
    return (smooth - smooth.mean()) / smooth.std()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_looks_different_but_alike(dim: int, channels: int) -> None:
    x = images(channels, dim)
    before = x.clone()
    view = strong_view(x)
    assert torch.equal(x, before)
    assert view.shape == x.shape
    assert view.isfinite().all()
    assert (view - x).abs().mean() > 0.05
    pairs = zip(view.flatten(0, 1), x.flatten(0, 1), strict=True)
    for ours, theirs in pairs:
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.4


def test_each_image_is_drawn_on_its_own() -> None:
    x = images(batch=1).expand(4, -1, -1, -1)
    assert len({float(view.mean()) for view in strong_view(x)}) == 4


def test_constant_images_stay_finite() -> None:
    assert strong_view(torch.zeros(2, 1, 8, 8)).isfinite().all()


def test_background_stays_zero_where_it_is_meant_to() -> None:
    x = images(2)
    x[:, :, :5] = 0
    view = strong_view(x, keep_zero=[True, False])
    assert view[:, 0, :5].abs().max() == 0
    assert view[:, 1, :5].abs().max() > 0


def test_half_precision_images_give_float32() -> None:
    assert strong_view(images().half()).dtype == torch.float32


class InstanceNormalised(nn.Module):
    """A convolution without padding under instance normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.layers(x)
        return normalised


def test_instance_normalisation_undoes_plain_jitter_of_one_channel_but_not_gamma() -> None:
    network = InstanceNormalised()
    x = images()
    expected = network(x)
    torch.testing.assert_close(network(0.7 * x + 0.3), expected, atol=2e-3, rtol=0)
    assert (network(_gamma(x, shared=False)) - expected).abs().mean() > 0.02
    assert (network(strong_view(x)) - expected).abs().mean() > 0.1


def test_blur_acts_on_the_given_axes_only() -> None:
    x = torch.zeros(1, 1, 9, 9, 9)
    x[:, :, 4, 4, 4] = 1
    blurred = _blur(x, (1, 2))
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    assert float(blurred[:, :, 4].sum()) == pytest.approx(1, abs=1e-5)
    assert (blurred[0, 0, 4] > 0).sum() > 1


def test_blur_keeps_images_and_channels_apart() -> None:
    x = images(2)
    changed = x.clone()
    changed[0, 0] += 1
    torch.manual_seed(1)
    first = _blur(x, (0, 1))
    torch.manual_seed(1)
    moved = (_blur(changed, (0, 1)) - first).abs().amax((2, 3)) > 1e-3
    assert moved.tolist() == [[True, False], [False, False]]


def test_low_resolution_spares_axes_across_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_ext.augmentation.condseg.RARELY", 1.0)
    x = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    assert torch.equal(_coarsen(x, (1, 2)), x)


def test_colours_keep_their_brightness_and_turn_about_grey() -> None:
    x = images(3, batch=16)
    view = _jitter_colour(x)
    torch.testing.assert_close(view.mean(1), x.mean(1), atol=1e-5, rtol=0)
    chroma = [(each - each.mean(1, keepdim=True)).norm(dim=1) for each in (view, x)]
    ratio = (chroma[0] / chroma[1]).flatten(1)
    assert (ratio.std(1) < 1e-3).all()
    grey = ratio.mean(1) < 1e-3
    assert 0 < grey.sum() < 16
    assert ((ratio.mean(1)[~grey] - 1).abs() < 0.31).all()
