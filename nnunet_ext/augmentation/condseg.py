"""A second view of images that looks different and shows the same in the same place.

ConDSeg (arXiv 2412.08345) jitters brightness, contrast and colour and blurs along one axis. For
images of one channel the first two are without effect on a network with instance normalisation:
a convolution of a x + b is normalised to that of x, except at padded borders. So this view also
changes what no normalisation undoes. All of it is drawn for each image on its own, in units of
its standard deviation.
"""

from collections.abc import Callable, Sequence
from math import log, pi, sqrt

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunet_ext._common.precision import full_precision

BRIGHTNESS = 0.3
"""Largest shift."""
CONTRAST = 0.3
"""Largest relative change of the distance from the mean; in colour images of saturation, too."""
HUE = 0.1
"""Largest turn of the colour circle."""
MAX_SIGMA = 2.0
"""Largest standard deviation of the blur, in voxels; the authors' is 3, along one axis."""
MIN_SIGMA = 0.1
BLUR_RADIUS = 4
"""Kernels end two of the largest standard deviations from the centre."""
MAX_GAMMA = 2.0
"""Largest exponent of intensities scaled to [0, 1]; the smallest is its inverse."""
MAX_NOISE = 0.3
"""Largest standard deviation."""
BIAS = 0.3
"""Standard deviation of the logarithm of the bias field at its nodes."""
BIAS_NODES = 4
"""Nodes of the bias field along each axis."""
MIN_ZOOM = 0.5
"""Coarsest simulated resolution over the present one."""
USUALLY = 0.5
"""Probability of greyscale (as the authors'), blur, noise and bias field."""
RARELY = 0.25
"""Probability of low resolution, which loses most."""


@torch.no_grad()
def strong_view(
    images: Tensor,
    axes: Sequence[int] | None = None,
    colour: bool = False,
    keep_zero: Sequence[bool] | None = None,
) -> Tensor:
    """Change appearance: affine jitter, gamma, bias field, blur, low resolution and noise.

    Args:
        images: Images (B, C, *S), left as they are.
        axes: Spatial axes to blur and coarsen, counted from 0: those in the plane of thick
            slices. Default all.
        colour: The three channels are red, green and blue and change together; otherwise each
            channel gets intensities of its own.
        keep_zero: For each channel, whether zeros are background and stay so, as where nnU-Net
            normalises within a mask.

    Returns:
        New float32 images, of the same shape.
    """
    dim = images.ndim - 2
    in_plane = range(dim) if axes is None else axes
    # convolutions in half precision would be coarser than the noise
    with full_precision(images.device):
        spread = images.float().std((1, *_spatial(images)), keepdim=True)
        spread = torch.where(spread > torch.finfo(spread.dtype).eps, spread, 1)
        view = images.float() / spread
        view = _jitter_colour(view) if colour else view
        view = _jitter(view, shared=colour)
        view = _sometimes(USUALLY, _multiply_bias, view)
        view = _gamma(view, shared=colour)
        view = _sometimes(USUALLY, lambda x: _blur(x, in_plane), view)
        view = _coarsen(view, in_plane)
        view = _sometimes(USUALLY, _add_noise, view) * spread
    if keep_zero is not None:
        masked = torch.tensor(keep_zero, device=images.device).view(1, -1, *[1] * dim)
        view = torch.where(masked & (images == 0), 0, view)
    return view


def _uniform(x: Tensor, low: float, high: float, channels: int | None = None) -> Tensor:
    """Draw one number per image and channel, shaped to act on ``x``."""
    shape = (len(x), x.shape[1] if channels is None else channels, *[1] * (x.ndim - 2))
    return low + (high - low) * torch.rand(shape, device=x.device)


def _sometimes(probability: float, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    chosen = _uniform(x, 0, 1, channels=1) < probability
    return torch.where(chosen, change(x), x)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _jitter(x: Tensor, shared: bool) -> Tensor:
    channels = 1 if shared else None
    mean = x.mean(_spatial(x), keepdim=True)
    gain = _uniform(x, 1 - CONTRAST, 1 + CONTRAST, channels)
    return mean + gain * (x - mean) + _uniform(x, -BRIGHTNESS, BRIGHTNESS, channels)


def _jitter_colour(x: Tensor) -> Tensor:
    """Turn colours about the grey axis and move them to or from it, half of the time onto it."""
    grey = x.mean(1, keepdim=True)
    chroma = x - grey
    angle = 2 * pi * _uniform(x, -HUE, HUE, channels=1)
    # the cross product with the axis (1, 1, 1) / sqrt(3)
    across = (chroma.roll(1, 1) - chroma.roll(-1, 1)) / sqrt(3)
    saturation = _uniform(x, 1 - CONTRAST, 1 + CONTRAST, channels=1)
    coloured = _uniform(x, 0, 1, channels=1) >= USUALLY
    return grey + coloured * saturation * (angle.cos() * chroma + angle.sin() * across)


def _above_minimum(x: Tensor) -> tuple[Tensor, Tensor]:
    minimum = x.amin(_spatial(x), keepdim=True)
    return x - minimum, minimum


def _gamma(x: Tensor, shared: bool) -> Tensor:
    above, minimum = _above_minimum(x)
    extent = above.amax(_spatial(x), keepdim=True).clamp_min(torch.finfo(x.dtype).eps)
    exponent = _uniform(x, -log(MAX_GAMMA), log(MAX_GAMMA), 1 if shared else None).exp()
    return minimum + extent * (above / extent) ** exponent


def _multiply_bias(x: Tensor) -> Tensor:
    """Multiply what is above the minimum by a smooth field, the same for all channels."""
    above, minimum = _above_minimum(x)
    nodes = BIAS * torch.randn(len(x), 1, *[BIAS_NODES] * (x.ndim - 2), device=x.device)
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    field = F.interpolate(nodes, x.shape[2:], mode=mode, align_corners=True)
    return minimum + above * field.exp()


def _blur(x: Tensor, axes: Sequence[int]) -> Tensor:
    dim = x.ndim - 2
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    sigma = _uniform(x, MIN_SIGMA, MAX_SIGMA, channels=1).view(-1, 1)
    kernels = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=1)  # one row for each image
    kernels = kernels.repeat_interleave(x.shape[1], dim=0)
    convolve = F.conv2d if dim == 2 else F.conv3d
    flat = x.reshape(1, -1, *x.shape[2:])
    for axis in axes:
        shape = [1] * dim
        shape[axis] = -1
        padding = [0] * (2 * dim)
        first = 2 * (dim - 1 - axis)
        padding[first : first + 2] = [BLUR_RADIUS, BLUR_RADIUS]
        padded = F.pad(flat, padding, mode="replicate")
        flat = convolve(padded, kernels.view(flat.shape[1], 1, *shape), groups=flat.shape[1])
    return flat.view(x.shape)


def _coarsen(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Sample some images coarsely and interpolate; one by one, because sizes differ."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    chances, zooms = torch.rand(2, len(x)).tolist()  # on the CPU, so that nothing waits
    images = list(x.split(1))
    for number, (chance, place) in enumerate(zip(chances, zooms, strict=True)):
        if chance < RARELY:
            zoom = MIN_ZOOM + (1 - MIN_ZOOM) * place
            size = [
                max(1, round(n * zoom)) if axis in axes else n for axis, n in enumerate(x.shape[2:])
            ]
            coarse = F.interpolate(images[number], size, mode="nearest-exact")
            images[number] = F.interpolate(coarse, x.shape[2:], mode=mode)
    return torch.cat(images)


def _add_noise(x: Tensor) -> Tensor:
    return x + _uniform(x, 0, MAX_NOISE) * torch.randn_like(x)
