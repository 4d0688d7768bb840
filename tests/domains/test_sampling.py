"""Every domain is drawn equally often, and within it every case."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_ext.domains.sampling import MOST_REPEATS, evenly


@given(st.lists(st.sampled_from("ABCD"), min_size=1, max_size=50))
def test_cases_are_repeated_evenly_over_domains_and_within_each(drawn_from: list[str]) -> None:
    domains = {f"case_{number}": domain for number, domain in enumerate(drawn_from)}
    repeats = Counter(evenly(list(domains), domains))
    assert repeats.keys() == domains.keys()
    of_domains = [
        [repeats[case] for case in domains if domains[case] == domain] for domain in set(drawn_from)
    ]
    assert len({sum(repeated) for repeated in of_domains}) == 1
    for repeated in of_domains:
        assert max(repeated) - min(repeated) <= (0 if min(repeated) < MOST_REPEATS else 1)


def test_sizes_without_a_small_common_multiple_do_not_make_endless_lists() -> None:
    sizes = {"A": 97, "B": 89, "C": 83, "D": 79}
    domains = {f"{name}{i}": name for name, size in sizes.items() for i in range(size)}
    assert len(evenly(list(domains), domains)) == 4 * 97 * MOST_REPEATS


def test_domains_of_cases_that_are_not_drawn_do_not_count() -> None:
    domains = {"a": "A", "b": "B", "c": "C"}
    assert sorted(evenly(["b", "a"], domains)) == ["a", "b"]


@pytest.mark.parametrize("even", [True, False])
def test_nnunets_loader_draws_what_is_repeated_more_often(even: bool) -> None:
    domains = {"rare": "A", **{f"case_{number}": "B" for number in range(9)}}
    data = SimpleNamespace(identifiers=evenly(list(domains), domains) if even else list(domains))
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    loader = nnUNetDataLoader(data, 4000, (8, 8), (8, 8), labels)
    np.random.seed(0)
    counted = Counter(loader.get_indices())
    assert counted["rare"] / 4000 == pytest.approx(0.5 if even else 0.1, abs=0.03)
    assert counted["case_3"] / 4000 == pytest.approx(0.5 / 9 if even else 0.1, abs=0.03)
