import pytest
import torch

from nnunet_ext.losses import alignment_losses, critic_loss


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
