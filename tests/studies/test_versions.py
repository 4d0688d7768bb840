"""Other versions: what is tried, and what is said of what cannot be had."""

from pathlib import Path

from studies import versions
from studies.versions import HERE, Combination


def test_what_is_here_comes_first_with_all_versions_of_nnunet() -> None:
    tried = list(versions.combinations())
    assert [each.nnunet for each in tried[:3]] == ["nnunetv2==2.8.0", "nnunetv2", "main"]
    assert {(each.python, each.torch) for each in tried[:3]} == {(HERE, HERE)}
    assert len({each.name for each in tried}) == len(tried)


def test_what_cannot_be_had_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    absent = Combination("0.0", "", "nnunetv2")
    found = versions.attempt(absent, tmp_path, versions.MAIN)
    assert found["state"] == "cannot be installed here"
    assert "python0.0" in found["why"]
    assert not list(tmp_path.iterdir())
