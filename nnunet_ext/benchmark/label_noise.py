"""Corrupted training labels, to measure how a method stands wrong ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, Field
from pydantic.dataclasses import dataclass

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.images import copy_image, read_image
from nnunet_ext.settings import STRICT

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("drop_label", "extra_label", "swap_labels", "dilate_label", "labels_folder")
DILATION = 2
"""Voxels by which a label grows: seen at a glance in small images, and no other structure yet."""

Label = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class LabelNoise:
    """What is wrong with the labels of a share of the cases: exactly one of these kinds."""

    drop_label: Label | None = None  # becomes background
    extra_label: Label | None = None  # stands once more half an image away, on background
    swap_labels: tuple[Label, Label] | None = None  # each is called the other
    dilate_label: Label | None = None  # grows into background by DILATION voxels
    labels_folder: Annotated[str | None, Field(min_length=1)] = None  # another observer's, raw
    share: Annotated[
        float, Field(ge=0, le=1, validation_alias=AliasChoices("share", "drop_share"))
    ] = 1.0  # of all cases
    seed: Annotated[int, Field(ge=0)] = 0  # decides which cases

    def __post_init__(self) -> None:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"exactly one of {', '.join(KINDS)} must be given")
        if self.swap_labels is not None and len(set(self.swap_labels)) < 2:
            raise ValueError('"swap_labels" must be two different labels')

    @property
    def kind(self) -> str:
        """Which of :data:`KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def corrupt(
    labels: Mapping[str, Path], target: Path, noise: LabelNoise, raw_dataset: Path
) -> list[str]:
    """Write the label files that training is to see.

    Args:
        labels: Case -> its clean label file.
        target: Folder for one file per case, named like the clean one.
        noise: What goes wrong; the cases of a smaller share are among those of a larger.
        raw_dataset: nnU-Net's raw data set, in which ``noise.labels_folder`` lies.

    Returns:
        Sorted names of the cases whose labels differ from the clean ones.

    Raises:
        UserError: If no case has the label in question, if the folder of other labels is missing
            or has none of the cases, or if other labels do not fit their image or have values
            that dataset.json does not name.
    """
    if any(target.resolve() == file.parent.resolve() for file in labels.values()):
        raise UserError(f"{target} holds the clean labels; choose another folder.")
    target.mkdir(parents=True, exist_ok=True)
    in_order = sorted(labels)
    Random(noise.seed).shuffle(in_order)
    chosen = in_order[: round(noise.share * len(in_order))]
    if noise.labels_folder is not None:
        changed = _exchange(labels, chosen, target, raw_dataset, noise.labels_folder)
    else:
        changed = _spoil(labels, chosen, target, noise)
    for case in labels.keys() - changed:
        copy_image(labels[case], target / labels[case].name)
    return sorted(changed)


def _spoil(
    labels: Mapping[str, Path], chosen: Sequence[str], target: Path, noise: LabelNoise
) -> set[str]:
    wanted = getattr(noise, noise.kind)
    for label in wanted if isinstance(wanted, tuple) else (wanted,):
        if not any((read_image(file).voxels == label).any() for file in labels.values()):
            raise UserError(
                f"{noise.kind} is {label}, but none of the {len(labels)} training cases has this "
                'label. Name one that stands in "labels" of dataset.json.'
            )
    changed = set()
    for case in chosen:
        image = read_image(labels[case])
        spoilt = _spoilt(image.voxels, noise)
        if (spoilt != image.voxels).any():
            image.save(spoilt, target / labels[case].name)
            changed.add(case)
    return changed


def _spoilt(voxels: "NDArray[Any]", noise: LabelNoise) -> "NDArray[Any]":
    """Make a copy of labels (1, *S) in which everything of that kind is wrong."""
    import numpy as np
    from scipy.ndimage import binary_dilation

    result = voxels.copy()
    if noise.swap_labels is not None:
        first, second = noise.swap_labels
        result[voxels == first], result[voxels == second] = second, first
        return result
    label = getattr(noise, noise.kind)
    there, free = voxels == label, voxels == 0
    if noise.kind == "drop_label":
        result[there] = 0
    elif noise.kind == "extra_label":
        half = [size // 2 for size in voxels.shape]
        result[np.roll(there, half, tuple(range(voxels.ndim))) & free] = label
    else:
        result[binary_dilation(there, iterations=DILATION) & free] = label
    return result


def _exchange(
    labels: Mapping[str, Path], chosen: Sequence[str], target: Path, raw_dataset: Path, name: str
) -> set[str]:
    folder = raw_dataset / name
    if not folder.is_dir():
        there = [path.name for path in sorted(folder.parent.glob("labels*")) if path.is_dir()]
        raise UserError(
            f"There is no folder {folder}, which labels_folder names."
            f"{did_you_mean(folder.name, there)} There are: {', '.join(there) or 'none'}."
        )
    if not any((folder / file.name).is_file() for file in labels.values()):
        raise UserError(
            f"{folder} has labels of none of the {len(labels)} training cases. Its files must be "
            f"named like the clean ones, such as {next(iter(labels.values())).name}."
        )
    changed = set()
    for case in chosen:
        other = folder / labels[case].name
        if other.is_file() and _differs(other, labels[case], raw_dataset / "dataset.json"):
            copy_image(other, target / other.name)
            changed.add(case)
    return changed


def _differs(other: Path, clean: Path, dataset_json: Path) -> bool:
    """Whether other labels are not the clean ones; refuses what training would stumble over."""
    import numpy as np

    first, second = read_image(clean).voxels, read_image(other).voxels
    if first.shape != second.shape:
        raise UserError(
            f"{other} does not fit its image: its shape is {second.shape[1:]}, that of the "
            f"clean labels {first.shape[1:]}. Resample it or remove it."
        )
    named = np.hstack([np.ravel(value) for value in read_json(dataset_json)["labels"].values()])
    if unknown := sorted(set(np.unique(second)) - set(named)):
        raise UserError(
            f"{other} has the value {unknown[0]}, but the labels that {dataset_json} names are "
            f"{', '.join(map(str, sorted(set(named))))}. Give its voxels one of these."
        )
    return bool((first != second).any())
