r"""Random amplitude mixup: give an image part of the style of another, and keep its structure.

Paper: Zhou, Qi, Shi, "Generalizable Medical Image Segmentation via Random Amplitude Mixup and
Domain-Specific Image Restoration", ECCV 2022, arXiv 2208.03901. The paper's body was not available
to us; what stands here follows the behaviour of the authors' published implementation.

With :math:`A` and :math:`\varphi` amplitude and phase of the discrete Fourier transform of one
channel, s the source, t its partner and :math:`\lambda` the partner's weight,

.. math:: A'(k) = (1 - \lambda) A_s(k) + \lambda A_t(k), \qquad
          x' = \mathcal{F}^{-1}(A' e^{i \varphi_s})

for low frequencies, :math:`|k_i| \le \lfloor band \cdot n_i \rfloor` along each axis of size
:math:`n_i`; all others stay those of the source.

Where we deviate from the published implementation:

- The mean is mixed with its sign. On images whose voxels are not all positive, such as z-scores,
  amplitudes alone would keep the sign of the source's mean whatever the partner's is.
- The window has a half-width per axis instead of one from the shortest axis, so that anisotropic
  patches do not lose it; on squares and cubes both are the same.
- Results are clipped to the range of the two images instead of a fixed one.
- A channel without any variation has no phases, so that only its mean is mixed.

Only the low frequencies change, so only they are computed: the difference that they make is
transformed back and added to the source, which also leaves it untouched where nothing is mixed.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEVELS = 10
"""The authors draw ratios from this many equally spaced values, 0 among them."""


class Style(NamedTuple):
    """What mixing needs to know of the partners.

    Attributes:
        amplitude: Low-frequency amplitudes (B, C, *K), frequency 0 with its sign.
        low: Lowest value of each channel (B, C, 1, ...).
        high: Highest value of each channel, likewise.
    """

    amplitude: Tensor
    low: Tensor
    high: Tensor


class LowFrequencies(NamedTuple):
    """Low frequencies of a batch of images.

    Attributes:
        style: What can be mixed.
        phase: Unit complex numbers (B, C, *K), 1 at frequency 0 and 0 in channels without
            variation.
    """

    style: Style
    phase: Tensor


def amplitude_mixup(
    source: Tensor,
    partner: Tensor,
    ratio: Tensor | float,
    band: float | Sequence[float] = 0.1,
    clip: bool = True,
    *,
    slicewise: bool = False,
) -> Tensor:
    """Mix low-frequency amplitudes of ``partner`` into ``source``; see the module's docstring.

    Works in float32 at least, and without gradient.

    Args:
        source: Images (B, C, *S), 2D or 3D; they lend phases and high frequencies.
        partner: Images of the same shape; they lend low-frequency amplitudes.
        ratio: Weight of each partner (B,) in [0, 1], or one for all; 0 returns the source.
        band: Half-width of the window as a share of each axis, in [0, 0.5], for all axes or
            one per transformed axis; 0 mixes the mean alone.
        clip: Keep each channel within the joint range of its two images.
        slicewise: Transform the last two axes only, slice by slice, for anisotropic volumes.

    Returns:
        Images of the shape and dtype of ``source``, which is left as it was.

    Raises:
        ValueError: If shapes do not fit or a half-width is out of range.
    """
    if source.shape != partner.shape:
        raise ValueError(
            "source and partner must have one shape, got "
            f"{tuple(source.shape)} and {tuple(partner.shape)}."
        )
    frequencies = low_frequencies(source, band, slicewise=slicewise)
    style = low_frequencies(partner, band, slicewise=slicewise).style
    return mix(source, frequencies, style, ratio, clip, slicewise=slicewise)


@torch.no_grad()
def low_frequencies(
    images: Tensor, band: float | Sequence[float] = 0.1, *, slicewise: bool = False
) -> LowFrequencies:
    """Transform images (B, C, *S) and keep the low frequencies.

    Args:
        images: Images, 2D or 3D.
        band: See :func:`amplitude_mixup`.
        slicewise: Likewise.

    Raises:
        ValueError: If images have another number of axes or a half-width is out of range.
    """
    axes = _transformed(images, slicewise)
    bands = [band] * len(axes) if isinstance(band, int | float) else list(band)
    if len(bands) != len(axes) or not all(0 <= each <= 0.5 for each in bands):
        raise ValueError(f"band must be in [0, 0.5], one for all or for each axis, got {band}.")
    widths = [int(share * images.shape[axis]) for share, axis in zip(bands, axes, strict=True)]

    images = images.to(torch.promote_types(images.dtype, torch.float32))
    # axis by axis, so that each transform meets only what the ones before have kept
    spectrum = torch.fft.rfft(images, dim=-1)[..., : widths[-1] + 1]
    for axis, width in zip(axes[:-1], widths[:-1], strict=True):
        kept = _kept(images.shape[axis], width, images.device)
        spectrum = torch.fft.fft(spectrum, dim=axis).index_select(axis, kept)

    amplitude = spectrum.abs()
    phase = torch.where(amplitude > 0, spectrum / amplitude, 1)
    mean: Any = (..., *[0] * len(axes))
    amplitude[mean] = spectrum[mean].real
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    # rounding errors would give channels without variation the partner's amplitudes at random
    phase = torch.where(low == high, 0, phase)
    phase[mean] = 1
    spatial = tuple(range(2, images.ndim))
    return LowFrequencies(
        Style(amplitude, low.amin(spatial, keepdim=True), high.amax(spatial, keepdim=True)), phase
    )


@torch.no_grad()
def mix(
    source: Tensor,
    frequencies: LowFrequencies,
    partner: Style,
    ratio: Tensor | float,
    clip: bool = True,
    *,
    slicewise: bool = False,
) -> Tensor:
    """Mix styles that are known already; see :func:`amplitude_mixup`.

    Args:
        source: Images (B, C, *S).
        frequencies: Their low frequencies.
        partner: Style of each partner, with the same window.
        ratio: Weight of each partner (B,), or one for all.
        clip: See :func:`amplitude_mixup`.
        slicewise: As it was for the low frequencies.
    """
    style, phase = frequencies
    ratio = torch.as_tensor(ratio, dtype=style.amplitude.dtype, device=source.device)
    ratio = ratio.expand(len(source)).view(-1, *[1] * (source.ndim - 1))
    change = ratio * (partner.amplitude - style.amplitude) * phase
    axes = _transformed(source, slicewise)
    for axis in axes[:-1]:
        size = source.shape[axis]
        kept = _kept(size, change.shape[axis] // 2, source.device)
        shape = [*change.shape[:axis], size, *change.shape[axis + 1 :]]
        change = torch.fft.ifft(change.new_zeros(shape).index_copy(axis, kept, change), dim=axis)
    mixed = source + torch.fft.irfft(change, n=source.shape[-1], dim=-1)
    if clip:
        mixed = torch.clamp(
            mixed, torch.minimum(style.low, partner.low), torch.maximum(style.high, partner.high)
        )
    return mixed.to(source.dtype)


def draw_ratios(
    number: int, generator: torch.Generator | None = None, maximum: float = 0.9
) -> Tensor:
    """Draw weights of partners (number,), on the CPU: multiples of a ninth of ``maximum``."""
    steps = torch.randint(LEVELS, (number,), generator=generator)
    return steps * (maximum / (LEVELS - 1))


class StyleBank:
    """The styles of recent images of each domain, so that partners need not be in the batch.

    Args:
        domains: Number of domains.
        capacity: Images remembered per domain; the oldest are forgotten first.
    """

    def __init__(self, domains: int, capacity: int = 64) -> None:
        self._styles: list[deque[Style]] = [deque(maxlen=capacity) for _ in range(domains)]

    def __len__(self) -> int:
        return sum(map(len, self._styles))

    @property
    def styles(self) -> list[list[tuple[Tensor, ...]]]:
        """What is remembered of each domain, oldest first, for a checkpoint."""
        return [[tuple(part.cpu() for part in style) for style in each] for each in self._styles]

    def remember(
        self, styles: Sequence[Sequence[tuple[Tensor, ...]]], device: torch.device
    ) -> None:
        """Take back what :attr:`styles` gave, on a device."""
        for known, former in zip(self._styles, styles, strict=False):
            known.extend(Style(*(part.to(device) for part in style)) for style in former)

    def push(self, style: Style, domains: Sequence[int]) -> None:
        """Remember a batch of images, one domain each.

        Raises:
            ValueError: If these come from patches of another shape than those remembered.
        """
        known = next((each[0] for each in self._styles if each), None)
        if known is not None and known.amplitude.shape != style.amplitude.shape[1:]:
            raise ValueError(
                "The bank holds styles of one patch shape and band: "
                f"{tuple(known.amplitude.shape)}, got {tuple(style.amplitude.shape[1:])}."
            )
        for number, domain in enumerate(domains):
            # clones, because views would keep whole batches in memory
            self._styles[domain].append(Style(*(part[number].clone() for part in style)))

    def draw(
        self, style: Style, domains: Sequence[int], generator: torch.Generator | None = None
    ) -> tuple[Style, Tensor]:
        """Draw a partner of another domain for each image: first the domain, then the image.

        Args:
            style: The styles of these images, which stand in where there is no partner.
            domains: The domain of each image.
            generator: Of random numbers, on the CPU.

        Returns:
            The partners, and whether there is one (B,), on the CPU.
        """
        partners = []
        found = []
        for number, own in enumerate(domains):
            others = [each for domain, each in enumerate(self._styles) if each and domain != own]
            found.append(bool(others))
            if others:
                chosen = others[_draw(len(others), generator)]
                partners.append(chosen[_draw(len(chosen), generator)])
            else:
                partners.append(Style(*(part[number] for part in style)))
        stacked = Style(*(torch.stack(parts) for parts in zip(*partners, strict=True)))
        return stacked, torch.tensor(found)


def _draw(number: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(number, (), generator=generator))


def _transformed(images: Tensor, slicewise: bool) -> list[int]:
    """Axes that are transformed."""
    if images.ndim not in (4, 5):
        raise ValueError(f"images must be (B, C, *S) in 2D or 3D, got {tuple(images.shape)}.")
    return list(range(images.ndim - 2 if slicewise else 2, images.ndim))


def _kept(size: int, width: int, device: torch.device) -> Tensor:
    """Positions of the frequencies from -width to width, that of 0 first."""
    return torch.cat(
        [
            torch.arange(width + 1, device=device),
            # where the window spans the axis, its two ends are one frequency
            torch.arange(max(size - width, width + 1), size, device=device),
        ]
    )
