"""CateNorm's layer and network against the numbers of its specification."""

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from nnunet_ext._common.errors import UserError
from nnunet_ext.networks import CateNorm, CateNormUNet
from nnunet_ext.networks.catenorm import passes
from tests import tiny
from tests.fixtures import reference

DIMS = (2, 3)
BASES = ("batch", "instance")
CLASSES = 3
NORMS = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): nn.InstanceNorm2d,
    ("instance", 3): nn.InstanceNorm3d,
}
CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
each_kind = pytest.mark.parametrize(("dim", "base"), list(itertools.product(DIMS, BASES)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_unet(
    dim: int, base: str, residual: bool = False, deep_supervision: bool = False
) -> nn.Module:
    blocks = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 2}
    unet = (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 8, 8],
        conv_op=CONVS[dim],
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=NORMS[base, dim],
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
        **blocks,
    )
    unet.apply(unet.initialize)
    return unet


def images(dim: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, *[16] * dim)


def features(dim: int, channels: int = 8, size: int = 11) -> Tensor:
    return torch.randn(2, channels, *[size] * dim) * 2 + 1


def probabilities(dim: int, size: int = 11, classes: int = CLASSES) -> Tensor:
    return torch.randn(2, classes, *[size] * dim).softmax(dim=1)


def interior(x: Tensor, margin: int = 2) -> Tensor:
    inside = (..., *[slice(margin, -margin)] * (x.ndim - 2))
    return x[inside]


def modulation_parameters(network: CateNormUNet) -> list[nn.Parameter]:
    return list(network.catenorm.parameters())


def randomise(parameters: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 0.3)


def plain_affines(network: CateNormUNet) -> list[nn.Parameter]:
    """Affine parameters of the plain norms of blocks that own a CateNorm, too."""
    norms = [modified.block.norm for modified in network._modified]
    return [parameter for norm in norms for parameter in norm.parameters()]


class TestLayer:
    @each_kind
    def test_zero_modulation_is_the_affine_free_norm(self, dim: int, base: str) -> None:
        layer = CateNorm(8, CLASSES, dim, base)
        for conv in (layer.gamma, layer.beta):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        x = features(dim)
        expected = NORMS[base, dim](8, affine=False)(x)
        torch.testing.assert_close(layer(x, probabilities(dim)), expected, atol=1e-6, rtol=0)

    def test_parameter_count_of_the_specification(self) -> None:
        assert sum(p.numel() for p in CateNorm(32, 2, 2).parameters()) == 9584

    @given(
        channels=st.integers(1, 40),
        classes=st.integers(1, 6),
        dim=st.sampled_from(DIMS),
        reduction=st.integers(1, 50),
    )
    @settings(max_examples=30)
    def test_parameter_count_follows_the_formula(
        self, channels: int, classes: int, dim: int, reduction: int
    ) -> None:
        layer = CateNorm(channels, classes, dim, reduction=reduction)
        hidden = max(1, channels // reduction)
        weights = 3**dim * (classes * hidden + 2 * hidden * channels)
        expected = weights + hidden + 2 * channels
        assert sum(p.numel() for p in layer.parameters()) == expected

    @each_kind
    def test_constant_prior_acts_as_one_affine_map_away_from_the_border(
        self, dim: int, base: str
    ) -> None:
        layer = CateNorm(8, CLASSES, dim, base).double()
        x = features(dim).double()
        prior = torch.zeros(2, CLASSES, *[11] * dim, dtype=torch.float64)
        prior[:, 1] = 1
        normalised = NORMS[base, dim](8, affine=False).double()(x)
        y = layer(x, prior)
        center = (slice(None), slice(None), *[5] * dim)
        hidden = torch.relu(layer.shared(prior))
        shape = (2, 8, *[1] * dim)
        scale = 1 + layer.gamma(hidden)[center].reshape(shape)
        shift = layer.beta(hidden)[center].reshape(shape)
        affine = normalised * scale + shift
        torch.testing.assert_close(interior(y), interior(affine), atol=1e-12, rtol=0)
        border = (slice(None), slice(None), 0)
        assert (y[border] - affine[border]).abs().max() > 1e-3

    @each_kind
    def test_a_change_of_the_prior_reaches_two_voxels(self, dim: int, base: str) -> None:
        layer = CateNorm(64, CLASSES, dim, base).eval()
        x, prior = features(dim, channels=64), probabilities(dim)
        changed = prior.clone()
        center = (0, slice(None), *[5] * dim)
        changed[center] = torch.tensor([1.0, 0.0, 0.0])
        moved = (layer(x, changed) - layer(x, prior)).abs().amax(dim=1)[0] > 0
        distance = torch.stack(
            torch.meshgrid(*[(torch.arange(11) - 5).abs()] * dim, indexing="ij")
        ).amax(dim=0)
        assert moved[distance <= 2].all()
        assert not moved[distance > 2].any()

    @each_kind
    def test_class_order_does_not_matter(self, dim: int, base: str) -> None:
        layer = CateNorm(8, CLASSES, dim, base)
        permuted = CateNorm(8, CLASSES, dim, base)
        permuted.load_state_dict(layer.state_dict())
        order = [2, 0, 1]
        with torch.no_grad():
            permuted.shared.weight.copy_(layer.shared.weight[:, order])
        x, prior = features(dim), probabilities(dim)
        torch.testing.assert_close(permuted(x, prior[:, order]), layer(x, prior))

    @each_kind
    def test_background_of_regions_modulates_uniformly_in_the_interior(
        self, dim: int, base: str
    ) -> None:
        layer = CateNorm(8, CLASSES, dim, base)
        hidden = torch.relu(layer.shared(torch.zeros(1, CLASSES, *[11] * dim)))
        for modulation in (layer.gamma(hidden), layer.beta(hidden)):
            inside = interior(modulation).flatten(2)
            torch.testing.assert_close(inside, inside[..., :1].expand_as(inside))

    @each_kind
    def test_recomputing_changes_neither_output_nor_gradients_nor_statistics(
        self, dim: int, base: str
    ) -> None:
        kept = CateNorm(8, CLASSES, dim, base)
        recomputed = CateNorm(8, CLASSES, dim, base, recompute=True)
        recomputed.load_state_dict(kept.state_dict())
        x, prior = features(dim).requires_grad_(), probabilities(dim)
        outputs = [layer(x, prior) for layer in (kept, recomputed)]
        torch.testing.assert_close(*outputs)
        gradients = [
            torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
            for y, layer in zip(outputs, (kept, recomputed), strict=True)
        ]
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(kept.state_dict(), recomputed.state_dict())

    @pytest.mark.parametrize("mode", ["train", "eval"])
    def test_reproduces_the_authors_layer(self, mode: str) -> None:
        arrays = reference(f"catenorm_layer_2d_batchnorm_{mode}")
        layer = CateNorm(16, 3, 2, "batch", reduction=2)
        names = {"param_free_norm": "norm", "mlp_shared.0": "shared"}
        names |= {"mlp_gamma": "gamma", "mlp_beta": "beta"}
        weights = {}
        for key in (key for key in arrays if key.startswith("w/")):
            module, _, parameter = key.removeprefix("w/").rpartition(".")
            weights[f"{names[module]}.{parameter}"] = torch.as_tensor(arrays[key])
        layer.load_state_dict(weights)
        layer.train(mode == "train")
        y = layer(torch.as_tensor(arrays["x"]), torch.as_tensor(arrays["prior"]))
        expected = arrays["y"]
        error = np.abs(y.detach().numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-5

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dim": 1}, "dim must be 2 or 3, got 1"),
            ({"base": "layer"}, 'base must be "batch" or "instance", got "layer"'),
            ({"reduction": 0}, "reduction must be at least 1, got 0"),
        ],
    )
    def test_refuses_bad_arguments(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CateNorm(**({"num_features": 8, "num_classes": 2, "dim": 2} | arguments))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
class TestNetwork:
    @each_kind
    def test_first_pass_is_the_stock_network(self, dim: int, base: str, residual: bool) -> None:
        unet = make_unet(dim, base, residual).eval()
        x = images(dim)
        expected = unet(x)
        network = CateNormUNet(unet, CLASSES).eval()
        assert torch.equal(network(x), expected)  # not active yet
        network.activate()
        randomise(modulation_parameters(network))
        assert torch.equal(network(x, mode="first"), expected)
        assert not torch.equal(network(x), expected)
        network.predict = "first"
        assert torch.equal(network(x), expected)

    @each_kind
    def test_inherit_starts_as_a_copy_of_the_first_pass(
        self, dim: int, base: str, residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(dim, base, residual), CLASSES)
        randomise(plain_affines(network))
        network(images(dim), mode="first")  # running statistics other than 0 and 1
        network.activate("inherit")
        for training in (True, False):
            first, second = network.train(training)(images(dim), mode="both")
            torch.testing.assert_close(second, first, atol=1e-4, rtol=0)

    @each_kind
    def test_gradient_stops_at_the_prior(self, dim: int, base: str, residual: bool) -> None:
        unet = make_unet(dim, base, residual, deep_supervision=True)  # uses all output layers
        network = CateNormUNet(unet, CLASSES).eval()
        network.activate()
        x = images(dim)
        prior = network.prior_from(network(x, mode="first"))
        parameters = list(network.parameters())

        def gradients(outputs: list[Tensor]) -> tuple[Tensor | None, ...]:
            loss = torch.stack([output.square().mean() for output in outputs]).sum()
            return torch.autograd.grad(loss, parameters, allow_unused=True)

        through_both = gradients(network(x))
        with_constant = gradients(network(x, prior=prior, mode="second"))
        for one, other in zip(through_both, with_constant, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
        unused_in_second = {id(p) for p in plain_affines(network)}
        unused_in_first = {id(p) for p in modulation_parameters(network)}
        first = gradients(network(x, mode="first"))
        for parameter, in_first, in_second in zip(parameters, first, with_constant, strict=True):
            assert (in_second is None) == (id(parameter) in unused_in_second)
            assert (in_first is None) == (id(parameter) in unused_in_first)

    @pytest.mark.parametrize("mode", ["both", "second"])
    def test_each_statistic_is_updated_by_the_pass_that_uses_it(
        self, mode: str, residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(2, "batch", residual), CLASSES, encoder_stages=[1])
        network.activate()
        prior = probabilities(2) if mode == "second" else None
        network(images(2), prior=prior, mode=mode)
        counts = {
            name: int(count)
            for name, count in network.state_dict().items()
            if name.endswith("num_batches_tracked")
        }
        assert len(counts) > 4
        for name, count in counts.items():
            is_shared = name.startswith(("encoder.stages.0.", "encoder.stem."))
            is_shared |= name.startswith(("decoder.encoder.stages.0.", "decoder.encoder.stem."))
            is_second = name.startswith("catenorm.")
            assert count == (mode == "both" or is_second or is_shared), name

    @pytest.mark.parametrize("stages", ["high", "low"])
    def test_evaluation_of_each_pass_equals_statistics_recalibrated_for_it(
        self, stages: Literal["high", "low"], residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(2, "batch", residual), CLASSES, stages=stages)
        randomise(plain_affines(network))
        network.activate()
        x = images(2)
        with torch.no_grad():
            for _ in range(150):
                first, _ = network(x, mode="both")
            prior = network.prior_from(first)
            for arguments in ({"mode": "first"}, {"mode": "second", "prior": prior}):
                expected = tiny.recalibrated(network, x, **arguments)
                actual = network.eval()(x, **arguments)
                torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
                network.train()

    def test_what_lies_before_the_modified_layers_runs_once_for_both_passes(
        self, residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(2, "instance", residual), CLASSES, stages="low")
        network.activate()
        runs = []
        for number, stage in enumerate(network.encoder.stages):
            stage.register_forward_hook(lambda *_, number=number: runs.append(number))
        x = images(2)
        first, second = network(x, mode="both")
        assert runs == [0, 1, 2, 2]
        torch.testing.assert_close(first, network(x, mode="first"))
        prior = network.prior_from(first)
        torch.testing.assert_close(second, network(x, prior=prior, mode="second"))

    def test_the_prior_is_resized_once_for_each_level(
        self, residual: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = []
        resize = passes.resize

        def watched(prior: Tensor, size: torch.Size) -> Tensor:
            sizes.append(size[0])
            return resize(prior, size)

        monkeypatch.setattr(passes, "resize", watched)
        network = CateNormUNet(
            make_unet(2, "instance", residual), CLASSES, decoder_stages=[0, 1]
        ).eval()
        network.activate()
        network(images(2))
        assert sizes == [8, 4]  # the full resolution is there already

    def test_a_conversion_to_synchronised_statistics_reaches_both_passes(
        self, residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(2, "batch", residual), CLASSES, encoder_stages=[1])
        network.activate()
        x = images(2)
        network(x, mode="both")
        expected = network.eval()(x, mode="both")
        names = list(network.state_dict())
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
        assert list(converted.state_dict()) == names
        torch.testing.assert_close(converted(x, mode="both"), expected)
        for layer in converted.catenorm["seg_layers"]:
            layer.norm.running_mean += 1
        first, second = converted(x, mode="both")
        torch.testing.assert_close(first, expected[0])
        assert not torch.allclose(second, expected[1])

    def test_weights_of_the_first_edition_share_their_statistics(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(2, "batch", residual), CLASSES, encoder_stages=[0])
        network.activate("inherit")
        network(images(2), mode="first")
        weights = network.state_dict()
        assert not network.lacks_statistics
        layers = len(network._modified)
        prefix = "catenorm.seg_layers."
        numbers = {key: key.removeprefix(prefix).split(".")[0] for key in weights if prefix in key}
        added = [key for key, n in numbers.items() if n.isdecimal() and int(n) >= layers]
        assert added
        for key in added:
            del weights[key]
        loaded = CateNormUNet(make_unet(2, "batch", residual), CLASSES, encoder_stages=[0])
        loaded.load_state_dict(weights)
        assert loaded.lacks_statistics
        for own in loaded.catenorm["seg_layers"][layers:]:
            assert own.norm.running_mean.any()
            torch.testing.assert_close(own.norm.running_mean, own._plain[0].running_mean)
        loaded.load_state_dict(network.state_dict())
        assert not loaded.lacks_statistics

    @each_kind
    def test_batch_of_two_equals_two_batches_of_one_in_eval_mode(
        self, dim: int, base: str, residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(dim, base, residual), CLASSES)
        network.activate()
        network(images(dim), mode="both")
        network.eval()
        x = images(dim)
        torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]))

    @each_kind
    def test_default_forward_is_first_pass_then_softmax_then_second_pass(
        self, dim: int, base: str, residual: bool
    ) -> None:
        unet = make_unet(dim, base, residual, deep_supervision=True)
        network = CateNormUNet(unet, CLASSES).eval()
        network.activate()
        x = images(dim)
        prior = network(x, mode="first")[0].softmax(dim=1)
        for default, explicit in zip(
            network(x), network(x, prior=prior, mode="second"), strict=True
        ):
            assert torch.equal(default, explicit)

    def test_no_prior_stays_behind_after_an_error(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(2, "instance", residual), CLASSES).eval()
        network.activate()
        x = images(2)
        first = network(x, mode="first")
        wrong_channels = probabilities(2, 16, CLASSES + 1)
        with pytest.raises(RuntimeError, match="channels"):
            network(x, prior=wrong_channels, mode="second")
        assert torch.equal(network(x, mode="first"), first)

    def test_regions_use_a_sigmoid_without_renormalising(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(2, "instance", residual), CLASSES)
        network.use_regions(True)
        logits = torch.full((1, CLASSES, 4, 4), -100.0)
        assert network.prior_from(logits).sum() == 0

    def test_flags_and_weights_survive_a_strict_load(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(2, "batch", residual), CLASSES).eval()
        network.activate()
        network.use_regions(True)
        other = CateNormUNet(make_unet(2, "batch", residual), CLASSES).eval()
        other.load_state_dict(network.state_dict())
        x = images(2)
        assert other.active
        assert torch.equal(other(x), network(x))

    def test_stock_weights_fit_and_only_seg_layers_are_added(self, residual: bool) -> None:
        stock = make_unet(2, "batch", residual).state_dict()
        unet = make_unet(2, "batch", residual)
        ours = CateNormUNet(unet, CLASSES, encoder_stages=[1]).state_dict()
        assert all(stock[key].shape == ours[key].shape for key in stock)
        assert all(".seg_layers." in key for key in ours.keys() - stock.keys())
        assert len(ours) > len(stock)

    @pytest.mark.parametrize("dim", [2, pytest.param(3, marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        "mode", [pytest.param("first", marks=pytest.mark.slow), "both", "auto"]
    )
    def test_compiles_without_graph_breaks(self, dim: int, mode: str, residual: bool) -> None:
        unet = make_unet(dim, "batch", residual)
        network = CateNormUNet(unet, CLASSES, encoder_stages=[1], recompute=True)
        network.activate()
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        x = images(dim)
        torch.testing.assert_close(compiled(x, mode=mode), network(x, mode=mode))

    def test_compiles_with_disturbed_priors_in_training_only(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(2, "batch", residual), CLASSES, stages="low")
        network.activate()
        changed = []

        @torch.compiler.disable
        def disturb(prior: Tensor) -> Tensor:
            changed.append(prior.roll(1, 0))
            return changed[-1]

        network.disturb = disturb
        torch._dynamo.reset()
        compiled: Any = torch.compile(network, backend="eager")
        x = images(2)
        _, second = compiled(x, mode="both")
        assert len(changed) == 1
        expected = network(x, prior=changed[0], mode="second")
        torch.testing.assert_close(second, expected)
        second.square().mean().backward()
        compiled.eval()(x)
        assert len(changed) == 1

    def test_a_compiled_first_pass_does_not_mind_that_the_second_is_activated(
        self, residual: bool
    ) -> None:
        network = CateNormUNet(make_unet(2, "instance", residual), CLASSES)
        counter = CompileCounter()
        torch._dynamo.reset()
        compiled = torch.compile(network, backend=counter)
        compiled(images(2), mode="first")
        network.activate()
        compiled(images(2), mode="first")
        assert counter.frame_count == 1

    def test_half_precision_features_meet_the_float32_prior(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(3, "instance", residual), CLASSES)
        network.activate()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            first, second = network(images(3), mode="both")
        assert network.prior_from(first).dtype == torch.float32
        assert first.dtype == second.dtype == torch.bfloat16
        second.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in network.catenorm.parameters())

    def test_projections_on_skips_stay_plain(self, residual: bool) -> None:
        network = CateNormUNet(make_unet(2, "instance", residual), CLASSES, encoder_stages=[1])
        assert len(network._modified) == 2


class TestStageChoice:
    def test_low_stages_are_all_but_the_first_two_of_the_encoder(self) -> None:
        network = CateNormUNet(make_unet(2, "instance"), CLASSES, stages="low")
        sizes = [modified.block.output_channels for modified in network._modified]
        assert sizes == [8, 8, 4, 8]  # two of encoder stage 2, one of each decoder stage

    def test_decoder_stages_count_from_full_resolution(self) -> None:
        unet = make_unet(2, "instance")
        network = CateNormUNet(unet, CLASSES, encoder_stages=(), decoder_stages=[0])
        (modified,) = network._modified
        assert modified.block.output_channels == 4

    @pytest.mark.parametrize("where", ["encoder", "decoder"])
    def test_a_stage_that_does_not_exist_is_refused_by_name(self, where: str) -> None:
        with pytest.raises(UserError, match=rf"catenorm\.{where}_stages names stage 7"):
            CateNormUNet(make_unet(2, "instance"), CLASSES, **{f"{where}_stages": [7]})

    def test_other_networks_and_norms_are_refused(self) -> None:
        with pytest.raises(UserError, match="plans ask for Conv2d"):
            CateNormUNet(nn.Conv2d(1, 1, 1), CLASSES)
        unet = make_unet(2, "instance")
        unet.encoder.stages[0][0].convs[0].norm = nn.GroupNorm(1, 4)
        with pytest.raises(UserError, match="uses GroupNorm"):
            CateNormUNet(unet, CLASSES)
