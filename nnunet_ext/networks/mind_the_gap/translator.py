"""Step A of Mind the Gap: translate images between two domains, content apart from style.

Paper: Su et al., "Mind The Gap: Alleviating Local Imbalance for Unsupervised Cross-Modality
Medical Image Segmentation", arXiv 2205.11888, IEEE JBHI 27(7), 2023. Its full text was not
available to us; the networks follow the behaviour of the AD-GAN implementation that the authors'
code names as its Step A. There is no style encoder: a style is what a small perceptron makes
of the domain's number, and one encoder, one decoder and one discriminator serve both domains.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from dynamic_network_architectures.building_blocks.helper import (
    convert_dim_to_conv_op,
    get_matching_convtransp,
    get_matching_instancenorm,
)
from torch import Tensor, nn

SOURCE, TARGET = 0, 1
"""Numbers of the domains."""
DOMAINS = 2
DIVISOR = 4
"""Sides of images must be multiples of this, or translations come out larger than the images."""

_HIDDEN = 64  # of the perceptron
_EDGE_KERNEL = 7  # of the convolutions next to the image
_LEAK = 0.2
_DISCRIMINATOR_KERNEL = 4
_DISCRIMINATOR_STD = 0.02
_DISCRIMINATOR_STRIDES = (2, 2, 2, 1)

_Styles: TypeAlias = Iterator[tuple[Tensor, Tensor]]
"""For each convolution its shift and its scale minus one, (B, C) each."""


class Cycle(NamedTuple):
    """Images of a batch on their way to the other domain and back.

    Attributes:
        content: What both domains share, (B, 4F, *S / 4) with F base filters.
        reconstruction: Decoded in the own domain, (B, C, *S).
        translation: Decoded in the other domain, (B, C, *S).
        translated_content: Content of the translation.
        cycled: The translation's content, decoded in the own domain.
    """

    content: Tensor
    reconstruction: Tensor
    translation: Tensor
    translated_content: Tensor
    cycled: Tensor


class Translator(nn.Module):
    """Encoder and decoder of both domains.

    Args:
        channels: Channels C of the images.
        dim: Spatial dimensions, 2 or 3.
        filters: Filters F of the first convolution; the paper's code has 64.
        blocks: Residual blocks in the encoder, and as many in the decoder.
    """

    def __init__(self, channels: int = 1, dim: int = 2, filters: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.encoder = ContentEncoder(channels, dim, filters, blocks)
        self.decoder = ImageDecoder(channels, dim, filters, blocks)

    def forward(self, images: Tensor, domain: Tensor) -> Tensor:
        """Translate to the other domain.

        Args:
            images: (B, C, *S) in [-1, 1], sides multiples of :data:`DIVISOR`.
            domain: That each image is from, integers (B,).

        Returns:
            Images of the same shape in (-1, 1).
        """
        translated: Tensor = self.decoder(self.encoder(images, domain), opposite(domain))
        return translated

    def cycle(self, images: Tensor, domain: Tensor) -> Cycle:
        """Go to the other domain and back; arguments as for :meth:`forward`."""
        content = self.encoder(images, domain)
        reconstruction = self.decoder(content, domain)
        translation = self.decoder(content, opposite(domain))
        translated_content = self.encoder(translation, opposite(domain))
        cycled = self.decoder(translated_content, domain)
        return Cycle(content, reconstruction, translation, translated_content, cycled)


def opposite(domain: Tensor) -> Tensor:
    """The other domain of each image (B,)."""
    return SOURCE + TARGET - domain


class _Convolution(nn.Module):
    """Convolution and adaptive instance normalisation (AdaIN), ReLU behind them or not."""

    def __init__(self, conv: nn.Module, activate: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.activate = activate

    def forward(self, x: Tensor, styles: _Styles) -> Tensor:
        x = F.instance_norm(self.conv(x))
        shift, scale = (style.view(*style.shape, *[1] * (x.ndim - 2)) for style in next(styles))
        x = torch.addcmul(shift, x, 1 + scale)
        return F.relu(x) if self.activate else x


class _ResidualBlock(nn.Module):
    def __init__(self, conv: Any, width: int) -> None:
        super().__init__()
        first, second = (conv(width, width, 3, padding=1, padding_mode="reflect") for _ in range(2))
        self.first = _Convolution(first)
        self.second = _Convolution(second, activate=False)

    def forward(self, x: Tensor, styles: _Styles) -> Tensor:
        residual: Tensor = self.second(self.first(x, styles), styles)
        return x + residual


class _Styled(nn.Module):
    """A sequence of convolutions whose normalisation depends on the domain."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._widths = [
            int(module.conv.out_channels)  # type: ignore[arg-type]
            for module in self.modules()
            if isinstance(module, _Convolution)
        ]
        self.perceptron = nn.Sequential(
            nn.Linear(DOMAINS, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, 2 * sum(self._widths)),
        )

    def _styles(self, domain: Tensor) -> _Styles:
        one_hot = F.one_hot(domain, DOMAINS).float()
        for style in self.perceptron(one_hot).split([2 * width for width in self._widths], dim=1):
            shift, scale = style.chunk(2, dim=1)
            yield shift, scale

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        styles = self._styles(domain)
        for layer in self.layers:
            x = layer(x, styles)
        return x


class ContentEncoder(_Styled):
    """Encode images (B, C, *S) of a domain (B,) as content (B, 4F, *S / 4).

    Arguments are those of :class:`Translator`.
    """

    def __init__(self, channels: int, dim: int, filters: int, blocks: int) -> None:
        conv = convert_dim_to_conv_op(dim)
        halving = [
            _Convolution(conv(width, 2 * width, 3, stride=2, padding=1))
            for width in (filters, 2 * filters)
        ]
        super().__init__(
            [
                _Convolution(_edge_convolution(conv, channels, filters)),
                *halving,
                *(_ResidualBlock(conv, 4 * filters) for _ in range(blocks)),
            ]
        )
        _initialise(self)


class ImageDecoder(_Styled):
    """Decode content (B, 4F, *S) in a domain (B,) as images (B, C, *4S) in (-1, 1).

    Arguments are those of :class:`Translator`.
    """

    def __init__(self, channels: int, dim: int, filters: int, blocks: int) -> None:
        conv = convert_dim_to_conv_op(dim)
        transposed = get_matching_convtransp(conv)
        doubling = [
            _Convolution(transposed(2 * width, width, 3, stride=2, padding=1, output_padding=1))
            for width in (2 * filters, filters)
        ]
        super().__init__([*(_ResidualBlock(conv, 4 * filters) for _ in range(blocks)), *doubling])
        self.image = _edge_convolution(conv, filters, channels)
        _initialise(self)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Decode content."""
        return torch.tanh(self.image(super().forward(x, domain)))


def _edge_convolution(conv: Any, inputs: int, outputs: int) -> nn.Module:
    layer: nn.Module = conv(
        inputs, outputs, _EDGE_KERNEL, padding=_EDGE_KERNEL // 2, padding_mode="reflect"
    )
    return layer


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if getattr(module, "weight", None) is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_in")  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class DomainDiscriminator(nn.Module):
    """Tell real images from translated ones, patch by patch, in both domains.

    Args:
        channels: Channels C of the images.
        dim: Spatial dimensions, 2 or 3.
        filters: Filters of the first convolution.
    """

    SMALLEST = 24
    """Shortest side of an image that it can judge."""

    def __init__(self, channels: int = 1, dim: int = 2, filters: int = 64) -> None:
        super().__init__()
        conv = convert_dim_to_conv_op(dim)
        norm = get_matching_instancenorm(conv)
        widths = [channels, *(filters * 2**level for level in range(len(_DISCRIMINATOR_STRIDES)))]
        layers: list[nn.Module] = []
        for level, stride in enumerate(_DISCRIMINATOR_STRIDES):
            before, after = widths[level : level + 2]
            layers.append(conv(before, after, _DISCRIMINATOR_KERNEL, stride=stride, padding=1))
            if level > 0:
                layers.append(norm(after, affine=False))
            layers.append(nn.LeakyReLU(_LEAK))
        layers.append(conv(widths[-1], DOMAINS, _DISCRIMINATOR_KERNEL, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, conv):
                nn.init.normal_(layer.weight, 0, _DISCRIMINATOR_STD)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, domain: Tensor) -> Tensor:
        """Score images (B, C, *S) as those of a domain (B,): near 1 is real, near 0 is not.

        Returns:
            Scores (B, *S'), where an edge of 256 pixels becomes 30.
        """
        scores: Tensor = self.layers(images)
        return scores[torch.arange(len(scores), device=scores.device), domain]
