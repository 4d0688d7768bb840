"""Tasks of the Medical Segmentation Decathlon: which there are, fetching, converting."""

import hashlib
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tqdm import tqdm

from nnunet_ext._common.console import say
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet import commands
from nnunet_ext.nnunet.datasets import RAW, nnunet_folder

if TYPE_CHECKING:
    from requests import RequestException, Response

LICENCE = "CC BY-SA 4.0"
REFERENCE = "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022"
HOMEPAGE = "http://medicaldecathlon.com"

BASE_URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
"""Where the archives are; MONAI's mirror, whose checksums these are."""

BASE_URL_VARIABLE = "NNUNET_EXT_DECATHLON_URL"
"""Environment variable that names another mirror."""

CHUNK = 1 << 16
"""Bytes; what an interruption can lose at most."""
TIMEOUT = (10, 60)
"""Seconds to wait for a connection and for the next bytes."""

NAME = re.compile(r"Task(\d{1,3})_([^_]+)")
"""Name of a task's folder."""


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
    """The Decathlon task of this name."""
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


def fetch_task(name: str, folder: Path) -> Path:
    """Download, verify and unpack a Decathlon task into ``folder`` unless it is there already.

    An interrupted download goes on where it stopped. The task folder, which is returned,
    appears only when it is complete. An archive that the user put into ``folder`` is used and
    kept, a downloaded one is removed after unpacking.

    Raises:
        UserError: If the task does not exist, the server cannot be reached, what came has
            the wrong checksum, or the folder cannot be written to.
    """
    task, target, archive = find_task(name), folder / name, folder / f"{name}.tar"
    if target.is_dir():
        return target
    put_by_hand = archive.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if put_by_hand:
            source, cure = str(archive), f"Remove {archive} and run again to download it."
        else:  # it keeps the name of a partial one until it is unpacked
            source, archive = _download(archive)
            cure = "It has been removed; run again, or name another mirror."
        say("  verifying and unpacking")
        digest = _md5(archive)
        if digest != task.md5:
            if not put_by_hand:
                archive.unlink()
            raise UserError(
                f"What came from {source} is not the archive of {name}: its MD5 is {digest}, it "
                f"should be {task.md5}. {cure}"
            )
        unpack(archive, target)
        if not put_by_hand:
            archive.unlink()
    except OSError as error:
        raise UserError(
            f"Cannot fetch into {folder}: {error}. What has been downloaded is kept: run again to "
            "go on, after making room if the disk is full."
        ) from error
    return target


def _md5(archive: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(archive: Path) -> tuple[str, Path]:
    """Download what is missing of an archive; return its address and the partial file."""
    import requests

    url = f"{(os.environ.get(BASE_URL_VARIABLE) or BASE_URL).rstrip('/')}/{archive.name}"
    partial = archive.with_name(f"{archive.name}.part")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            # after what we have there may be nothing; the checksum will tell if it is right
            if not have or response.status_code != 416:
                _append(response, partial, have)
    except requests.exceptions.RequestException as error:
        have = partial.stat().st_size if partial.exists() else 0
        so_far = f" {have} bytes are here already." if have else ""
        raise UserError(
            f"Cannot download {url}: {_reason(error)}.{so_far} Run again to go on, name a mirror "
            f"in {BASE_URL_VARIABLE}, or get the file in another way and put it at {archive}."
        ) from error
    return url, partial


def _append(response: "Response", partial: Path, have: int) -> None:
    response.raise_for_status()
    done = have if response.status_code == 206 else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, leave=False, disable=None)
    with bar, partial.open("ab" if done else "wb") as file:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _reason(error: "RequestException") -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    name = type(error).__name__
    if name == "ChunkedEncodingError":
        return "the connection broke off"
    unreachable = "the server cannot be reached (is this machine online?)"
    return "the server does not answer in time" if "Timeout" in name else unreachable


def unpack(archive: Path, target: Path) -> None:
    """Unpack a task's archive, whose checksum is right, to ``target``, all of it or nothing.

    The resource files of macOS (``._name``), which the Decathlon's archives hold, are left out.
    """
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial:
        try:
            with tarfile.open(archive) as tar:
                wanted = (each for each in tar if not Path(each.name).name.startswith("."))
                tar.extractall(partial, wanted, **safe)  # type: ignore[arg-type]
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{archive} cannot be unpacked: {error}.") from error
        if not Path(partial, target.name).is_dir():
            raise UserError(f"{archive} does not hold a folder {target.name}.")
        os.replace(Path(partial, target.name), target)


def dataset_name(task: str) -> str:
    """What nnU-Net calls the data set of a task: ``Dataset004_Hippocampus``."""
    return NAME.sub(lambda match: f"Dataset{int(match[1]):03d}_{match[2]}", task)


def convert(folder: Path) -> str:
    """Have nnU-Net convert a task into ``nnUNet_raw`` unless it is there; return its new name.

    The data set appears only when it is complete. Labels of test cases, which a task of the
    Decathlon's own lacks, come along.
    """
    raw, name = nnunet_folder(RAW), dataset_name(folder.name)
    if not (raw / name).is_dir():
        with TemporaryDirectory(dir=raw, prefix=f".{name}.") as partial:
            command = ["nnUNetv2_convert_MSD_dataset", "-i", str(folder)]
            command += ["-np", str(commands.workers())]
            commands.run_command(command, raw / f"{name}_conversion.log", {RAW: partial})
            if (folder / "labelsTs").is_dir():
                hidden = shutil.ignore_patterns(".*")
                shutil.copytree(folder / "labelsTs", Path(partial, name, "labelsTs"), ignore=hidden)
            os.replace(Path(partial, name), raw / name)
    return name
