"""Words that everything printed shares."""

import math

import pytest

from nnunet_ext._common.console import duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(6.6, "7 s"), (245, "4:05 min"), (7_800, "2:10 h"), (math.nan, "\N{EN DASH}")],
)
def test_time_spans_are_as_people_read_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
