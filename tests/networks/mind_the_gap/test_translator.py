"""The translator of Mind the Gap against its specification and its authors' implementation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_ext.networks import DomainDiscriminator, Translator
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET
from tests.fixtures import load_in_order, reference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def error(ours: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(ours.detach().numpy() - expected).max() / np.abs(expected).max())


def test_reproduces_the_authors_translator() -> None:
    arrays = reference("glua_translator_2d")
    translator = Translator(filters=8).eval()
    discriminator = DomainDiscriminator(filters=8)
    networks = {"enc": translator.encoder, "dec": translator.decoder, "dis": discriminator}
    for name, network in networks.items():
        load_in_order(network, arrays, f"w/{name}.")
    x, domain = torch.as_tensor(arrays["x"]), torch.as_tensor(arrays["domain"])
    cycle = translator.cycle(x, domain)
    assert error(cycle.content, arrays["content"]) < 1e-5
    assert error(cycle.reconstruction, arrays["reconstruction"]) < 1e-5
    assert error(cycle.translation, arrays["translation"]) < 1e-5
    score = discriminator(cycle.translation, torch.as_tensor(arrays["target_domain"]))
    assert error(score, arrays["score"]) < 1e-5


def test_parameter_counts_of_the_specification() -> None:
    translator = Translator()
    assert parameters(translator.encoder) == 5_421_696
    assert parameters(translator.decoder) == 5_388_161
    assert parameters(DomainDiscriminator()) == 2_770_882


def test_shapes_of_the_specification() -> None:
    with torch.device("meta"):
        translator, discriminator = Translator(), DomainDiscriminator()
        images, domain = torch.empty(1, 1, 256, 256), torch.zeros(1, dtype=torch.int64)
        content = translator.encoder(images, domain)
        assert content.shape == (1, 256, 64, 64)
        assert translator.decoder(content, domain).shape == images.shape
        assert discriminator.layers(images).shape == (1, 2, 30, 30)
        assert discriminator.layers(images[..., :64, :64]).shape == (1, 2, 6, 6)


@pytest.mark.parametrize("dim", [2, 3])
class TestBothDimensions:
    def test_going_both_ways_keeps_shapes_and_reaches_all_weights(self, dim: int) -> None:
        translator = Translator(channels=2, dim=dim, filters=4, blocks=1)
        images = torch.rand(2, 2, *[16, 12, 8][:dim]) * 2 - 1
        cycle = translator.cycle(images, torch.tensor([SOURCE, TARGET]))
        for image in (cycle.reconstruction, cycle.translation, cycle.cycled):
            assert image.shape == images.shape
            assert image.abs().max() < 1
        assert cycle.content.shape == (2, 16, *[4, 3, 2][:dim])
        assert cycle.translated_content.shape == cycle.content.shape
        torch.stack([part.square().mean() for part in cycle]).sum().backward()
        # a shift before normalisation has no effect, so biases may have no gradient to speak of
        assert all(p.grad is not None for p in translator.parameters())

    def test_each_image_is_translated_from_its_own_domain(self, dim: int) -> None:
        translator = Translator(dim=dim, filters=4, blocks=1).eval()
        images = torch.rand(2, 1, *[16] * dim) * 2 - 1
        mixed = translator(images, torch.tensor([SOURCE, TARGET]))
        for i, domain in enumerate((SOURCE, TARGET)):
            alone = translator(images[i : i + 1], torch.tensor([domain]))
            torch.testing.assert_close(mixed[i : i + 1], alone)
        swapped = translator(images, torch.tensor([TARGET, SOURCE]))
        assert (swapped - mixed).abs().max() > 1e-3

    def test_the_discriminator_answers_for_the_domain_it_is_asked_about(self, dim: int) -> None:
        discriminator = DomainDiscriminator(dim=dim, filters=4)
        images = torch.rand(2, 1, *[discriminator.SMALLEST] * dim)
        both = discriminator.layers(images)
        scores = discriminator(images, torch.tensor([TARGET, SOURCE]))
        assert torch.equal(scores, torch.stack([both[0, TARGET], both[1, SOURCE]]))
        assert scores.numel() == 2
