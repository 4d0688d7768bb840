"""Packages of others, as an installation leaves them: modules, and metadata with entry points."""

import textwrap
from collections.abc import Mapping
from pathlib import Path


def write_package(folder: Path, name: str, code: str, **points: Mapping[str, str]) -> None:
    """Write a module and the metadata of its installation.

    Args:
        folder: What will be on Python's path.
        name: Of package and module.
        code: Of the module.
        points: Group without ``nnunet_ext.`` (trainers, planners) -> name -> class in the module.
    """
    (folder / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for kind, classes in points.items():
        lines.append(f"[nnunet_ext.{kind}]")
        lines += [f"{each} = {name}:{cls}" for each, cls in classes.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
