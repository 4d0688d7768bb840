"""The local feature mask of Mind the Gap inside a U-Net, against its specification."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from nnunet_ext._common.errors import CheckpointError, UserError
from nnunet_ext.losses.mind_the_gap import alignment_losses, critic_loss
from nnunet_ext.networks import LocallyMaskedUNet, OutputCritic, frozen
from nnunet_ext.networks.mind_the_gap.masked import local_weights, stage_of_mask
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET
from tests.tiny import Task

STRIDE = 4
"""Reached at the third of four stages: some skips lie above the mask's stage, some below."""
PLAIN = Task(dim=2, deep_supervision=False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def masked(task: Task = PLAIN, **settings: Any) -> LocallyMaskedUNet:
    return LocallyMaskedUNet(task.unet(), task.patch_size, **{"stride": STRIDE} | settings).eval()


def answer(network: LocallyMaskedUNet, score: float) -> None:
    """Make the critic answer the same everywhere."""
    with torch.no_grad():
        for parameter in network.feature_critic.parameters():
            parameter.zero_()
        network.feature_critic["seg_layers"][-1].bias.fill_(score)


def exaggerate(network: LocallyMaskedUNet) -> None:
    """Make the critic's answers large, and different from place to place."""
    with torch.no_grad():
        for parameter in network.feature_critic.parameters():
            parameter.normal_(0, 1)


def unmasked(network: LocallyMaskedUNet, images: Tensor) -> Tensor:
    logits: Tensor = network.decoder(network.encoder(images))
    return logits


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


@pytest.mark.parametrize(
    ("score", "weight"), [(0, 1), (0.5, 1.46212), (1, 1.76159), (-1, 1.76159), (2, 1.96403)]
)
def test_weights_of_the_specification(score: float, weight: float) -> None:
    assert float(local_weights(torch.tensor([[[[float(score)]]]]))) == pytest.approx(
        weight, abs=5e-6
    )


def test_renormalised_weights_of_each_image_have_mean_one() -> None:
    weights = local_weights(torch.randn(3, 1, 5, 4, 3), renorm=True)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3, 4)), torch.ones(3))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("renorm", [False, True])
def test_a_critic_that_answers_zero_leaves_the_stock_network(
    dim: Any, residual: bool, norm: Any, renorm: bool
) -> None:
    task = Task(dim=dim, residual=residual, norm=norm, deep_supervision=False)
    unet = task.unet().eval()
    images = task.images()
    expected = unet(images)
    network = LocallyMaskedUNet(unet, task.patch_size, STRIDE, renorm=renorm).eval()
    answer(network, 0)
    assert torch.equal(network(images), expected)


def test_a_uniform_gain_counts_only_without_renormalisation() -> None:
    images = PLAIN.images()
    for renorm in (True, False):
        network = masked(renorm=renorm)
        answer(network, 1)
        changed = difference(network(images), unmasked(network, images))
        assert changed < 1e-5 if renorm else changed > 1e-3


@pytest.mark.parametrize("renorm", [False, True])
def test_source_images_are_never_masked(renorm: bool) -> None:
    network = masked(renorm=renorm)
    exaggerate(network)
    images = PLAIN.images(batch_size=2)
    mixed = network(images, torch.tensor([SOURCE, TARGET]))
    plain = unmasked(network, images)
    assert difference(mixed[0], plain[0]) < 1e-6
    assert difference(mixed[1], plain[1]) > 1e-3


@pytest.mark.parametrize("renorm", [False, True])
def test_joint_and_separate_forward_passes_agree(renorm: bool) -> None:
    network = masked(renorm=renorm).train()
    exaggerate(network)
    images, domain = PLAIN.images(batch_size=2), torch.tensor([SOURCE, TARGET])
    joint = network(images, domain)
    separate = [network(images[i : i + 1], domain[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(joint, torch.cat(separate), atol=1e-6, rtol=1e-5)


def test_images_without_a_domain_are_target_unless_told_otherwise() -> None:
    network = masked()
    exaggerate(network)
    images = PLAIN.images(batch_size=1)
    target, plain = network(images, torch.tensor([TARGET])), unmasked(network, images)
    torch.testing.assert_close(network(images), target)
    network.inference_domain.fill_(SOURCE)
    assert torch.equal(network(images), plain)
    trained_only = masked(mask_at_inference=False)
    trained_only.load_state_dict(network.state_dict())
    assert torch.equal(trained_only(images), plain)
    torch.testing.assert_close(trained_only(images, torch.tensor([TARGET])), target)


def test_a_compiled_network_heeds_another_domain_of_inference_and_stays_as_it_is() -> None:
    network = masked()
    exaggerate(network)
    images = PLAIN.images(batch_size=1)
    expected = network(images), unmasked(network, images)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled: Any = torch.compile(network, backend=counter)
    for domain, logits in zip((TARGET, SOURCE), expected, strict=True):
        network.inference_domain.fill_(domain)
        torch.testing.assert_close(compiled(images), logits)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("scope", "stages"), [("all", [0, 1, 2, 3]), ("deep", [2, 3]), ("stage", [2]), ("off", [])]
)
def test_scope_says_which_stages_are_multiplied(
    scope: Any, stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = masked(scope=scope)
    exaggerate(network)
    images = PLAIN.images()
    received: list[list[Tensor]] = []
    monkeypatch.setattr(network.decoder, "forward", received.append)
    network(images)
    pairs = zip(network.encoder(images), received[0], strict=True)
    assert [i for i, (was, now) in enumerate(pairs) if not torch.equal(was, now)] == stages


@pytest.mark.parametrize(("stride", "stage"), [(1, 0), (2, 1), (8, 3), (64, 3)])
def test_the_mask_is_computed_where_the_stride_is_reached(stride: int, stage: int) -> None:
    assert masked(stride=stride).stage == stage
    anisotropic = masked(Task(dim=3, anisotropic=True, deep_supervision=False), stride=stride)
    assert anisotropic.stage == stage


@pytest.mark.parametrize(
    ("strides", "patch_size", "stage"),
    [
        ([1, 2, 2, 2], (96, 96), 2),
        ([1, 2, 2, 2], (40, 56), 1),
        ([1, 2, 2, 2], (256, 30), 0),
        ([1, 2, 2], (12, 12), 0),
        ([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]], (12, 128, 96), 2),
        ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], (40, 56, 40), 1),
    ],
)
def test_by_default_it_has_sixteen_cells_along_the_shorter_side(
    strides: list[Any], patch_size: tuple[int, ...], stage: int
) -> None:
    assert stage_of_mask(strides, patch_size, None) == stage


def test_a_checkpoint_with_the_mask_elsewhere_says_what_to_set() -> None:
    former, now = masked(stride=8), masked(stride=1)
    with pytest.raises(CheckpointError, match='set "mask_stride": 8'):
        now.load_state_dict(former.state_dict())


def test_the_mask_passes_gradient_to_the_critic_unless_it_is_frozen() -> None:
    network = masked()
    network(PLAIN.images()).square().mean().backward()
    assert all(p.grad is not None for p in network.feature_critic.parameters())


@pytest.mark.parametrize("with_segmentation", [True, False])
def test_each_side_learns_from_its_own_loss_only(with_segmentation: bool) -> None:
    network = masked().train()
    critic = OutputCritic(PLAIN.heads, PLAIN.patch_size, filters=2)
    critics = (network.feature_critic, critic)
    segmenter = (network.encoder, network.decoder)
    images, domain = PLAIN.images(batch_size=2), torch.tensor([SOURCE, TARGET])
    with frozen(*critics):
        logits, features = network(images, domain, return_features=True)
        probabilities = logits.softmax(dim=1)
        losses = alignment_losses(network.score(features[1:]), critic(probabilities[1:]))
        total = torch.stack(list(losses.values())).sum()
        if with_segmentation:
            total = total + logits[0].square().mean()
    total.backward()  # outside the block, where the trainer's optimiser runs
    assert all(p.grad is None for each in critics for p in each.parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.encoder.parameters())

    network.zero_grad(set_to_none=True)
    scores = network.score(features.detach()), critic(probabilities.detach())
    sum(critic_loss(each[:1], each[1:]) for each in scores).backward()
    assert all(p.grad is not None for each in critics for p in each.parameters())
    assert all(p.grad is None for each in segmenter for p in each.parameters())


def test_weights_without_the_critic_are_refused() -> None:
    network = masked()
    weights = {k: v for k, v in network.state_dict().items() if "feature_critic" not in k}
    with pytest.raises(RuntimeError, match=r"Missing key.*feature_critic"):
        network.load_state_dict(weights)


def test_stock_weights_fit_by_nnunets_rule_for_pretrained_ones() -> None:
    ours, stock = masked().state_dict(), PLAIN.unet().state_dict()
    asked = {key: value.shape for key, value in ours.items() if ".seg_layers." not in key}
    assert {key: stock[key].shape for key in asked} == asked


def test_both_domains_in_one_graph_compile_without_a_break() -> None:
    network = masked().train()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    images, domain = PLAIN.images(batch_size=2), torch.tensor([SOURCE, TARGET])
    with frozen(network.feature_critic):
        logits, features = compiled(images, domain, return_features=True)
        expected = network(images, domain, return_features=True)
    torch.testing.assert_close((logits, features), expected)
    logits.square().mean().backward()
    assert all(p.grad is None for p in network.feature_critic.parameters())
    assert any(p.grad is not None for p in network.encoder.parameters())


def test_half_precision_features_are_scored_in_full() -> None:
    network = masked()
    images = PLAIN.images()
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = network(images, return_features=True)
        scores = network.score(features)
    assert features.dtype == logits.dtype == torch.bfloat16
    assert scores.dtype == torch.float32


def test_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match="but the plans ask for Identity"):
        LocallyMaskedUNet(nn.Identity(), PLAIN.patch_size)


class TestFrozen:
    def test_what_was_frozen_before_stays_so(self) -> None:
        network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        network[0].requires_grad_(False)
        before = [p.requires_grad for p in network.parameters()]
        with frozen(network):
            assert not any(p.requires_grad for p in network.parameters())
        assert [p.requires_grad for p in network.parameters()] == before

    def test_gradients_pass_through(self) -> None:
        network, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        with frozen(network):
            y = network(x)
        y.backward()
        assert x.grad is not None
        assert network.weight.grad is None
