"""The losses of Mind the Gap."""

import pytest
import torch
from torch import Tensor

from nnunet_ext.losses import alignment_losses, critic_loss, translation_losses


def test_numbers_of_the_specification() -> None:
    scores = torch.full((2, 1, 4, 4), 0.25), torch.full((2, 1, 2, 2), 0.25)
    weighted = 0.01 * torch.stack(list(alignment_losses(*scores).values())).sum()
    assert float(weighted) == pytest.approx(0.00125)
    assert float(sum(critic_loss(each, each) for each in scores)) == pytest.approx(1.25)


def test_both_sides_are_at_rest_where_they_have_won() -> None:
    source, target = torch.zeros(2, 1, 3, 3, 3), torch.ones(2, 1, 3, 3, 3)
    assert critic_loss(source, target) == 0
    assert critic_loss(target, source) == 2
    assert not any(alignment_losses(source, source).values())


def parts(**changed: Tensor) -> dict[str, float]:
    """Losses of a perfect translator with one or another thing changed."""
    perfect = {name: torch.zeros(2, 1, 4, 4) for name in ("images", "reconstruction", "cycled")}
    perfect |= {name: torch.zeros(2, 3, 2, 2) for name in ("content", "translated_content")}
    perfect |= {"translation_scores": torch.ones(2, 3, 3)}
    return {name: float(part) for name, part in translation_losses(**perfect | changed).items()}


def test_a_perfect_translator_loses_nothing() -> None:
    assert not any(parts().values())


@pytest.mark.parametrize(
    ("name", "part", "weight"),
    [("reconstruction", "reconstruction", 20), ("cycled", "cycle", 20)],
)
def test_each_domain_has_a_mean_of_its_own(name: str, part: str, weight: float) -> None:
    image = torch.zeros(2, 1, 4, 4)
    image[0], image[1] = 0.5, -0.25  # one image of each domain
    assert parts(**{name: image})[part] == pytest.approx(weight * 0.75)


def test_content_is_compared_where_it_came_from_and_where_it_went() -> None:
    content = torch.full((2, 3, 2, 2), 0.25)
    changed = parts(content=content, translated_content=-content)
    assert changed["content"] == pytest.approx(1.0)
    a, b = (content.clone().requires_grad_() for _ in range(2))
    image, scores = torch.zeros(2, 1, 4, 4), torch.ones(2, 3, 3)
    sum(translation_losses(image, image, image, a, -b, scores).values()).backward()
    for side in (a, b):  # neither is detached
        assert side.grad is not None
        assert side.grad.any()


def test_adversarial_parts() -> None:
    scores = torch.stack([torch.zeros(3, 3), torch.ones(3, 3)])
    assert parts(translation_scores=scores)["adversarial"] == 0.5
