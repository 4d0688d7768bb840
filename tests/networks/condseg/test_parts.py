"""ConDSeg's parts against the authors' numbers and those of its specification."""

import itertools
import re
from collections.abc import Mapping

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
from nnunet_ext.networks.condseg.attention import AttentionPlan, aggregate, plan_attention
from nnunet_ext.networks.condseg.parts import ConvStyle, DecoderBlock, DilatedBlock, resize
from tests.fixtures import reference

FULL = AttentionPlan((3, 3), (1, 1))
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
    @pytest.mark.parametrize("stride", [1, 2])
    def test_aggregation(self, stride: int) -> None:
        arrays = reference(f"condseg_cdfa_2d_stride{stride}")
        module = ContrastDrivenFeatureAggregation(
            24,
            16,
            ConvStyle.paper(),
            heads=4,
            plan=AttentionPlan((3, 3), (stride, stride)),
            average=False,
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
        names = {rf"^c{i}\.0": f"branches.{i - 1}.0" for i in (1, 2, 3, 4)}
        names |= {rf"^c{i}\.1\.fc1": f"branches.{i - 1}.1.mlp.0" for i in (1, 2, 3, 4)}
        names |= {rf"^c{i}\.1\.fc2": f"branches.{i - 1}.1.mlp.2" for i in (1, 2, 3, 4)}
        names |= {"^c5": "fuse", "^c6": "shortcut"} | CONV_LAYERS
        names |= {r"sa\.conv1": "attention.conv"}
        module = load_reference(DilatedBlock(12, 16, ConvStyle.paper()), arrays, names)
        assert_reproduces(module(*tensors(arrays, "x")), arrays["y"])


def uniform_attention(size: tuple[int, ...], plan: AttentionPlan, heads: int = 1) -> Tensor:
    count = int(np.prod(plan.window))
    positions = plan.values(size, heads) // (heads * count**2)
    return torch.full((1, positions, heads, count, count), 1 / count)


def fold_and_unfold(value: Tensor, attention: Tensor, plan: AttentionPlan) -> Tensor:
    """The same by torch's own 2D operations."""
    batch, height, width, channels = value.shape
    heads, count = attention.shape[2], attention.shape[-1]
    options = {
        "kernel_size": plan.window,
        "stride": plan.stride,
        "padding": [k // 2 for k in plan.window],
    }
    windows = F.unfold(value.movedim(-1, 1), **options)
    windows = windows.view(batch, heads, channels // heads, count, -1)
    mixed = torch.einsum("blhij,bhcjl->bhcil", attention, windows)
    folded = F.fold(mixed.reshape(batch, channels * count, -1), (height, width), **options)
    return folded.movedim(1, -1)


class TestAggregation:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_equals_fold_and_unfold_in_2d(self, stride: int) -> None:
        plan = AttentionPlan((3, 3), (stride, stride))
        value = torch.randn(2, 7, 10, 8, requires_grad=True)
        positions = plan.values((7, 10), 1) // 81
        attention = torch.randn(2, positions, 4, 9, 9).softmax(-1).requires_grad_()
        ours, theirs = (f(value, attention, plan) for f in (aggregate, fold_and_unfold))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        weights = torch.randn_like(ours)
        gradients = [
            torch.autograd.grad((y * weights).sum(), (value, attention)) for y in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)

    def test_flat_windows_in_3d_are_slices_in_2d(self) -> None:
        value = torch.randn(1, 3, 6, 5, 8)
        attention = torch.randn(1, 90, 2, 9, 9).softmax(-1)
        volume = aggregate(value, attention, AttentionPlan((1, 3, 3), (1, 1, 1)))
        for z, part in enumerate(attention.split(30, dim=1)):
            torch.testing.assert_close(volume[:, z], aggregate(value[:, z], part, FULL))

    def test_uniform_attention_counts_the_windows_that_meet(self) -> None:
        counts = aggregate(torch.ones(1, 9, 9, 1), uniform_attention((9, 9), FULL), FULL)[0, ..., 0]
        found = [counts[4, 4], counts[1, 4], counts[0, 4], counts[0, 0]]
        torch.testing.assert_close(torch.stack(found), torch.tensor([9, 8, 5, 25 / 9]))

    def test_uniform_attention_in_3d_gives_27_inside(self) -> None:
        plan = AttentionPlan((3, 3, 3), (1, 1, 1))
        counts = aggregate(torch.ones(1, 5, 5, 5, 1), uniform_attention((5, 5, 5), plan), plan)
        assert float(counts[0, 2, 2, 2]) == pytest.approx(27)

    def test_delta_attention_adds_up_each_value_nine_times(self) -> None:
        value = torch.randn(1, 6, 6, 4)
        delta = torch.eye(9).expand(1, 36, 2, 9, 9)
        inside = aggregate(value, delta, FULL)[:, 1:-1, 1:-1]
        torch.testing.assert_close(inside, 9 * value[:, 1:-1, 1:-1])

    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_rows_of_attention_sum_to_one(self, dim: int, stride: int) -> None:
        plan = AttentionPlan((3,) * dim, (stride,) * dim)
        module = ContrastDrivenFeatureAggregation(8, 8, ConvStyle.paper(dim), 2, plan)
        attention = module._attention(module.foreground, 5 * torch.randn(1, 8, *[5] * dim))
        rows = attention.sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("plan", [FULL, AttentionPlan((3, 3), (2, 2)), None])
    def test_guides_act_on_the_result(self, plan: AttentionPlan | None) -> None:
        module = ContrastDrivenFeatureAggregation(6, 8, ConvStyle.paper(), 2, plan).eval()
        x, first, second = torch.randn(1, 6, 8, 8), *torch.randn(2, 1, 8, 8, 8)
        assert not torch.allclose(module(x, first, second), module(x, second, first))

    def test_recomputing_changes_neither_output_nor_gradients(self) -> None:
        x, foreground, background = torch.randn(3, 2, 8, 6, 6, requires_grad=True).unbind()
        kept, recomputed = (
            ContrastDrivenFeatureAggregation(8, 8, ConvStyle.paper(), 2, FULL, recompute=flag)
            for flag in (False, True)
        )
        recomputed.load_state_dict(kept.state_dict())
        results = []
        for module in (kept, recomputed):
            y = module(x, foreground, background)
            results.append([y, *torch.autograd.grad(y.square().sum(), [*module.parameters()])])
        torch.testing.assert_close(*results)

    def test_averaging_keeps_half_precision_in_range(self) -> None:
        plan = AttentionPlan((3, 3, 3), (1, 1, 1))
        module = ContrastDrivenFeatureAggregation(4, 4, ConvStyle.paper(3), 1, plan)
        with torch.no_grad():
            for linear in (module.value, module.project):
                nn.init.eye_(linear.weight)
                nn.init.zeros_(linear.bias)
            x, guide = torch.full((1, 4, 5, 5, 5), 200.0), torch.randn(1, 4, 5, 5, 5)
            assert module._attend(x, guide, guide).max() <= 200.01
            module.average = False
            assert module._attend(x, guide, guide).max() > torch.finfo(torch.float16).max

    def test_heads_must_divide_the_width(self) -> None:
        with pytest.raises(ValueError, match="multiple of heads, got 10 and 4"):
            ContrastDrivenFeatureAggregation(8, 10, ConvStyle.paper(), heads=4)


class TestBudget:
    @pytest.mark.parametrize(
        ("size", "values"),
        [((64,) * 3, 764_411_904), ((32,) * 3, 95_551_488), ((100, 100), 3_240_000)],
    )
    def test_counts_of_the_specification(self, size: tuple[int, ...], values: int) -> None:
        plan = AttentionPlan((3,) * len(size), (1,) * len(size))
        assert plan.values(size, heads=4) == values

    @pytest.mark.parametrize(
        ("budget", "expected"),
        [
            (95_551_488, AttentionPlan((3, 3, 3), (1, 1, 1))),
            (95_551_487, AttentionPlan((3, 1, 3), (1, 1, 1))),
            (10_616_831, AttentionPlan((3, 1, 3), (2, 1, 2))),
            (2_654_207, None),
        ],
    )
    def test_gives_up_one_thing_after_the_other_in_3d(
        self, budget: int, expected: AttentionPlan | None
    ) -> None:
        found = plan_attention((32, 32, 32), 4, budget, coarsest=1, kernel=(3, 3, 3))
        assert found == expected

    def test_in_2d_no_axis_is_given_up(self) -> None:
        plans = [
            plan_attention((10, 10), 4, n, coarsest=0, kernel=(3, 3))
            for n in (32_400, 8_100, 8_099)
        ]
        assert plans == [FULL, AttentionPlan((3, 3), (2, 2)), None]

    def test_windows_are_not_wider_than_kernels(self) -> None:
        found = plan_attention((8, 8, 8), 1, 10**9, coarsest=0, kernel=(1, 3, 5))
        assert found == AttentionPlan((1, 3, 3), (1, 1, 1))


class TestParts:
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
        for branch in block.branches:
            branch[1] = nn.Identity()
        moved = (block.eval()(changed) - block(x)).abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [True, False, False, False, False]

    def test_sizes_are_met_whatever_the_stride(self) -> None:
        assert resize(torch.randn(1, 2, 3, 4, 4), (3, 8, 9)).shape == (1, 2, 3, 8, 9)
