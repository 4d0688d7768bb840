import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from nnunet_ext._common import files
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import (
    clear_partial,
    fingerprint,
    one_at_a_time,
    replacing,
    write_jsons,
    writing,
)


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    path.write_text("old")
    with replacing(path) as partial:
        assert partial.name == path.name  # its ending tells writers the format
        partial.write_text("new")
        assert path.read_text() == "old"
        assert [each for each in tmp_path.iterdir() if each.is_file()] == [path]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_is_an_error_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(OSError, match=r"No space left on device: .*scores\.csv"), replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_have_left_is_cleared_by_name(tmp_path: Path) -> None:
    names = [".a.pth.x.partial", ".b.pth.y.partial", ".hidden", "a.partial"]
    for name in names:
        (tmp_path / name).mkdir()
    clear_partial(tmp_path / "a.pth")
    assert sorted(each.name for each in tmp_path.iterdir()) == names[1:]
    clear_partial(tmp_path / "*")
    assert sorted(each.name for each in tmp_path.iterdir()) == names[2:]


def test_a_folder_in_which_nobody_may_write_is_named(tmp_path: Path) -> None:
    told = f"Cannot write into {tmp_path}: Read-only"
    with pytest.raises(UserError, match=told), writing(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(OSError, match="Too many"), writing(tmp_path):
        raise OSError(errno.EMFILE, "Too many open files")


def test_several_files_are_written_all_or_none(tmp_path: Path) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    write_jsons(dict.fromkeys(paths, 1))
    paths[0].chmod(0o640)
    with pytest.raises(TypeError):
        write_jsons({paths[0]: 2, paths[1]: object()})
    assert [json.loads(path.read_text()) for path in paths] == [1, 1]
    assert sorted(tmp_path.iterdir()) == paths
    write_jsons(dict.fromkeys(paths, 3))
    assert [json.loads(path.read_text()) for path in paths] == [3, 3]
    assert paths[0].stat().st_mode & 0o777 == 0o640


def test_who_comes_second_says_so_and_waits(tmp_path: Path) -> None:
    done: list[str] = []
    told = Event()

    def second() -> None:
        with one_at_a_time(tmp_path / ".lock", lambda _: told.set()):
            done.append("second")

    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(tmp_path / ".lock", lambda _: pytest.fail("nobody is here")):
            waiting = pool.submit(second)
            assert told.wait(timeout=10)
            done.append("first")
        waiting.result(timeout=10)
    assert done == ["first", "second"]


@pytest.mark.parametrize("size", [0, 1, 11, 12, 13, 100])
def test_copies_have_the_same_fingerprint_and_changed_files_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(files, "_READ", 4)
    content = bytes(range(size))
    original, copy, longer = (tmp_path / name for name in ("original", "copy", "longer"))
    original.write_bytes(content)
    copy.write_bytes(content)
    longer.write_bytes(content + b" ")
    found = fingerprint(original)
    assert fingerprint(copy) == found != fingerprint(longer)
    for position in {0, size // 2, size - 1} if size else ():
        copy.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
        assert fingerprint(copy) != found
