"""Decathlon tasks: checks of a folder, downloads from a server on localhost, unpacking."""

import errno
import hashlib
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet import commands, decathlon
from tests.decathlon_server import NAME, Server, archive_of, make_task


def test_conversion_appears_when_it_is_complete_and_takes_test_labels_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, task = tmp_path / "raw", make_task(tmp_path)
    raw.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    (task / "labelsTs").mkdir()
    (task / "labelsTs" / "test_001.nii.gz").touch()
    calls: list[list[str]] = []

    def convert(command: list[str], log: Path, variables: dict[str, str]) -> None:
        calls.append(command)
        Path(variables["nnUNet_raw"], "Dataset004_Hippocampus").mkdir()
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_command", convert)
    with pytest.raises(KeyboardInterrupt):
        decathlon.convert(task)
    assert list(raw.iterdir()) == []
    for _ in range(2):
        assert decathlon.convert(task) == "Dataset004_Hippocampus"
    assert [call[:3] for call in calls] == [["nnUNetv2_convert_MSD_dataset", "-i", str(task)]] * 2
    assert (raw / "Dataset004_Hippocampus" / "labelsTs" / "test_001.nii.gz").exists()


# ---------------------------------------------------------------------------------- the ten tasks


def test_all_ten_tasks_have_a_well_formed_checksum_of_their_own() -> None:
    assert [name[:6] for name in decathlon.TASKS] == [f"Task{n:02d}" for n in range(1, 11)]
    checksums = [task.md5 for task in decathlon.TASKS.values()]
    assert len(set(checksums)) == 10
    assert all(re.fullmatch("[0-9a-f]{32}", checksum) for checksum in checksums)


def test_unknown_task_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean Task04_Hippocampus"):
        decathlon.find_task("hippocampus")


def test_terms_name_the_licence() -> None:
    assert "CC BY-SA 4.0" in decathlon.terms(NAME)


# ------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    content = archive_of(make_task(tmp_path / "source"))
    task = replace(decathlon.TASKS[NAME], md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(decathlon.TASKS, NAME, task)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    running = Server(content)
    monkeypatch.setenv("NNUNET_EXT_DECATHLON_URL", running.url)
    yield running
    running.stop()


def test_download_is_verified_unpacked_and_tidied_up(server: Server, tmp_path: Path) -> None:
    target = decathlon.fetch_task(NAME, tmp_path / "to")
    assert len(list((target / "imagesTr").iterdir())) == 5
    assert [path.name for path in (tmp_path / "to").iterdir()] == [NAME]
    assert not list(target.rglob("._*"))


def test_a_task_that_is_there_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        decathlon.fetch_task(NAME, tmp_path / "to")
    assert len(server.ranges) == 1


def test_the_environment_names_a_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNUNET_EXT_DECATHLON_URL", f"{server.url}/mirror/")
    assert decathlon.fetch_task(NAME, tmp_path / "to").is_dir()


def test_interrupted_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decathlon, "CHUNK", 1024)
    server.break_after = 4096
    with pytest.raises(UserError, match=r"broke off.* 4096 bytes are here already.*Run again"):
        decathlon.fetch_task(NAME, tmp_path / "to")
    assert not (tmp_path / "to" / NAME).exists()
    server.break_after = None
    assert decathlon.fetch_task(NAME, tmp_path / "to").is_dir()
    assert server.ranges == [None, "bytes=4096-"]


def test_a_complete_partial_file_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / f"{NAME}.tar.part").write_bytes(server.content)
    assert decathlon.fetch_task(NAME, tmp_path / "to").is_dir()


@pytest.mark.parametrize("step", ["_md5", "unpack"])
def test_an_interruption_after_the_last_byte_costs_no_byte(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(decathlon, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            decathlon.fetch_task(NAME, tmp_path / "to")
    assert decathlon.fetch_task(NAME, tmp_path / "to").is_dir()
    assert server.ranges == [None, f"bytes={len(server.content)}-"]
    assert [path.name for path in (tmp_path / "to").iterdir()] == [NAME]


def test_wrong_checksum_is_refused_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    server.content = server.content[:-1] + b"x"
    with pytest.raises(UserError, match=rf"{server.url}.*is not the archive of {NAME}.*MD5"):
        decathlon.fetch_task(NAME, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_offline_tells_what_to_put_where(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("NNUNET_EXT_DECATHLON_URL", url)
        with pytest.raises(UserError) as error:
            decathlon.fetch_task(NAME, tmp_path / "to")
    message = str(error.value)
    assert f"{url}/{NAME}.tar" in message
    assert str(tmp_path / "to" / f"{NAME}.tar") in message
    assert "online" in message


def test_answer_of_the_server_is_shown(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answers 404"):
        decathlon.fetch_task("Task02_Heart", tmp_path / "to")


def test_archive_put_by_hand_is_used_and_kept(server: Server, tmp_path: Path) -> None:
    archive = tmp_path / "to" / f"{NAME}.tar"
    archive.parent.mkdir()
    archive.write_bytes(server.content)
    assert decathlon.fetch_task(NAME, archive.parent).is_dir()
    assert archive.exists()
    assert server.ranges == []


def test_wrong_archive_put_by_hand_is_refused(server: Server, tmp_path: Path) -> None:
    archive = tmp_path / "to" / f"{NAME}.tar"
    archive.parent.mkdir()
    archive.write_bytes(server.content[:1000])
    with pytest.raises(UserError, match=r"its MD5 is .* it should be"):
        decathlon.fetch_task(NAME, archive.parent)


def test_a_disk_that_fills_up_keeps_what_came_for_the_next_try(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decathlon, "CHUNK", 1024)

    class Full(decathlon.tqdm):
        came = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.came += int(n or 0)
            if self.came == 4096:
                raise OSError(errno.ENOSPC, "No space left on device")
            return None

    with monkeypatch.context() as full:
        full.setattr(decathlon, "tqdm", Full)
        with pytest.raises(UserError, match=r"No space left.*run again to go on, after"):
            decathlon.fetch_task(NAME, tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == [f"{NAME}.tar.part"]
    assert decathlon.fetch_task(NAME, tmp_path / "to").is_dir()
    assert server.ranges == [None, "bytes=4096-"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot fetch into .*file"):
        decathlon.fetch_task(NAME, tmp_path / "file")


# ------------------------------------------------------------------------------------- unpacking


def test_truncated_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / f"{NAME}.tar"
    folder = make_task(tmp_path / "source")
    (folder / "imagesTr" / "case_000.nii.gz").write_bytes(b"x" * 50_000)
    archive.write_bytes(archive_of(folder)[:20_000])
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match="cannot be unpacked"):
        decathlon.unpack(archive, tmp_path / "to" / NAME)
    assert list((tmp_path / "to").iterdir()) == []
