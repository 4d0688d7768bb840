"""The checks of ``nnunet-ext doctor``; each yields findings and none of them raises."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

import nnunet_ext
from nnunet_ext import registry
from nnunet_ext.nnunet import discovery, lookup
from nnunet_ext.nnunet.datasets import PREPROCESSED, RAW, RESULTS

SHOWN_PACKAGES = (
    *("torch", "nnunetv2", "dynamic_network_architectures", "batchgenerators"),
    *("batchgeneratorsv2", "acvl_utils", "numpy"),
)
"""Packages whose versions a report of a problem should name."""

FOLDERS = {
    RAW: "raw data sets",
    PREPROCESSED: "plans and preprocessed data, on a fast disk",
    RESULTS: "trained models",
}
"""nnU-Net's, and what they are for."""

REINSTALL = "pip install --force-reinstall --no-deps FOLDER, the folder of nnunet_ext's sources"


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``cure`` says what to do about a warning or problem."""

    level: Literal["ok", "warning", "PROBLEM"]
    subject: str
    detail: str
    cure: str = ""


_ok = partial(Finding, "ok")
_warning = partial(Finding, "warning")
_problem = partial(Finding, "PROBLEM")


# ----------------------------------------------------------------------------------- surroundings


def check_versions() -> Iterator[Finding]:
    """Report the versions that a report of a problem should name."""
    yield _ok("python", f"{sys.version.split()[0]} at {sys.executable}")
    yield _ok("nnunet_ext", f"{nnunet_ext.__version__} in {_package_folder()}")
    needed = {each.name: each.specifier for each in map(Requirement, _requirements())}
    for package in SHOWN_PACKAGES:
        specifier = needed.get(package)
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield _problem(package, "not installed", "pip install nnunetv2")
            continue
        if specifier and not specifier.contains(version, prereleases=True):
            detail = f"{version}, but nnunet_ext needs {package}{specifier}"
            yield _problem(package, detail, f'pip install "{package}{specifier}"')
        else:
            yield _ok(package, version)


def _requirements() -> list[str]:
    try:
        return metadata.requires("nnunet_ext") or []
    except metadata.PackageNotFoundError:  # neither installed nor stale: `run` or a checkout
        return []


def _package_folder() -> Path:
    return Path(nnunet_ext.__file__).resolve().parent


def check_folders(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check the folders that nnU-Net is told by environment variables."""
    for variable, what in FOLDERS.items():
        yield _check_folder(variable, environment.get(variable, ""), what)
    variable = lookup.USER_FOLDERS
    for folder in filter(str.strip, environment.get(variable, "").split(os.pathsep)):
        if Path(folder).is_dir():
            yield _ok(variable, f"{folder}; its trainers win over nnunet_ext's of the same name")
        else:
            detail = f"{folder} does not exist and is skipped by nnU-Net"
            yield _warning(variable, detail, f"correct or unset {variable}")


def _check_folder(variable: str, folder: str, what: str) -> Finding:
    is_read = variable == RAW
    if not folder:
        setting = f"setx {variable} FOLDER" if os.name == "nt" else f"export {variable}=FOLDER"
        return _problem(variable, "not set", f"{setting}, the folder for {what}")
    path = Path(folder)
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or (there != path and is_read):
        return _problem(variable, f"{folder} is not a folder", f"correct {variable}")
    if not is_read and not os.access(there, os.W_OK | os.X_OK):
        return _problem(variable, f"{there} is not writable", f"chmod u+w, or correct {variable}")
    if there != path:
        return _warning(variable, f"{folder} does not exist; nnU-Net will make it")
    return _ok(variable, folder)


# ------------------------------------------------------- what a fresh interpreter found: see probe


def check_devices(facts: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Report what training can run on."""
    if "error" in facts:
        return  # which check_discovery reports
    devices: Mapping[str, Any] = facts["devices"]
    if "error" in devices:
        cure = "reinstall it: pytorch.org"
        yield _problem("torch", f"cannot be imported: {devices['error']}", cure)
        return
    for index, gpu in enumerate(devices["gpus"]):
        yield _ok(f"cuda:{index}", gpu)
    if devices["mps"]:
        yield _ok("mps", "available; choose it with -device mps")
    if not devices["gpus"] and not devices["mps"]:
        detail = f"torch {devices['torch']} (CUDA: {devices['cuda']}) finds no GPU"
        if shutil.which("nvidia-smi"):
            detail += (
                ", although there is a driver: check nvidia-smi, CUDA_VISIBLE_DEVICES, pytorch.org"
            )
        yield _warning("cuda", detail, "choose -device cpu; training will be slow")
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    yield _ok("cpu", f"{usable} of {cores} cores for this process")
    yield _check_compiler(environment, bool(devices["gpus"]))


def _check_compiler(environment: Mapping[str, str], cuda: bool) -> Finding:
    """Check what torch.compile needs; nnU-Net compiles networks on CUDA unless told not to."""
    wanted = environment.get("nnUNet_compile", "true").lower() in ("true", "1", "t")
    if not cuda or not wanted or os.name == "nt":
        return _ok("torch.compile", "not used by nnU-Net here")
    switch_off = "or switch compilation off: export nnUNet_compile=false"
    chosen = environment.get("CC", "").split()[:1]  # options may follow
    compiler = next(filter(None, map(shutil.which, chosen or ("gcc", "clang", "cc"))), None)
    if compiler is None:
        cure = f"install gcc, set CC, {switch_off}"
        return _problem("torch.compile", "there is no C compiler (gcc, clang, CC)", cure)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        cure = f"install Python's headers (python3-dev), {switch_off}"
        return _problem("torch.compile", f"there is no {header}", cure)
    return _ok("torch.compile", f"C compiler {compiler}")


def check_discovery(facts: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Report whether nnU-Net's commands find our classes and other packages', and if not why."""
    if "error" in facts:
        yield _problem("discovery", facts["error"], "try: python -c 'import nnunetv2, nnunet_ext'")
        return
    yield _ok("workers", f"data loaders start by {facts['start_method']}, all others by spawn")
    if not facts["active"]:
        yield _why_inactive(facts, environment)
        return
    yield _ok("discovery", facts["status"])
    if Path(facts["package"]).resolve() != _package_folder():
        detail = f"nnU-Net's commands use {facts['package']}, this command {_package_folder()}"
        yield _warning("discovery", detail, f"uninstall one of them, or: {REINSTALL}")
    others = registry.others("trainers") | registry.others("planners")
    for name, answer in facts["classes"].items():
        is_ours = any(name in ours for ours in registry.OURS.values())
        package = "nnunet_ext" if is_ours else others[name].module.partition(".")[0]
        if "error" in answer:
            cure = (
                REINSTALL if is_ours else f"repair or uninstall {package}; nothing else is affected"
            )
            yield _problem(name, answer["error"], cure)
        elif answer["module"].partition(".")[0] == package:
            yield _ok(name, answer["module"])
        else:
            detail = f"another class of this name wins: {answer['module']} in {answer['file']}"
            yield _warning(name, detail, "fine if you meant it; else rename that class")


def _why_inactive(facts: Mapping[str, Any], environment: Mapping[str, str]) -> Finding:
    use_run = "nnunet-ext run COMMAND ..."
    files, package = facts["start_up_files"], facts["package"]
    if environment.get(discovery.SWITCH) == "0":
        detail = f"switched off by {discovery.SWITCH}=0"
        cure = f"unset {discovery.SWITCH}, or use {use_run}"
    elif package is None and files:
        detail = f"stale installation: {files[0]} is there, the package is not ({facts['status']})"
        cure = REINSTALL
    elif package is None:
        detail = f"not installed for this Python; this command runs from {_package_folder()}"
        cure = f"pip install {_package_folder().parent}"
    elif not files and _is_in_any(package, facts["site_folders"]):
        detail = f"the start-up file nnunet_ext.pth is missing beside {package}"
        cure = REINSTALL
    elif not files:
        detail = (
            f"{package} is on PYTHONPATH only (pip install --target?); Python reads start-up "
            f"files in {' and '.join(facts['site_folders'])}"
        )
        cure = f"use {use_run}, or install without --target"
    else:
        detail, cure = facts["status"], REINSTALL
    return _problem(
        "discovery", f"nnU-Net's commands do not find nnunet_ext's trainers: {detail}", cure
    )


def _is_in_any(path: str, folders: list[str]) -> bool:
    resolved = Path(path).resolve()
    return any(resolved.is_relative_to(Path(folder).resolve()) for folder in folders)
