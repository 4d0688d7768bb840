"""The checks of ``nnunet-ext doctor``; each yields findings and none of them raises."""

import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import nnunet_ext
from nnunet_ext import registry
from nnunet_ext.nnunet import discovery, lookup

SHOWN_PACKAGES = (
    *("torch", "nnunetv2", "dynamic_network_architectures", "batchgenerators"),
    *("batchgeneratorsv2", "acvl_utils", "numpy"),
)
"""Packages whose versions a report of a problem should name."""

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


# -------------------------------------------------------------------------------------- versions


def check_versions() -> Iterator[Finding]:
    """Report the versions of what matters, and what our requirements refuse."""
    yield _own_version()
    unmet = _unmet_requirements()
    for package in SHOWN_PACKAGES:
        version = _version(package)
        if package not in unmet and version is not None:
            yield _ok(package, version)
        elif package not in unmet:
            yield _problem(package, "not installed", "pip install nnunetv2")
    for package, requirement in unmet.items():
        found = _version(package) or "not installed"
        cure = f'pip install "{requirement}"'
        yield _problem(package, f"{found}, but nnunet_ext needs {requirement}", cure)


def _own_version() -> Finding:
    version, installed = nnunet_ext.__version__, _version("nnunet_ext")
    if installed is None:
        detail = f"{version}, not installed, imported from {_package_folder()}"
        return _warning("nnunet_ext", detail, f"pip install {_package_folder().parent}")
    if installed != version:
        detail = f"{version}, but pip knows it as {installed}: one of them is stale"
        return _warning("nnunet_ext", detail, REINSTALL)
    return _ok("nnunet_ext", f"{version} in {_package_folder()}")


def _unmet_requirements() -> dict[str, str]:
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("nnunet_ext") or []
    except metadata.PackageNotFoundError:
        return {}
    unmet = {}
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet[requirement.name] = f"{requirement.name}{requirement.specifier}"
    return unmet


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package_folder() -> Path:
    return Path(nnunet_ext.__file__).resolve().parent


# --------------------------------------------------------------------------------------- folders


def check_folders(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check the folders that nnU-Net is told by environment variables."""
    for variable, what in (
        ("nnUNet_raw", "raw data sets"),
        ("nnUNet_preprocessed", "plans and preprocessed data, on a fast disk"),
        ("nnUNet_results", "trained models"),
    ):
        yield _check_folder(variable, environment.get(variable), what)
    variable = lookup.USER_FOLDERS
    for folder in filter(str.strip, environment.get(variable, "").split(os.pathsep)):
        if Path(folder).is_dir():
            yield _ok(variable, f"{folder}; trainers in it win over ours of the same name")
        else:
            detail = f"{folder} does not exist and is skipped by nnU-Net"
            yield _warning(variable, detail, f"correct or unset {variable}")


def _check_folder(variable: str, folder: str | None, what: str) -> Finding:
    if not folder:
        setting = f"setx {variable} FOLDER" if os.name == "nt" else f"export {variable}=FOLDER"
        return _problem(variable, "not set", f"{setting}, the folder for {what}")
    path = Path(folder)
    make = f"mkdir -p {folder}, or correct {variable}"
    if not path.exists():
        if variable == "nnUNet_raw":
            return _problem(variable, f"{folder} does not exist", make)
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            return _problem(variable, f"{folder} neither exists nor can be made", make)
        return _warning(variable, f"{folder} does not exist; nnU-Net will make it", make)
    if not path.is_dir():
        return _problem(variable, f"{folder} is not a folder", f"correct {variable}")
    if not os.access(path, os.W_OK | os.X_OK) and variable != "nnUNet_raw":
        return _problem(variable, f"{folder} is not writable", f"chmod u+w, or correct {variable}")
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
        yield _no_accelerator(devices)
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    yield _ok("cpu", f"{usable} of {cores} cores for this process")
    yield _check_compiler(environment, bool(devices["gpus"]))


def _no_accelerator(devices: Mapping[str, Any]) -> Finding:
    cpu_only = "choose -device cpu; training will be slow"
    if shutil.which("nvidia-smi") is None:
        return _warning("cuda", "no GPU", cpu_only)
    if devices["cuda"] is None:
        return _problem(
            "cuda",
            f"there is an NVIDIA driver, but torch {devices['torch']} is built without CUDA",
            "install torch with CUDA (pytorch.org), or choose -device cpu",
        )
    return _warning(
        "cuda",
        f"there is an NVIDIA driver, but torch (CUDA {devices['cuda']}) cannot use a GPU",
        f"see nvidia-smi and CUDA_VISIBLE_DEVICES; otherwise {cpu_only}",
    )


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
    yield _ok("workers", f"data loaders by {facts['start_method']}, all others by spawn")
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
            cure = REINSTALL if is_ours else f"mend or uninstall {package}; nothing else suffers"
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
    return _problem("discovery", f"nnU-Net's commands do not know our trainers: {detail}", cure)


def _is_in_any(path: str, folders: list[str]) -> bool:
    resolved = Path(path).resolve()
    return any(resolved.is_relative_to(Path(folder).resolve()) for folder in folders)
