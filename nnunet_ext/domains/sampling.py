"""Drawing training cases so that every domain is seen equally often."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from math import lcm

from nnunet_ext.domains.assignment import cases_by_domain

MOST_REPEATS = 100
"""How often a case of the largest domain may stand in the list."""


def evenly(identifiers: Sequence[str], domains: Mapping[str, str]) -> list[str]:
    """Repeat cases so that each domain has as many, for nnU-Net's loaders, which draw alike.

    Args:
        identifiers: Cases to draw from.
        domains: Case -> domain, at least for these.

    Returns:
        Every case of a domain as often as its others; or one more or less, from
        :data:`MOST_REPEATS` times upwards, if the domains' sizes have no small common multiple.
    """
    members = cases_by_domain({case: domains[case] for case in identifiers}).values()
    sizes = [len(cases) for cases in members]
    length = min(lcm(*sizes), MOST_REPEATS * max(sizes, default=0))
    return [case for cases in members for case in islice(cycle(cases), length)]
