"""A plans file in ``nnUNet_preprocessed``: finding, reading and rewriting it safely."""

import json
import shutil
from pathlib import Path
from typing import Any

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object, replacing
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.datasets import PREPROCESSED, find_dataset, nnunet_folder

Configuration = dict[str, Any]

LEAST_STAGES = 3
"""Of a network with deep supervision: nnU-Net gives the last output no weight at all."""


class PlansFile:
    """The plans of a preprocessed data set.

    Attributes:
        path: The file, links resolved.
        name: Name of the plans, as behind ``-p``.
        content: What the file holds; changes are kept by :meth:`save`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # saving replaces the file, not a link to it
        self.name = path.stem
        self.content = read_object(path)
        if not isinstance(self.content.get("configurations"), dict):
            raise UserError(f'{path} is not a plans file: it has no "configurations".')

    @property
    def configurations(self) -> dict[str, Configuration]:
        """The configurations as they stand in the file, inheritance not resolved."""
        configurations: dict[str, Configuration] = self.content["configurations"]
        return configurations

    def inheritance(self, name: str) -> list[str]:
        """Return ``name`` and the configurations it inherits from, nearest first.

        Raises:
            UserError: If one of them does not exist, or the inheritance runs in a circle.
        """
        chain: list[str] = []
        parent: str | None = name
        while parent is not None:
            if parent in chain:
                raise UserError(
                    f"{self.path}: configurations inherit from each other in a circle, "
                    f"{' -> '.join([*chain, parent])}. Correct an inherits_from there."
                )
            self._require(parent, heir=chain[-1] if chain else None)
            chain.append(parent)
            parent = self.configurations[parent].get("inherits_from")
        return chain

    def resolve(self, name: str) -> Configuration:
        """Return a configuration as nnU-Net sees it: each key from the nearest ancestor."""
        resolved: Configuration = {}
        for ancestor in reversed(self.inheritance(name)):
            resolved |= self.configurations[ancestor]
        return resolved

    def save(self) -> None:
        """Write the file in one step, so that no reader ever sees half of it."""
        try:
            with replacing(self.path) as partial:
                partial.write_text(json.dumps(self.content, indent=4), encoding="utf-8")
                shutil.copymode(self.path, partial)
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}.") from None

    def _require(self, name: str, heir: str | None) -> None:
        if name not in self.configurations:
            of_heir = f', from which "{heir}" inherits' if heir else ""
            raise UserError(
                f'{self.path} has no configuration "{name}"{of_heir}.'
                f"{did_you_mean(name, self.configurations)} "
                f"There are: {', '.join(self.configurations)}."
            )


def open_plans(dataset: str, plans: str) -> PlansFile:
    """Open the plans ``plans`` of the data set with this number or name.

    Raises:
        UserError: If nnUNet_preprocessed, the data set or the plans file is missing, or the
            file is not a plans file. The message says what there is instead.
    """
    folder = nnunet_folder(PREPROCESSED) / find_dataset(dataset, PREPROCESSED)
    plans = plans.removesuffix(".json")
    path = folder / f"{plans}.json"
    if path.parent != folder or not path.is_file():
        existing = _plans_in(folder)
        there_are = f"There are: {', '.join(existing)}." if existing else "There are none."
        raise UserError(
            f'{folder} has no plans "{plans}".{did_you_mean(plans, existing)} {there_are} '
            "nnUNetv2_plan_and_preprocess makes plans; -p chooses among them."
        )
    return PlansFile(path)


def _plans_in(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_object(path)
        except UserError:
            continue
        if "configurations" in content:
            names.append(path.stem)
    return names
