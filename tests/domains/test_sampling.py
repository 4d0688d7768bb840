"""Every domain is drawn equally often, and within it every case."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets_module

from nnunet_ext.domains.sampling import (
    ProbabilityLoader,
    even_probabilities,
    probabilities_respected,
)


@given(st.lists(st.sampled_from("ABCD"), min_size=1, max_size=50))
def test_probabilities_are_even_over_domains_and_within_each(drawn_from: list[str]) -> None:
    domains = {f"case_{number}": domain for number, domain in enumerate(drawn_from)}
    probabilities = even_probabilities(list(domains), domains)
    assert probabilities.sum() == pytest.approx(1)
    for domain in set(drawn_from):
        of_domain = probabilities[[each == domain for each in drawn_from]]
        assert of_domain.sum() == pytest.approx(1 / len(set(drawn_from)))
        assert len(set(of_domain)) == 1


def test_domains_of_cases_that_are_not_drawn_do_not_count() -> None:
    domains = {"a": "A", "b": "B", "c": "C"}
    assert even_probabilities(["b", "a"], domains).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("evenly", [True, False])
def test_loaders_draw_with_the_probabilities_of_their_data_set(evenly: bool) -> None:
    domains = {"rare": "A", **{f"case_{number}": "B" for number in range(9)}}
    data = SimpleNamespace(identifiers=list(domains))
    if evenly:
        data.sampling_probabilities = even_probabilities(data.identifiers, domains)
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    with probabilities_respected():
        loader = nnunets_module.nnUNetDataLoader(data, 4000, (8, 8), (8, 8), labels)
    np.random.seed(0)
    counted = Counter(loader.get_indices())
    assert counted["rare"] / 4000 == pytest.approx(0.5 if evenly else 0.1, abs=0.03)
    assert counted["case_3"] / 4000 == pytest.approx(0.5 / 9 if evenly else 0.1, abs=0.03)


def test_nnunet_gets_its_loader_back() -> None:
    with probabilities_respected():
        assert nnunets_module.nnUNetDataLoader is ProbabilityLoader
    assert nnunets_module.nnUNetDataLoader is nnUNetDataLoader
