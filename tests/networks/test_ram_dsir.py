"""The restoration decoder on the encoders that nnU-Net plans; check 10 of the specification."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_ext._common.errors import UserError
from nnunet_ext.losses import RestorationLoss
from nnunet_ext.networks import RestorationDecoder
from nnunet_ext.networks.ram_dsir import DomainNorm, return_features
from tests.tiny import Task

TASKS = (
    Task(dim=3),
    Task(dim=3, residual=True, norm="batch", anisotropic=True, channels=2),
    Task(dim=2, norm="batch"),
    Task(dim=2, residual=True, deep_supervision=False, channels=2),
)
DOMAINS = torch.tensor([0, 2])


def build(task: Task) -> tuple[Any, RestorationDecoder]:
    torch.manual_seed(0)
    unet: Any = task.unet()
    return unet, RestorationDecoder(unet.encoder, task.channels, 3)


@pytest.mark.parametrize("task", TASKS, ids=str)
class TestOnPlannedEncoders:
    @pytest.mark.parametrize("channels", [1, 4])
    @pytest.mark.parametrize("max_stride", [None, 4, 1])
    def test_images_come_back_in_range_and_smaller_by_the_first_stride(
        self, task: Task, channels: int, max_stride: int | None
    ) -> None:
        unet, _ = build(task)
        decoder = RestorationDecoder(unet.encoder, channels, 3, max_stride)
        features = unet.encoder(task.images())
        restored = decoder(100 * features[decoder.stage], DOMAINS, task.patch_size)
        size = features[min(decoder.stage, 1)].shape[2:]
        assert restored.shape == (2, channels, *size)
        assert restored.abs().max() <= 1

    def test_domains_differ_once_their_tables_do(self, task: Task) -> None:
        unet, decoder = build(task)
        features = unet.encoder(task.images())[decoder.stage]
        swapped = DOMAINS.flip(0)
        before = decoder(features, DOMAINS, task.patch_size)
        assert torch.equal(before, decoder(features, swapped, task.patch_size))
        for module in decoder.modules():
            if isinstance(module, DomainNorm):
                nn.init.normal_(module.weight)
        assert not torch.equal(
            decoder(features, DOMAINS, task.patch_size), decoder(features, swapped, task.patch_size)
        )

    def test_only_the_tables_of_domains_in_the_batch_get_gradient(self, task: Task) -> None:
        unet, decoder = build(task)
        features = unet.encoder(task.images())[decoder.stage]
        decoder(features, DOMAINS, task.patch_size).square().sum().backward()
        assert all(parameter.grad is not None for parameter in decoder.parameters())
        tables = [m for m in decoder.modules() if isinstance(m, DomainNorm)]
        assert tables
        for table in tables:
            for parameter in (table.weight, table.bias):
                used = parameter.grad.abs().sum(1) > 0
                assert used.tolist() == [True, False, True]

    def test_its_loss_reaches_the_encoder_and_not_the_other_decoder(self, task: Task) -> None:
        unet, decoder = build(task)
        return_features(unet, decoder.stage)
        images = task.images()
        _, features = unet.train()(images)
        restored = decoder(features, DOMAINS, task.patch_size)
        RestorationLoss()(restored, images, DOMAINS).backward()
        # the decoder also lists the encoder's parameters as its own
        encoder = {id(parameter) for parameter in unet.encoder.parameters()}
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in unet.encoder.parameters())
        assert all(p.grad is None for p in unet.decoder.parameters() if id(p) not in encoder)

    def test_features_are_returned_in_training_only(self, task: Task) -> None:
        unet, decoder = build(task)
        names = list(unet.state_dict())
        return_features(unet, decoder.stage)
        images = task.images()
        outputs, features = unet.train()(images)
        assert isinstance(outputs, list if task.deep_supervision else Tensor)
        assert features.shape[1] == unet.encoder.output_channels[decoder.stage]
        plain = task.unet()
        plain.load_state_dict(unet.state_dict())
        assert list(unet.state_dict()) == names
        for each in (unet, plain):
            each.eval()
            each.decoder.deep_supervision = False
        assert torch.equal(unet(images), plain(images))

    def test_both_compile_without_graph_breaks(self, task: Task) -> None:
        unet, decoder = build(task)
        return_features(unet, decoder.stage)
        torch._dynamo.reset()
        compiled: Any = torch.compile(unet.train(), backend="eager", fullgraph=True)
        decoder.compile(backend="eager", fullgraph=True)
        images = task.images()
        outputs, features = compiled(images)
        restored = decoder(features, DOMAINS, images.shape[2:])
        assert restored.isfinite().all()
        restored.mean().backward()
        assert isinstance(outputs, list if task.deep_supervision else Tensor)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_patch_that_strides_do_not_divide_comes_back_as_the_encoder_halved_it(dim: Any) -> None:
    unet, decoder = build(Task(dim=dim))  # residual encoders refuse such patches themselves
    images = torch.randn(2, 1, *[19] * dim)
    features = unet.encoder(images)
    restored = decoder(features[decoder.stage], DOMAINS, images.shape[2:])
    assert restored.shape == (2, 1, *features[1].shape[2:])


def test_training_restores_the_style_that_the_domain_asks_for() -> None:
    torch.manual_seed(0)
    unet, decoder = build(Task(dim=2))
    x = torch.randn(4, 1, 16, 16)
    styled = torch.cat([x[:2] + 1, x[2:] - 1])
    domains = torch.tensor([0, 0, 1, 1])
    loss = RestorationLoss()
    optimizer = torch.optim.Adam([*unet.encoder.parameters(), *decoder.parameters()], 1e-2)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        restored = decoder(unet.encoder(x)[decoder.stage], domains, (16, 16))
        value = loss(restored, styled, domains)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
    features = unet.encoder(x)[decoder.stage]
    bright, dark = (decoder(features, torch.full((4,), d), (16, 16)).mean() for d in (0, 1))
    assert bright > dark + 0.3


def test_an_encoder_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="encoder of class Linear"):
        RestorationDecoder(nn.Linear(1, 1), 1, 2)
