"""ConDSeg's parts against the authors' numbers and those of its specification."""

import itertools
import re
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunet_ext.networks import (
    ContrastDrivenFeatureAggregation,
    SemanticInformationDecoupling,
    SizeAwareDecoder,
)
from nnunet_ext.networks.condseg.attention import aggregate, attention_values, plan_attention
from nnunet_ext.networks.condseg.parts import ConvStyle, DecoderBlock, DilatedBlock
from nnunet_ext.networks.operations import resize
from tests.fixtures import reference

FULL = (3, 3)
CONV_LAYERS = {r"\.conv\.": "."}  # the authors' blocks wrap their layers once more


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def load_reference(
    module: nn.Module, arrays: Mapping[str, np.ndarray], names: dict[str, str]
) -> nn.Module:
    """Give a module the authors' weights, renamed by regular expressions."""
    expected = module.state_dict()
    weights = {}
    for key in (key for key in arrays if key.startswith("w/")):
        name = key.removeprefix("w/")
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        # a linear layer is a convolution of kernel size 1
        weights[name] = torch.as_tensor(arrays[key]).reshape(expected[name].shape)
    module.load_state_dict(weights)
    return module.eval()


def tensors(arrays: Mapping[str, np.ndarray], *names: str) -> list[Tensor]:
    return [torch.as_tensor(arrays[name]) for name in names]


def assert_reproduces(actual: Tensor, expected: np.ndarray) -> None:
    assert np.abs(actual.detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max()


class TestReference:
    def test_aggregation(self) -> None:
        arrays = reference("condseg_cdfa_2d_stride1")
        module = ContrastDrivenFeatureAggregation(
            24, 16, ConvStyle.paper(), heads=4, window=FULL, normalise=False
        )
        names = {r"^v\.": "value.", "attn_fg": "foreground", "attn_bg": "background"}
        names |= {"proj": "project", "input_cbr": "enter", "output_cbr": "leave"}
        load_reference(module, arrays, names | CONV_LAYERS)
        assert_reproduces(module(*tensors(arrays, "x", "fg", "bg")), arrays["y"])

    def test_decoupling(self) -> None:
        arrays = reference("condseg_sid_2d")
        module = SemanticInformationDecoupling(8, 16, ConvStyle.paper(), hidden=512)
        names = {"cbr_fg": "foreground", "cbr_bg": "background", "cbr_uc": "uncertain"}
        load_reference(module, arrays, names | CONV_LAYERS)
        for name, features in module(*tensors(arrays, "x"))._asdict().items():
            assert_reproduces(features, arrays[name])

    def test_decoder_block(self) -> None:
        arrays = reference("condseg_decoder_block_2d")
        names = {"^c1": "reduce", "^c2": "first", "^c3": "second", "^c4": "third"}
        names |= {r"ca\.fc1": "attention.0.mlp.0", r"ca\.fc2": "attention.0.mlp.2"}
        names |= CONV_LAYERS | {r"sa\.conv1": "attention.1.conv"}
        module = load_reference(DecoderBlock(16, ConvStyle.paper()), arrays, names)
        assert_reproduces(module(*tensors(arrays, "deep", "skip")), arrays["y"])

    def test_dilated_block(self) -> None:
        arrays = reference("condseg_dilated_block_2d")
        names = {rf"^c{i}\.0\.conv\.0": f"branches.{i - 1}" for i in (1, 2, 3, 4)}
        names |= {r"^joined\.0\.conv\.1": "after_branches.0"}
        names |= {rf"^joined\.1\.fc{i}": f"after_branches.2.mlp.{2 * i - 2}" for i in (1, 2)}
        # what follows the convolutions of the four branches is one here
        for key in [key for key in arrays if re.match(r"w/c1\.(0\.conv\.1|1\.)", key)]:
            parts = [arrays.pop(key.replace("c1", f"c{i}", 1)) for i in (1, 2, 3, 4)]
            arrays[key.replace("c1", "joined", 1)] = (
                np.concatenate(parts) if parts[0].ndim else parts[0]
            )
        names |= {"^c5": "fuse", "^c6": "shortcut"} | CONV_LAYERS
        names |= {r"sa\.conv1": "attention.conv"}
        module = load_reference(DilatedBlock(12, 16, ConvStyle.paper()), arrays, names)
        assert_reproduces(module(*tensors(arrays, "x")), arrays["y"])


def uniform_attention(size: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    count = int(np.prod(window))
    return torch.full((1, 1, count, count, *size), 1 / count)


def fold_and_unfold(value: Tensor, attention: Tensor, window: tuple[int, ...]) -> Tensor:
    """The same by torch's own 2D operations."""
    batch, channels, height, width = value.shape
    heads, count = attention.shape[1:3]
    options = {"kernel_size": window, "padding": [k // 2 for k in window]}
    windows = F.unfold(value, **options).view(batch, heads, channels // heads, count, -1)
    mixed = torch.einsum("bhijl,bhcjl->bhcil", attention.flatten(4), windows)
    return F.fold(mixed.reshape(batch, channels * count, -1), (height, width), **options)


WINDOWS = [(3, 3), (1, 3), (1, 1), (3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1), (1, 1, 3)]
"""All that the planner can choose: of 3, of the kernel where that is 1, or flat."""


class TestAggregation:
    @pytest.mark.parametrize("window", [(3, 3), (1, 3), (3, 1)])
    def test_equals_fold_and_unfold_in_2d(self, window: tuple[int, ...]) -> None:
        value = torch.randn(2, 8, 7, 10, requires_grad=True)
        count = int(np.prod(window))
        attention = torch.randn(2, 4, count, count, 7, 10).softmax(3).requires_grad_()
        ours = aggregate(value, attention, window, normalise=False)
        theirs = fold_and_unfold(value, attention, window)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        weights = torch.randn_like(ours)
        gradients = [
            torch.autograd.grad((y * weights).sum(), (value, attention)) for y in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("normalise", [False, True])
    def test_flat_windows_in_3d_are_slices_in_2d(self, normalise: bool) -> None:
        value = torch.randn(1, 8, 3, 6, 5)
        attention = torch.randn(1, 2, 9, 9, 3, 6, 5).softmax(3)
        volume = aggregate(value, attention, (1, 3, 3), normalise)
        for z in range(3):
            part = aggregate(value[:, :, z], attention[..., z, :, :], FULL, normalise)
            torch.testing.assert_close(volume[:, :, z], part)

    @pytest.mark.parametrize("window", WINDOWS)
    def test_a_constant_stays_constant_up_to_the_border(self, window: tuple[int, ...]) -> None:
        size, count = (5, 6, 4)[: len(window)], int(np.prod(window))
        attention = (3 * torch.randn(2, 2, count, count, *size)).softmax(3)
        value = torch.randn(1, 4, *[1] * len(size)).expand(2, -1, *size)
        torch.testing.assert_close(aggregate(value, attention, window), value)

    def test_normalised_values_are_means_of_those_around(self) -> None:
        value = torch.randn(1, 4, 9, 9)
        attention = torch.randn(1, 2, 9, 9, 9, 9).softmax(3)
        found = aggregate(value, attention, FULL)
        most = F.max_pool2d(value, 5, stride=1, padding=2)
        least = -F.max_pool2d(-value, 5, stride=1, padding=2)
        assert ((found <= most + 1e-6) & (found >= least - 1e-6)).all()
        summed = aggregate(value, attention, FULL, normalise=False)
        inside = (..., slice(2, -2), slice(2, -2))
        torch.testing.assert_close(found[inside], summed[inside] / _weights(attention)[inside])

    def test_uniform_attention_counts_the_windows_that_meet(self) -> None:
        counts = aggregate(torch.ones(1, 1, 9, 9), uniform_attention((9, 9), FULL), FULL, False)
        found = [counts[0, 0, y, x] for y, x in ((4, 4), (1, 4), (0, 4), (0, 0))]
        torch.testing.assert_close(torch.stack(found), torch.tensor([9, 8, 5, 25 / 9]))

    def test_uniform_attention_in_3d_gives_27_inside(self) -> None:
        window, size = (3, 3, 3), (5, 5, 5)
        counts = aggregate(torch.ones(1, 1, *size), uniform_attention(size, window), window, False)
        assert float(counts[0, 0, 2, 2, 2]) == pytest.approx(27)

    def test_delta_attention_adds_up_each_value_nine_times(self) -> None:
        value = torch.randn(1, 4, 6, 6)
        delta = torch.eye(9).view(1, 1, 9, 9, 1, 1).expand(1, 2, 9, 9, 6, 6)
        inside = aggregate(value, delta, FULL, False)[..., 1:-1, 1:-1]
        torch.testing.assert_close(inside, 9 * value[..., 1:-1, 1:-1])

    @pytest.mark.parametrize("dim", [2, 3])
    def test_rows_of_attention_sum_to_one(self, dim: int) -> None:
        module = ContrastDrivenFeatureAggregation(8, 8, ConvStyle.paper(dim), 2, (3,) * dim)
        attention = module._attention(module.foreground, 5 * torch.randn(1, 8, *[5] * dim))
        rows = attention.sum(3)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("window", [FULL, None])
    def test_guides_act_on_the_result(self, window: tuple[int, ...] | None) -> None:
        module = ContrastDrivenFeatureAggregation(6, 8, ConvStyle.paper(), 2, window).eval()
        x, first, second = torch.randn(1, 6, 8, 8), *torch.randn(2, 1, 8, 8, 8)
        assert not torch.allclose(module(x, first, second), module(x, second, first))

    def test_normalising_keeps_half_precision_in_range(self) -> None:
        window, size = (3, 3, 3), (5, 5, 5)
        value = torch.full((1, 4, *size), 200.0)
        attention = torch.randn(1, 1, 27, 27, *size).softmax(3)
        normalised, summed = value, value
        for _ in range(2):
            normalised = aggregate(normalised, attention, window)
            summed = aggregate(summed, attention, window, normalise=False)
        assert normalised.max() <= 200.01
        assert summed.max() > torch.finfo(torch.float16).max

    def test_heads_must_divide_the_width(self) -> None:
        with pytest.raises(ValueError, match="multiple of heads, got 10 and 4"):
            ContrastDrivenFeatureAggregation(8, 10, ConvStyle.paper(), heads=4)


def _weights(attention: Tensor) -> Tensor:
    """How much reaches each position, for one channel of each of two heads of two."""
    return aggregate(torch.ones(1, 4, 9, 9), attention, FULL, normalise=False)


class TestBudget:
    @pytest.mark.parametrize(
        ("size", "values"),
        [((64,) * 3, 764_411_904), ((32,) * 3, 95_551_488), ((100, 100), 3_240_000)],
    )
    def test_counts_of_the_specification(self, size: tuple[int, ...], values: int) -> None:
        assert attention_values(size, 4, (3,) * len(size)) == values

    @pytest.mark.parametrize(
        ("budget", "expected"),
        [(95_551_488, (3, 3, 3)), (95_551_487, (3, 1, 3)), (10_616_831, None)],
    )
    def test_gives_up_one_thing_after_the_other_in_3d(
        self, budget: int, expected: tuple[int, ...] | None
    ) -> None:
        found = plan_attention((32, 32, 32), 4, budget, coarsest=1, kernel=(3, 3, 3))
        assert found == expected

    def test_in_2d_no_axis_is_given_up(self) -> None:
        windows = [
            plan_attention((10, 10), 4, n, coarsest=0, kernel=(3, 3)) for n in (32_400, 32_399)
        ]
        assert windows == [FULL, None]

    def test_windows_are_not_wider_than_kernels(self) -> None:
        found = plan_attention((8, 8, 8), 1, 10**9, coarsest=0, kernel=(1, 3, 5))
        assert found == (1, 3, 3)


class TestParts:
    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("images", [1, 2])
    def test_images_are_normalised_as_by_the_encoder(self, dim: int, images: int) -> None:
        kind = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dim]
        encoder = SimpleNamespace(
            norm_op=kind,
            norm_op_kwargs={"affine": True},
            nonlin=nn.ReLU,
            nonlin_kwargs=None,
            conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dim],
        )
        make = ConvStyle.planned(encoder).norm
        assert make is not None
        ours, theirs = make(4), kind(4, affine=True)
        for weight in theirs.parameters():
            nn.init.normal_(weight)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(images, 4, *[5] * dim)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x))
            assert not torch.equal(ours(x), x)
        assert torch.equal(ours(x), theirs(x))

    @pytest.mark.parametrize(("dim", "levels"), list(itertools.product((2, 3), (3, 4, 5, 6))))
    def test_three_pairs_of_levels_are_decoded(self, dim: int, levels: int) -> None:
        decoder = SizeAwareDecoder(4, ConvStyle.paper(dim), [3] * levels)
        features = [torch.randn(1, 4, *[2 ** (levels - i)] * dim) for i in range(levels)]
        assert decoder(features).shape == features[0].shape
        pairs = {3: (0, 1, 1), 4: (0, 1, 2), 5: (0, 2, 3), 6: (0, 2, 4)}
        assert decoder.pairs == pairs[levels]

    def test_too_few_levels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 3 feature levels, got 2"):
            SizeAwareDecoder(4, ConvStyle.paper(), [3, 3])

    def test_kernels_may_be_flat(self) -> None:
        block = DilatedBlock(4, 8, ConvStyle.paper(3), (1, 3, 3), [(1, 2, 2)])
        x = torch.randn(1, 4, 5, 6, 6)
        changed = x.clone()
        changed[:, :, 0] += 1
        # only channel attention, which pools over all voxels, may reach other slices
        block.after_branches[-1] = nn.Identity()
        moved = (block.eval()(changed) - block(x)).abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [True, False, False, False, False]

    def test_sizes_are_met_whatever_the_stride(self) -> None:
        assert resize(torch.randn(1, 2, 3, 4, 4), (3, 8, 9)).shape == (1, 2, 3, 8, 9)
