"""The critics of Mind the Gap against its specification and its authors' implementation."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ext.networks import FeatureCritic, OutputCritic
from nnunet_ext.networks.mind_the_gap.masked import local_weights
from tests.fixtures import load_in_order, reference


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("channels", "dim", "expected"),
    [(2048, 2, 24_776_705), (256, 2, 387_585), (256, 3, 1_162_305)],
)
def test_feature_critic_has_as_many_parameters_as_specified(
    channels: int, dim: int, expected: int
) -> None:
    with torch.device("meta"):
        assert parameters(FeatureCritic(channels, dim)) == expected


def test_output_critic_is_as_large_as_specified() -> None:
    with torch.device("meta"):
        critic = OutputCritic(5, (256, 256))
        assert parameters(critic) == 2_766_785
        assert critic(torch.empty(1, 5, 256, 256)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("size", "left"), [((3, 64, 20), (3, 2, 2)), ((1, 4, 1), (1, 2, 1)), ((128, 96), (4, 3))]
)
def test_output_critic_leaves_thin_axes_alone(size: tuple, left: tuple) -> None:
    assert OutputCritic(2, size, filters=2)(torch.rand(1, 2, *size)).shape == (1, 1, *left)


@pytest.mark.parametrize("dim", [2, 3])
def test_feature_critic_keeps_resolution_however_few_channels_there_are(dim: int) -> None:
    assert FeatureCritic(4, dim)(torch.rand(2, 4, *[5] * dim)).shape == (2, 1, *[5] * dim)


def test_reproduces_the_authors_feature_critic_and_mask() -> None:
    arrays = reference("glua_feature_critic_2d")
    critic = FeatureCritic(64, 2)
    load_in_order(critic, arrays, "w/")
    features = torch.as_tensor(arrays["features"])
    with torch.no_grad():
        scores = critic(features)
        weighted = features * local_weights(scores)
    for ours, name in ((scores, "score"), (weighted, "weighted")):
        assert np.abs(ours.numpy() - arrays[name]).max() / np.abs(arrays[name]).max() < 1e-5


def test_reproduces_the_authors_output_critic() -> None:
    arrays = reference("glua_output_critic_2d")
    critic = OutputCritic(5, arrays["softmax"].shape[2:], filters=8)
    load_in_order(critic, arrays, "w/")
    with torch.no_grad():
        scores = critic(torch.as_tensor(arrays["softmax"])).numpy()
    assert np.abs(scores - arrays["score"]).max() / np.abs(arrays["score"]).max() < 1e-5
