"""Suggestions for a name that does not exist."""

from collections.abc import Iterable
from difflib import SequenceMatcher

ALIKE = 0.6
"""Names are alike from this ratio of common characters, as in :mod:`difflib`."""
WORSE = 0.1
"""How much less alike than the best match another suggestion may be."""


def near_matches(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that ``name`` was probably meant to be, best first.

    Differences in case do not count, and a name that contains ``name`` counts as near, so
    that ``train`` leads to ``nnUNetv2_train``.
    """
    folded = name.casefold()
    ratios = {
        candidate: SequenceMatcher(a=folded, b=candidate.casefold()).ratio() for candidate in known
    }
    near = [c for c, ratio in ratios.items() if ratio >= ALIKE or folded in c.casefold()]
    near.sort(key=lambda candidate: -ratios[candidate])
    # names that share a prefix, as nnU-Net's commands do, are all alike
    return [c for c in near if ratios[c] >= ratios[near[0]] - WORSE][:most]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the near matches as a sentence with a leading space, or nothing."""
    close = near_matches(name, known)
    return f" Did you mean {' or '.join(close)}?" if close else ""
