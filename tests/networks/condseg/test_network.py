"""ConDSegNet on planned encoders: shapes, what runs when, and what it refuses."""

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks import ConDSegNet
from nnunet_ext.networks.condseg.network import EncoderHead
from nnunet_ext.networks.condseg.parts import ConvStyle
from nnunet_ext.networks.operations import resize

CLASSES = 3
ONLY_TRAINING = ("decoupling.uncertain", "ascents.uncertain", "map_logits")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_unet(
    strides: list[Any],
    dim: int = 2,
    residual: bool = False,
    channels: int = 1,
    features: Any = None,
    **more: Any,
) -> nn.Module:
    stages = len(strides)
    blocks = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 1}
    unet = (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=channels,
        n_stages=stages,
        features_per_stage=features or [4 + 2 * stage for stage in range(stages)],
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


KINDS = ("condseg", "alone", "head", "plan")


def _wake(network: ConDSegNet) -> None:
    """Give the decoder's last convolution, which begins with zeros, something to say."""
    nn.init.normal_(network.decoder["seg_layers"].output[-1].weight)


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
        _wake(network)
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
        network = make_net(attention_budget=8_000)
        windows = [each.window for each in network.decoder["seg_layers"].aggregation]
        assert windows == [None, (3, 3), (3, 3)]
        assert network.attention() == [
            "level 1: plain convolutions",
            "level 2: attention within 3x3",
            "level 3: attention within 3x3",
        ]
        assert not any("attention" in level for level in make_net(attention_budget=0).attention())

    @pytest.mark.parametrize("features", [(16, 32, 64, 128, 128), (32, 64, 128, 256, 512, 512)])
    def test_all_levels_attend_within_planned_images(self, features: tuple[int, ...]) -> None:
        """Plans of the compact and of the stock planner in 2D."""
        size = (2 ** len(features),) * 2
        unet = make_unet([1] + [2] * (len(features) - 1), features=features)
        levels = ConDSegNet(unet, CLASSES, size).attention()
        assert len(levels) == len(features) - 1
        assert all("attention within 3x3" in level for level in levels)

    def test_the_axis_strided_least_is_the_coarsest(self) -> None:
        unet = make_unet([[1, 1, 1], [2, 1, 2], [2, 2, 2], [2, 2, 2]], 3)
        network = ConDSegNet(unet, CLASSES, (16, 8, 16), attention_budget=50_000)
        first = network.decoder["seg_layers"].aggregation[0]
        assert first.window == (3, 1, 3)

    def test_dilation_stays_within_the_features(self) -> None:
        network = ConDSegNet(make_unet([1, 2, 2, 2]), CLASSES, (64, 32))
        finest, _, deepest = (
            [branch.dilation for branch in level[1].branches]
            for level in network.decoder["seg_layers"].dilated
        )
        assert finest == [(1, 1), (6, 6), (12, 8), (16, 8)]
        assert deepest == [(1, 1), (4, 2)]  # those that are alike are one

    def test_width_follows_the_encoder(self) -> None:
        widths = [
            net.decoder["seg_layers"].dilated[0][1].fuse[0].out_channels
            for net in (make_net(), make_net(width=20))
        ]
        assert widths == [4, 20]

    def test_heads_are_as_wide_as_the_authors(self) -> None:
        heads = [
            make_net(width=width).decoder["seg_layers"].aggregation[0].heads
            for width in (16, 32, 128, 70)
        ]
        assert heads == [1, 1, 4, 2]


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

    @pytest.mark.parametrize("decoder", KINDS)
    def test_the_head_leaves_the_decoder_alone(self, decoder: Any) -> None:
        network = make_net(decoder=decoder)
        x = torch.randn(1, 1, 32, 48)
        assert not [name for name in called(network, x, "head") if "decoder" in name]
        assert network(x, answer="head").shape == (1, CLASSES, 32, 48)

    @pytest.mark.parametrize(("size", "strides"), SHAPES.values(), ids=SHAPES)
    def test_the_decoder_begins_with_the_answer_of_the_head(
        self, size: tuple[int, ...], strides: list[Any]
    ) -> None:
        network = ConDSegNet(make_unet(strides, len(size)), CLASSES, size)
        x = torch.randn(1, 1, *size)
        head = network(x, answer="head")
        for logits in (network(x), network(x, answer="decoupled").logits):
            torch.testing.assert_close(logits, head, atol=1e-6, rtol=0)
        assert head.std() > 1e-3

    def test_what_the_decoder_learns_is_added(self) -> None:
        network, x = make_net(), torch.randn(1, 1, 32, 48)
        _wake(network)
        decoded = network.decoder["seg_layers"](network.encoder(x))
        torch.testing.assert_close(network(x) - network(x, answer="head"), decoded)
        assert decoded.std() > 1e-3

    def test_the_decoder_alone_begins_anew(self) -> None:
        network, x = make_net(decoder="alone", head=False), torch.randn(1, 1, 32, 48)
        assert network(x).std() > 1e-3
        assert not [name for name in called(network, x) if name.startswith("head")]

    def test_the_head_can_do_without_decoder(self) -> None:
        network, x = make_net(decoder="head"), torch.randn(1, 1, 32, 48)
        assert torch.equal(network(x), network(x, answer="head"))
        assert not list(network.decoder.parameters())

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
        network = ConDSegNet(unet, CLASSES, (32, 48), "plan", head=False)
        assert torch.equal(network(x), expected)
        assert network.state_dict().keys() == unet.state_dict().keys()

    def test_maps_may_tell_classes_apart(self) -> None:
        network = make_net(foreground_maps=5)
        assert network(torch.randn(1, 1, 32, 48), answer="decoupled").maps.shape == (1, 7, 16, 24)

    @pytest.mark.parametrize("answer", ["head", pytest.param("decoupled", marks=pytest.mark.slow)])
    def test_what_training_asks_for_compiles_without_graph_breaks(self, answer: Any) -> None:
        torch._dynamo.reset()
        network = make_net(attention_budget=8_000)
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
        logits = network(torch.randn(2, 1, 32, 48), answer="head")
        assert logits.shape == (2, CLASSES, 32, 48)
        logits.square().mean().backward()
        assert all(p.grad is not None for p in network.encoder.parameters())
        assert all(p.grad is None for p in network.decoder.parameters())


class _TakesAnswer(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: list[Tensor], _answer: Any) -> Any:
        return self.decoder(features)


class TestMemory:
    def test_the_estimate_counts_stock_decoders_as_nnunet_does(self) -> None:
        """What a stock decoder keeps for its gradient is about twice what nnU-Net counts."""
        size = (32, 48)
        unet: Any = make_unet([1, 2, 2, 2])
        network = ConDSegNet(make_unet([1, 2, 2, 2]), CLASSES, size)
        decoder = torch.nn.ModuleDict({"stock": _TakesAnswer(unet.decoder)})
        found = network._map_size(decoder, size, None)
        counted = unet.decoder.compute_conv_feature_map_size(size)
        assert 0.7 * counted < found < 1.5 * counted

    def test_attention_is_not_kept(self) -> None:
        with_attention, without = (
            make_net(attention_budget=n).compute_conv_feature_map_size((32, 48)) for n in (10**9, 0)
        )
        values = 2 * 81 * (16 * 24 + 8 * 12 + 4 * 6)
        assert with_attention - without < 0.1 * values

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

    def test_weights_of_the_first_edition(self) -> None:
        network = make_net()
        old = {k: v for k, v in network.state_dict().items() if not k.startswith("head.")}
        with pytest.raises(UserError, match=r"lacks the light head \(head\.seg_layers\)"):
            network.load_state_dict(old)

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
