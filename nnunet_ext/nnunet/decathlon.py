"""Tasks of the Medical Segmentation Decathlon: which there are, fetching, checking a folder."""

import contextlib
import errno
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean

LICENCE = "CC BY-SA 4.0"
REFERENCE = "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022"
HOMEPAGE = "http://medicaldecathlon.com"

BASE_URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
"""Where the archives are; MONAI's mirror, whose checksums these are."""

BASE_URL_VARIABLE = "NNUNET_EXT_DECATHLON_URL"
"""Environment variable that names another mirror."""

MINIMUM_CASES = 5
"""nnU-Net's five-fold cross-validation needs a case per fold."""

CHUNK = 1 << 16
"""Bytes; what an interruption can lose at most."""
TIMEOUT = (10, 60)
"""Seconds to wait for a connection and for the next bytes."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes here so far and, if the server tells it, the bytes of the whole."""


@dataclass(frozen=True)
class Task:
    """One task of the Decathlon, as it can be downloaded."""

    name: str
    shows: str
    modality: str
    training: int
    test: int
    size: str
    md5: str

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return f"{self.name}.tar"


TASKS = {
    task.name: task
    for task in (
        Task("Task01_BrainTumour", "gliomas: oedema, enhancing and other tumour", "MRI, 4 channels",
             484, 266, "7.1 GB", "240a19d752f0d9e9101544901065d872"),
        Task("Task02_Heart", "left atrium", "MRI",
             20, 10, "435 MB", "06ee59366e1e5124267b774dbd654057"),
        Task("Task03_Liver", "liver and tumours", "CT",
             131, 70, "27 GB", "a90ec6c4aa7f6a3d087205e23d4e6397"),
        Task("Task04_Hippocampus", "anterior and posterior hippocampus", "MRI",
             260, 130, "27 MB", "9d24dba78a72977dbd1d2e110310f31b"),
        Task("Task05_Prostate", "peripheral zone and transition zone", "MRI, 2 channels",
             32, 16, "229 MB", "35138f08b1efaef89d7424d2bcc928db"),
        Task("Task06_Lung", "lung tumours", "CT",
             63, 32, "8.5 GB", "8afd997733c7fc0432f71255ba4e52dc"),
        Task("Task07_Pancreas", "pancreas and tumours", "CT",
             281, 139, "11 GB", "4f7080cfca169fa8066d17ce6eb061e4"),
        Task("Task08_HepaticVessel", "hepatic vessels and tumours", "CT",
             303, 140, "8.7 GB", "641d79e80ec66453921d997fbf12a29c"),
        Task("Task09_Spleen", "spleen", "CT",
             41, 20, "1.5 GB", "410d4a301da4e5b2f6f86ec3ddba524e"),
        Task("Task10_Colon", "colon tumours", "CT",
             126, 64, "5.8 GB", "bad7a188931dc2f6acf72b08eb6202d0"),
    )
}  # fmt: skip
"""Name of a task -> what it is; the sizes are rounded."""


def find_task(name: str) -> Task:
    """The Decathlon task of this name.

    Raises:
        UserError: If there is none; names the nearest.
    """
    if name in TASKS:
        return TASKS[name]
    raise UserError(
        f'There is no Decathlon task "{name}".{did_you_mean(name, TASKS)} '
        f"The ten tasks are: {', '.join(TASKS)}."
    )


def terms(name: str) -> str:
    """One line on what a task shows, how large it is, and under which terms it may be used."""
    task = find_task(name)
    return (
        f"{task.shows} ({task.modality}; {task.size}); licence {LICENCE}, please cite: {REFERENCE}"
    )


def fetch_task(
    name: str, folder: Path, base_url: str | None = None, progress: Progress | None = None
) -> Path:
    """Download, verify and unpack a Decathlon task unless it is there already.

    An interrupted download goes on where it stopped. The task folder appears under its
    name only when it is complete. An archive that the user put into ``folder`` is used
    and kept, a downloaded one is removed after unpacking.

    Args:
        name: Name of the task, for example ``Task04_Hippocampus``.
        folder: Where the archive and the task folder go.
        base_url: Address of a mirror; default is the environment variable
            ``NNUNET_EXT_DECATHLON_URL``, else :data:`BASE_URL`.
        progress: Called as the download proceeds.

    Returns:
        The task folder.

    Raises:
        UserError: If the task does not exist, the server cannot be reached, what came has
            the wrong checksum, or the disk is too small.
    """
    task = find_task(name)
    target, archive = folder / task.name, folder / task.archive
    if target.is_dir():
        return target
    put_by_hand = archive.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if put_by_hand:
            _verify(archive, task)
        else:
            archive = _download(task, archive, base_url, progress)
        _require_space(folder, archive.stat().st_size)
        unpack(archive, target)
        if not put_by_hand:
            archive.unlink()
    except OSError as error:
        raise UserError(_disk_problem(error, folder)) from error
    return target


def _require_space(folder: Path, needed: int) -> None:
    """Refuse to begin where fewer than ``needed`` bytes are free."""
    from rich.filesize import decimal

    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The disk of {folder} has {decimal(free)} left, but {decimal(needed)} are needed for "
            "the rest of the archive and what it holds. Make room, or name a folder on another "
            "disk with --out."
        )


def _disk_problem(error: OSError, folder: Path) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"The disk of {folder} is full. What has been downloaded is kept: make room and run "
            "again to go on."
        )
    return f"Cannot fetch into {folder}: {error}."


def task_url(task: Task, base_url: str | None = None) -> str:
    """Address of a task's archive."""
    base = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
    return f"{base.rstrip('/')}/{task.archive}"


def _verify(archive: Path, task: Task) -> None:
    found = _md5(archive)
    if found != task.md5:
        raise UserError(
            f"{archive} is not the archive of {task.name}: its MD5 is {found}, it should be "
            f"{task.md5}. Perhaps the file is incomplete. Remove it and run again to download it."
        )


def _md5(archive: Path) -> str:
    import pooch

    found: str = pooch.file_hash(str(archive), alg="md5")
    return found


def _download(task: Task, archive: Path, base_url: str | None, progress: Progress | None) -> Path:
    """Download and verify an archive; it keeps the name of a partial one until it is unpacked."""
    import requests

    url = task_url(task, base_url)
    partial = archive.with_name(f"{archive.name}.part")
    try:
        _resume(url, partial, progress)
    except requests.exceptions.RequestException as error:
        have = partial.stat().st_size if partial.exists() else 0
        so_far = f" {have} bytes are here already." if have else ""
        raise UserError(
            f"Cannot download {url}: {_reason(error)}.{so_far} Run again to go on, name a mirror "
            f"in {BASE_URL_VARIABLE}, or get the file in another way and put it at {archive}."
        ) from error
    if _md5(partial) != task.md5:
        partial.unlink()
        raise UserError(
            f"What came from {url} is not the archive of {task.name}: its MD5 is not {task.md5}. "
            "It has been removed. Run again; if that does not help, the server has another file."
        )
    return partial


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    name = type(error).__name__
    if "Timeout" in name:
        return "the server does not answer in time"
    if name == "ChunkedEncodingError":
        return "the connection broke off"
    return "the server cannot be reached (is this machine online?)"


def _resume(url: str, partial: Path, progress: Progress | None) -> None:
    """Append to a partial file what is missing of it."""
    import requests

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if have and response.status_code == 416:
            return  # there is nothing after what we have; the checksum will tell if it is right
        response.raise_for_status()
        done = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        if total is not None:  # the archive holds compressed images: unpacked, it is as large
            _require_space(partial.parent, total - done + total)
        with partial.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a task's archive to ``target``, which appears only when it is complete.

    The resource files of macOS (``._name``), which the Decathlon's archives hold, are left
    out. Members that are no plain files, or that would land elsewhere, are refused.

    Raises:
        UserError: If the archive cannot be read, is not safe, or holds another task.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            for member in _wanted_members(tar, archive):
                # a filter for what our own check does not know of (permissions, owners)
                safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extract(member, partial, **safe)  # type: ignore[arg-type]
        if not (partial / target.name).is_dir():
            raise UserError(f"{archive} does not hold a folder {target.name}.")
        os.replace(partial / target.name, target)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _wanted_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        path = PurePosixPath(member.name)
        if path.name.startswith("._") or path.name == ".DS_Store":
            continue
        outside = path.is_absolute() or ".." in path.parts or "\\" in member.name
        if outside or not (member.isfile() or member.isdir()):
            raise UserError(f"{archive} holds {member.name!r}, which is not safe to unpack.")
        yield member


@dataclass(frozen=True)
class TaskFolder:
    """A folder that has been found to be a Decathlon task."""

    path: Path
    task_id: int
    name: str
    labels: dict[int, str]
    training: tuple[str, ...]
    test: tuple[str, ...]
    has_test_labels: bool

    @property
    def dataset_name(self) -> str:
        """What nnU-Net calls the data set after the conversion."""
        return f"Dataset{self.task_id:03d}_{self.name}"


def check_task_folder(folder: Path) -> TaskFolder:
    """Check that nnU-Net can convert and train on a folder of the Decathlon's layout.

    Raises:
        UserError: If it cannot; says everything that is missing.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.")
    described, problems = _read_description(folder / "dataset.json")
    name = re.fullmatch(r"Task(\d{1,3})_([^_]+)", folder.name)
    if not name:
        problems.insert(0, "the folder must be named like Task04_Hippocampus")
    cases = {sub: _cases(folder / sub) for sub in ("imagesTr", "labelsTr", "imagesTs")}
    problems += [f"the folder {sub} is missing" for sub, found in cases.items() if found is None]
    images, labels, test = (found or [] for found in cases.values())
    if cases["imagesTr"] is not None and cases["labelsTr"] is not None:
        problems += _case_problems(images, labels, described)
    if problems or not name:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"{folder} is not a Decathlon task:{listed}{_hint(folder)}")
    return TaskFolder(
        path=folder,
        task_id=int(name[1]),
        name=name[2],
        labels={int(value): str(label) for value, label in described["labels"].items()},
        training=tuple(images),
        test=tuple(test),
        has_test_labels=bool(test) and set(test) <= set(_cases(folder / "labelsTs") or ()),
    )


def _read_description(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The contents of dataset.json and what is wrong with it."""
    if not path.is_file():
        return {}, ["dataset.json is missing"]
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return {}, [f"dataset.json is not valid JSON ({error})"]
    if not isinstance(described, dict):
        return {}, ["dataset.json is not an object"]
    needed = ("modality", "labels", "numTraining", "training", "test")
    problems = [f'dataset.json has no "{key}"' for key in needed if key not in described]
    labels = described.get("labels", {"0": "background"})
    if not isinstance(labels, dict) or labels.get("0") != "background":
        problems.append('"labels" in dataset.json must be like {"0": "background", "1": "liver"}')
    elif not all(str(key).isdigit() for key in labels):
        problems.append('the keys of "labels" in dataset.json must be numbers')
    return described, problems


def _cases(folder: Path) -> list[str] | None:
    """Names of the cases in a folder, by the same rule as nnU-Net's converter."""
    if not folder.is_dir():
        return None
    files = (path.name for path in folder.glob("*.nii.gz"))
    return sorted(name[: -len(".nii.gz")] for name in files if not name.startswith((".", "_")))


def _case_problems(images: list[str], labels: list[str], described: dict[str, Any]) -> list[str]:
    problems = []
    for names, others, kind in ((images, labels, "labelsTr"), (labels, images, "imagesTr")):
        lacking = [name for name in names if name not in set(others)]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            problems.append(f"{kind} lacks {', '.join(lacking[:3])}{more}")
    if len(images) < MINIMUM_CASES:
        problems.append(
            f"imagesTr holds {len(images)} images (.nii.gz), nnU-Net's five folds need at least "
            f"{MINIMUM_CASES}"
        )
    stated = described.get("numTraining", len(images))
    if stated != len(images):
        problems.append(
            f'"numTraining" in dataset.json is {stated}, but imagesTr holds {len(images)} images'
        )
    return problems


def _hint(folder: Path) -> str:
    inner = sorted(path.parent for path in folder.glob("Task*/dataset.json"))
    if inner:
        return f"\nPerhaps you mean {inner[0]}?"
    with contextlib.suppress(OSError, ValueError):
        if "channel_names" in json.loads((folder / "dataset.json").read_text(encoding="utf-8")):
            return "\nThis is nnU-Net's own raw format: train on it with nnU-Net's commands."
    return ""
