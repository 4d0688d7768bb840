"""ConDSegNet on planned encoders: shapes, what runs when, and what it refuses."""

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks import ConDSegNet
from nnunet_ext.networks.condseg.network import EncoderHead
from nnunet_ext.networks.condseg.parts import ConvStyle, resize

CLASSES = 3
ONLY_TRAINING = ("decoupling.uncertain", "map_ascents", "map_logits")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_unet(
    strides: list[Any], dim: int = 2, residual: bool = False, channels: int = 1, **more: Any
) -> nn.Module:
    stages = len(strides)
    blocks = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 1}
    unet = (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=channels,
        n_stages=stages,
        features_per_stage=[4 + 2 * stage for stage in range(stages)],
        conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dim],
        kernel_sizes=3,
        strides=strides,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dim],
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **blocks,
        **more,
    )
    unet.apply(unet.initialize)
    return unet


def make_net(size: tuple[int, ...] = (32, 48), **options: Any) -> ConDSegNet:
    return ConDSegNet(make_unet([1, 2, 2, 2], len(size)), CLASSES, size, **options)


def called(network: nn.Module, *arguments: Any) -> set[str]:
    """Names of the modules that a forward pass calls."""
    names: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.add(name))
        for name, module in network.named_modules()
    ]
    network(*arguments)
    for hook in hooks:
        hook.remove()
    return names


SHAPES = {
    "2d": ((32, 48), [1, 2, 2, 2, 2]),
    "2d, 4 stages": ((24, 16), [1, 2, 2, 2]),
    "2d, 8 stages": ((256, 128), [1, 2, 2, 2, 2, 2, 2, [2, 1]]),
    "2d, odd": ((36, 60), [1, 2, 2, [1, 3], [3, 1]]),
    "3d": ((16, 16, 32), [1, 2, 2, 2]),
    "3d, anisotropic": ((5, 32, 48), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2]]),
    "3d, 6 stages": ((12, 32, 32), [1, [1, 2, 2], 2, 2, [1, 2, 2], [1, 2, 1]]),
    "3d, 7 stages": ((8, 64, 64), [1, *[[1, 2, 2]] * 3, 2, 2, [1, 2, 1]]),
}


class TestShapes:
    @pytest.mark.parametrize(("size", "strides"), SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
    def test_every_plan_trains(
        self, size: tuple[int, ...], strides: list[Any], residual: bool
    ) -> None:
        network = ConDSegNet(make_unet(strides, len(size), residual), CLASSES, size)
        answer = network(torch.randn(1, 1, *size), answer="decoupled")
        assert answer.logits.shape == (1, CLASSES, *size)
        first = strides[1] if isinstance(strides[1], list) else [strides[1]] * len(size)
        halved = tuple(n // step for n, step in zip(size, first, strict=True))
        assert answer.maps.shape == (1, 3, *halved)
        torch.stack([part.square().mean() for part in answer]).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
    def test_any_number_of_image_channels(self, channels: int) -> None:
        network = ConDSegNet(make_unet([1, 2, 2, 2], channels=channels), CLASSES, (32, 32))
        assert network(torch.randn(2, channels, 32, 32)).shape == (2, CLASSES, 32, 32)

    def test_other_sizes_than_the_planned_may_be_segmented(self) -> None:
        assert make_net()(torch.randn(1, 1, 40, 64)).shape == (1, CLASSES, 40, 64)

    def test_attention_is_planned_level_by_level(self) -> None:
        decoder = make_net(attention_budget=20_000).decoder["seg_layers"]
        plans = [each.plan for each in decoder.aggregation]
        assert plans == [None, ((3, 3), (2, 2)), ((3, 3), (1, 1))]
        without = make_net(attention_budget=0).decoder["seg_layers"]
        assert all(each.plan is None for each in without.aggregation)

    def test_the_axis_strided_least_is_the_coarsest(self) -> None:
        unet = make_unet([[1, 1, 1], [2, 1, 2], [2, 2, 2], [2, 2, 2]], 3)
        network = ConDSegNet(unet, CLASSES, (16, 8, 16), attention_budget=170_000)
        first = network.decoder["seg_layers"].aggregation[0]
        assert first.plan.window == (3, 1, 3)

    def test_dilation_stays_within_the_features(self) -> None:
        network = ConDSegNet(make_unet([1, 2, 2, 2]), CLASSES, (64, 32))
        dilated = [
            branch[0][0].dilation for branch in network.decoder["seg_layers"].dilated[0].branches
        ]
        assert dilated == [(1, 1), (6, 6), (12, 8), (16, 8)]

    def test_width_follows_the_encoder(self) -> None:
        widths = [
            net.decoder["seg_layers"].dilated[0].fuse[0].out_channels
            for net in (make_net(), make_net(heads=3), make_net(width=20))
        ]
        assert widths == [4, 6, 20]


class TestAnswers:
    def test_prediction_is_one_tensor_and_runs_nothing_that_training_alone_needs(self) -> None:
        network = make_net().eval()
        x = torch.randn(1, 1, 32, 48)
        assert isinstance(network(x), Tensor)
        prefixes = tuple(f"decoder.seg_layers.{name}" for name in ONLY_TRAINING)
        assert not [name for name in called(network, x) if name.startswith(prefixes)]
        seen = called(network, x, "decoupled")
        assert all(any(name.startswith(prefix) for name in seen) for prefix in prefixes)

    def test_both_answers_hold_the_same_logits(self) -> None:
        network = make_net().eval()
        x = torch.randn(1, 1, 32, 48)
        assert torch.equal(network(x), network(x, answer="decoupled").logits)

    def test_features_leave_the_decoder_alone(self) -> None:
        for network in (make_net(), EncoderFirstUNet(make_unet([1, 2, 2, 2]))):
            x = torch.randn(1, 1, 32, 48)
            assert not [name for name in called(network, x, "features") if "decoder" in name]
            assert len(network(x, answer="features")) == 4

    def test_strict_round_trip_of_the_weights(self) -> None:
        first, second = make_net().eval(), make_net().eval()
        second.load_state_dict(first.state_dict(), strict=True)
        x = torch.randn(1, 1, 32, 48)
        assert torch.equal(first(x), second(x))

    def test_a_stock_checkpoint_fits_the_encoder(self) -> None:
        stock, network = make_unet([1, 2, 2, 2]), make_net()
        transferred = {k: v for k, v in network.state_dict().items() if ".seg_layers." not in k}
        assert transferred
        assert all(stock.state_dict()[k].shape == v.shape for k, v in transferred.items())

    def test_the_planned_decoder_can_stay(self) -> None:
        unet = make_unet([1, 2, 2, 2])
        x = torch.randn(1, 1, 32, 48)
        expected = unet(x)
        assert torch.equal(EncoderFirstUNet(unet)(x), expected)

    def test_full_resolution_features_can_be_left_out(self) -> None:
        x = torch.randn(1, 1, 32, 48)
        names = called(make_net(full_resolution_skip=False), x)
        assert "decoder.seg_layers.skip" in called(make_net(), x)
        assert "decoder.seg_layers.skip" not in names

    @pytest.mark.parametrize("answer", ["features", "decoupled"])
    def test_what_training_asks_for_compiles_without_graph_breaks(self, answer: Any) -> None:
        torch._dynamo.reset()
        network = make_net(attention_budget=20_000)
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        x = torch.randn(1, 1, 32, 48)
        torch.testing.assert_close(compiled(x, answer=answer), network(x, answer=answer))


class TestEncoderHead:
    def test_equals_the_convolution_of_all_levels_at_full_size(self) -> None:
        style = ConvStyle.paper()
        head = EncoderHead([4, 6, 8], 2, style, width=5).eval()
        features = [torch.randn(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate((4, 6, 8))]
        full = torch.cat(
            [
                resize(level[0](x), (16, 16))
                for level, x in zip(head.levels, features[1:], strict=True)
            ],
            dim=1,
        )
        weight = torch.cat([level[1].weight for level in head.levels], dim=1)
        expected = nn.functional.conv2d(full, weight, head.levels[0][1].bias)
        torch.testing.assert_close(head(features, (16, 16)), expected)

    def test_trains_the_whole_encoder(self) -> None:
        network = make_net()
        head = network.encoder_head(CLASSES)
        logits = head(network(torch.randn(2, 1, 32, 48), answer="features"), (32, 48))
        assert logits.shape == (2, CLASSES, 32, 48)
        logits.square().mean().backward()
        assert all(p.grad is not None for p in network.encoder.parameters())
        assert all(p.grad is None for p in network.decoder.parameters())


class TestMemory:
    def test_the_estimate_counts_the_outputs_of_convolutions(self) -> None:
        size = (32, 48)
        network = make_net(size, attention_budget=10**9)
        estimate = network.compute_conv_feature_map_size(size)
        expected = int(network.encoder.compute_conv_feature_map_size(size))

        def count(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            nonlocal expected
            expected += output.numel()

        for module in network.decoder.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        network(torch.randn(1, 1, *size), answer="decoupled")
        assert estimate == expected

    def test_attention_counts(self) -> None:
        with_attention, without = (
            make_net(attention_budget=n).compute_conv_feature_map_size((32, 48)) for n in (10**9, 0)
        )
        values = 2 * 324 * (16 * 24 + 8 * 12 + 4 * 6)
        assert 0.9 * values < with_attention - without < 1.1 * values

    def test_counting_leaves_the_network_as_it_was(self) -> None:
        network = make_net()
        network.compute_conv_feature_map_size((32, 48))
        assert all(p.device.type == "cpu" for p in network.parameters())

    def test_patches_of_128_stay_below_16_gb(self) -> None:
        """nnU-Net reckons 560 million elements at batch size 2 to take 8 GB."""
        unet = PlainConvUNet(
            input_channels=1,
            n_stages=6,
            features_per_stage=[32, 64, 128, 256, 320, 320],
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[1, 2, 2, 2, 2, 2],
            n_conv_per_stage=2,
            num_classes=CLASSES,
            n_conv_per_stage_decoder=2,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU,
        )
        size = (128, 128, 128)
        elements = ConDSegNet(unet, CLASSES, size).compute_conv_feature_map_size(size)
        assert elements / 560e6 * 8 < 16


class TestBadInput:
    def test_encoders_with_too_few_stages(self) -> None:
        with pytest.raises(UserError, match="at least 4 stages, but the planned network has 3"):
            ConDSegNet(make_unet([1, 2, 2]), CLASSES, (32, 32))

    def test_heads_that_do_not_divide_the_width(self) -> None:
        with pytest.raises(UserError, match=r"condseg\.heads, got 10 and 4"):
            make_net(width=10)

    def test_networks_of_other_kinds(self) -> None:
        with pytest.raises(UserError, match="plans ask for Conv2d"):
            ConDSegNet(nn.Conv2d(1, 1, 1), CLASSES, (32, 32))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite(self, dtype: torch.dtype) -> None:
        network = make_net(attention_budget=10**9)
        with torch.autocast("cpu", dtype=dtype):
            answer = network(100 * torch.randn(1, 1, 32, 48), answer="decoupled")
        torch.stack([part.float().square().mean() for part in answer]).sum().backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())
