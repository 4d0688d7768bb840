"""Corrupted training labels, to measure how a method stands wrong ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.images import copy_image, read_image
from nnunet_ext.settings import STRICT

BACKGROUND = 0


@dataclass(frozen=True, config=STRICT)
class LabelNoise:
    """What is wrong with the labels: one of them is missing, or they are another observer's."""

    drop_label: Annotated[
        int | None, Field(ge=1, description="label that becomes background in some cases")
    ] = None
    drop_share: Annotated[
        float, Field(ge=0, le=1, description="share of all cases in which it does")
    ] = 0.0
    labels_folder: Annotated[
        str | None,
        Field(
            min_length=1,
            description="folder of the raw data set with other labels of all or some cases",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, description="decides which cases lose the label")] = 0

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
        changed = _drop(labels, target, noise.drop_label, _chosen(labels, noise))
    else:
        changed = _exchange(labels, target, raw_dataset / str(noise.labels_folder))
    for case in labels.keys() - changed:
        copy_image(labels[case], target / labels[case].name)
    return sorted(changed)


def _chosen(cases: Iterable[str], noise: LabelNoise) -> set[str]:
    """The cases that lose a label; those of a smaller share are among those of a larger."""
    in_order = sorted(cases)
    Random(noise.seed).shuffle(in_order)
    return set(in_order[: round(noise.drop_share * len(in_order))])


def _drop(labels: Mapping[str, Path], target: Path, label: int, chosen: set[str]) -> set[str]:
    if not any((read_image(file).voxels == label).any() for file in labels.values()):
        raise UserError(
            f"drop_label is {label}, but none of the {len(labels)} training cases has this label. "
            'Name one that stands in "labels" of dataset.json.'
        )
    changed = set()
    for case in chosen:
        image = read_image(labels[case])
        if (image.voxels == label).any():
            without = image.voxels.copy()
            without[without == label] = BACKGROUND
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
    others = {case: folder / file.name for case, file in labels.items()}
    others = {case: other for case, other in others.items() if other.is_file()}
    if not others:
        raise UserError(
            f"{folder} has labels of none of the {len(labels)} training cases. Its files must be "
            f"named like the clean ones, such as {next(iter(labels.values())).name}."
        )
    changed = {case for case, other in others.items() if _differ(labels[case], other)}
    for case in changed:
        copy_image(others[case], target / labels[case].name)
    return changed


def _differ(clean: Path, other: Path) -> bool:
    import numpy as np

    first, second = read_image(clean).voxels, read_image(other).voxels
    if first.shape != second.shape:
        raise UserError(
            f"{other} does not fit its image: its shape is {second.shape[1:]}, that of the clean "
            f"labels {first.shape[1:]}. Resample it or remove it."
        )
    return not np.array_equal(first, second)
