"""Corrupted training labels, to measure how a method stands wrong ones."""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.images import copy_image, read_image
from nnunet_ext.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class LabelNoise:
    """What is wrong with the labels: one of them is missing, or they are another observer's."""

    drop_label: Annotated[int | None, Field(ge=1)] = None  # becomes background in some cases
    drop_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # of all cases
    labels_folder: Annotated[str | None, Field(min_length=1)] = None  # of the raw data set
    seed: Annotated[int, Field(ge=0)] = 0  # decides which cases lose the label

    def __post_init__(self) -> None:
        if (self.drop_label is None) == (self.labels_folder is None):
            raise ValueError('either "drop_label" or "labels_folder" must be given')
        if self.drop_label is None and self.drop_share:
            raise ValueError('"drop_share" needs a "drop_label"')


def corrupt(
    labels: Mapping[str, Path], target: Path, noise: LabelNoise, raw_dataset: Path
) -> list[str]:
    """Write the label files that training is to see.

    Args:
        labels: Case -> its clean label file.
        target: Folder for one file per case, named like the clean one.
        noise: What goes wrong.
        raw_dataset: nnU-Net's raw data set, in which ``noise.labels_folder`` lies.

    Returns:
        Sorted names of the cases whose labels differ from the clean ones.

    Raises:
        UserError: If no case has the label to drop, if the folder of other labels is missing
            or has none of the cases, or if other labels do not fit their image.
    """
    if any(target.resolve() == file.parent.resolve() for file in labels.values()):
        raise UserError(f"{target} holds the clean labels; choose another folder.")
    target.mkdir(parents=True, exist_ok=True)
    if noise.drop_label is not None:
        changed = _drop(labels, target, noise.drop_label, noise)
    else:
        changed = _exchange(labels, target, raw_dataset / str(noise.labels_folder))
    for case in labels.keys() - changed:
        copy_image(labels[case], target / labels[case].name)
    return sorted(changed)


def _drop(labels: Mapping[str, Path], target: Path, label: int, noise: LabelNoise) -> set[str]:
    """Make a label background; the cases of a smaller share are among those of a larger."""
    if not any((read_image(file).voxels == label).any() for file in labels.values()):
        raise UserError(
            f"drop_label is {label}, but none of the {len(labels)} training cases has this label. "
            'Name one that stands in "labels" of dataset.json.'
        )
    in_order = sorted(labels)
    Random(noise.seed).shuffle(in_order)
    changed = set()
    for case in in_order[: round(noise.drop_share * len(in_order))]:
        image = read_image(labels[case])
        dropped = image.voxels == label
        if dropped.any():
            without = image.voxels.copy()
            without[dropped] = 0
            image.save(without, target / labels[case].name)
            changed.add(case)
    return changed


def _exchange(labels: Mapping[str, Path], target: Path, folder: Path) -> set[str]:
    if not folder.is_dir():
        there = [path.name for path in sorted(folder.parent.glob("labels*")) if path.is_dir()]
        raise UserError(
            f"There is no folder {folder}, which labels_folder names."
            f"{did_you_mean(folder.name, there)} There are: {', '.join(there) or 'none'}."
        )
    clean = {case: file for case, file in labels.items() if (folder / file.name).is_file()}
    if not clean:
        raise UserError(
            f"{folder} has labels of none of the {len(labels)} training cases. Its files must be "
            f"named like the clean ones, such as {next(iter(labels.values())).name}."
        )
    changed = set()
    for case, file in clean.items():
        other = folder / file.name
        first, second = read_image(file).voxels, read_image(other).voxels
        if first.shape != second.shape:
            raise UserError(
                f"{other} does not fit its image: its shape is {second.shape[1:]}, that of the "
                f"clean labels {first.shape[1:]}. Resample it or remove it."
            )
        if (first != second).any():
            copy_image(other, target / file.name)
            changed.add(case)
    return changed
