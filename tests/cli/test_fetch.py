"""``nnunet-ext fetch`` as a process of its own, against a server on localhost."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.nnunet import decathlon
from tests.decathlon_server import NAME, Server, archive_of, make_task

PROGRAM = f"""
import sys
from dataclasses import replace
from nnunet_ext.nnunet import decathlon
from nnunet_ext.cli import main
decathlon.CHUNK = 1024
decathlon.TASKS[{NAME!r}] = replace(decathlon.TASKS[{NAME!r}], md5=sys.argv.pop(1))
try:
    sys.exit(main())
finally:
    assert not {{"torch", "pandas", "nnunetv2"}} & sys.modules.keys()
"""
"""The command, but a chunk is small and the task has another checksum than the real one."""


@dataclass(frozen=True)
class Shop:
    """A server, and a folder to fetch into."""

    server: Server
    md5: str
    out: Path

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", PROGRAM, self.md5, "fetch", "--out", str(self.out)]

    @property
    def environment(self) -> dict[str, str]:
        proxies = {"http_proxy", "https_proxy", "all_proxy"}
        kept = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
        return {**kept, decathlon.BASE_URL_VARIABLE: self.server.url, "COLUMNS": "80"}

    def fetch(self, *tasks: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.command, *tasks],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    task = make_task(tmp_path / "source")
    (task / "imagesTr" / "case_000.nii.gz").write_bytes(bytes(50_000))
    content = archive_of(task)
    server = Server(content)
    yield Shop(server, hashlib.md5(content).hexdigest(), tmp_path / "to here")
    server.stop()


def test_terms_come_first_and_the_next_command_last(shop: Shop) -> None:
    done = shop.fetch(NAME)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == NAME
    for part in ("hippocampus", "27 MB", "CC BY-SA 4.0", "cite: Antonelli"):
        assert part in lines[1]
    assert lines[-2] == f"  is now in {shop.out / NAME}"
    assert lines[-1] == f"  next: nnUNetv2_convert_MSD_dataset -i '{shop.out / NAME}'"
    assert [path.name for path in shop.out.iterdir()] == [NAME]


def test_a_task_that_is_there_is_only_shown(shop: Shop) -> None:
    shop.fetch(NAME)
    again = shop.fetch(NAME)
    assert again.returncode == 0
    assert f"is already in {shop.out / NAME}" in again.stdout
    assert "next: " in again.stdout
    assert len(shop.server.ranges) == 1


def test_a_broken_connection_is_resumed_by_the_same_command(shop: Shop) -> None:
    shop.server.break_after = 20 * 1024
    broken = shop.fetch(NAME)
    assert broken.returncode == 1
    assert "the connection broke off. 20480 bytes are here already. Run again" in broken.stderr
    assert broken.stderr.count("\n") == 1
    shop.server.break_after = None
    assert shop.fetch(NAME).returncode == 0
    assert shop.server.ranges == [None, "bytes=20480-"]
    assert (shop.out / NAME).is_dir()


def test_a_wrong_checksum_is_refused_and_nothing_is_left(shop: Shop) -> None:
    shop.server.content = shop.server.content[:-1] + b"x"
    done = shop.fetch(NAME)
    assert done.returncode == 1
    assert f"it should be {shop.md5}" in done.stderr
    assert list(shop.out.iterdir()) == []


def test_an_unknown_task_gets_near_matches_before_anything_is_downloaded(shop: Shop) -> None:
    done = shop.fetch(NAME, "Task09_Spleem")
    assert done.returncode == 1
    assert "Did you mean Task09_Spleen?" in done.stderr
    assert shop.server.ranges == []
    assert not shop.out.exists()


def test_several_tasks_are_fetched_in_turn(shop: Shop) -> None:
    done = shop.fetch(NAME, "Task02_Heart")
    assert (shop.out / NAME).is_dir()
    assert done.returncode == 1
    assert "Task02_Heart.tar: the server answers 404" in done.stderr


def test_an_archive_that_was_put_there_is_named_as_no_longer_needed(shop: Shop) -> None:
    shop.out.mkdir()
    archive = shop.out / f"{NAME}.tar"
    archive.write_bytes(shop.server.content)
    assert f"no longer needed: {archive}" in shop.fetch(NAME).stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for other processes")
def test_ctrl_c_keeps_what_is_there_for_the_same_command(shop: Shop) -> None:
    shop.server.break_after = 20 * 1024
    shop.server.asleep = threading.Event()
    with subprocess.Popen(
        [*shop.command, NAME],
        env=shop.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        partial = shop.out / f"{NAME}.tar.part"
        _wait_until(lambda: partial.exists() and partial.stat().st_size > 10_000)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    shop.server.asleep.set()
    assert process.returncode == 130
    assert said.strip() == "Interrupted. Run the same command again to go on from here."
    assert [path.name for path in shop.out.iterdir()] == [partial.name]
    shop.server.break_after = shop.server.asleep = None
    assert shop.fetch(NAME).returncode == 0
    assert str(shop.server.ranges[1]).startswith("bytes=")


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("arguments", [(), ("--list",)])
def test_list_shows_all_ten_tasks_with_their_licence(
    cli: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    outcome = cli("fetch", *arguments)
    assert outcome.code == 0
    for task in decathlon.TASKS.values():
        (row,) = (line for line in outcome.out.splitlines() if line.startswith(task.name))
        for part in (f"{task.training} + {task.test}", task.size, decathlon.LICENCE):
            assert part in row
    assert decathlon.REFERENCE in outcome.out
