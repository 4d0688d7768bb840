"""Work on many cases, here and in other processes."""

import os

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.processes import for_each


def halve(number: int) -> tuple[int, int]:
    if number % 2:
        raise UserError(f"{number} is odd")
    return number // 2, os.getpid()


def vanish(number: int) -> None:
    os._exit(number)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_by_case_in_the_cases_order(processes: int) -> None:
    found = for_each(halve, {"b": (4,), "a": (2,)}, processes, "Halving")
    assert [(case, half) for case, (half, _) in found.items()] == [("b", 2), ("a", 1)]
    assert {pid == os.getpid() for _, pid in found.values()} == {processes == 1}


@pytest.mark.parametrize("processes", [0, 1, 8])
def test_no_cases_are_no_work(processes: int) -> None:
    assert for_each(halve, {}, processes, "Halving") == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_a_case_is_raised(processes: int) -> None:
    with pytest.raises(UserError, match="3 is odd"):
        for_each(halve, {"a": (2,), "b": (3,), "c": (4,)}, processes, "Halving")


def test_a_killed_process_is_explained() -> None:
    with pytest.raises(UserError, match=r"Halving: a process was killed.*nnUNet_def_n_proc"):
        for_each(vanish, {"a": (1,), "b": (1,)}, 2, "Halving")
