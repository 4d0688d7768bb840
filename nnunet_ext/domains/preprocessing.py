"""Images without labels, preprocessed as nnU-Net preprocesses those that it trains on."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import (
    clear_partial,
    fingerprint,
    one_at_a_time,
    read_object,
    replacing,
    write_json,
    writing,
)
from nnunet_ext._common.processes import for_each
from nnunet_ext.domains.unlabelled import FOLDER, unlabelled_cases
from nnunet_ext.nnunet.datasets import PREPROCESSED, RAW, nnunet_folder

SUFFIX = "_unlabelled"
"""What the folder's name adds to that of the preprocessed configuration beside it."""

CASES = "cases"
"""Folder in it with the cases alone: nnU-Net tells a format by all files that lie together."""
RECORD = "made_from.json"

_PLANS_KEYS = (
    "image_reader_writer",
    "transpose_forward",
    "foreground_intensity_properties_per_channel",
)
_CONFIGURATION_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


def preprocessed_unlabelled(
    plans_manager: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    log: Callable[[str], object] = print,
    processes: int = default_num_processes,
) -> Path:
    """Preprocess the images in ``imagesUn``, unless that has been done.

    They are preprocessed anew when they or the plans have changed. Of several processes that ask
    at the same time, as trainings of several folds do, one works and the others wait.

    Args:
        plans_manager: The plans, whose data set is meant.
        configuration: A configuration of the plans.
        dataset_json: Of the data set.
        log: Gets a line where there is something to do or to wait for.
        processes: That work at a time; the default is nnU-Net's ``nnUNet_def_n_proc``.

    Returns:
        Folder that nnU-Net's data set classes can read. In place of labels it holds what nnU-Net
        makes of images that it only predicts: 0, and -1 where an image has no content.

    Raises:
        UserError: If there are no such images, or one cannot be used. What was there before is
            kept.
    """
    name = plans_manager.dataset_name
    folder = nnunet_folder(PREPROCESSED) / name
    folder /= configuration.data_identifier + SUFFIX
    record = decisive_plans(plans_manager, configuration)
    done = _done(folder)
    if done.items() >= record.items() and not _raw_images(name).is_dir():
        return folder / CASES  # raw images may have been put away after preprocessing
    raw = nnunet_folder(RAW) / name
    cases = unlabelled_cases(raw)
    record["images"] = {
        path.name: fingerprint(path) for images in cases.values() for path in images
    }
    if done == record:
        return folder / CASES  # also where nobody may write
    with writing(folder.parent), one_at_a_time(folder.with_name(f".{folder.name}.lock"), log):
        clear_partial(folder)
        if _done(folder) != record:
            log(f"Preprocessing {len(cases)} cases of {raw / FOLDER}")
            with replacing(folder) as partial:
                (partial / CASES).mkdir(parents=True)
                _preprocess_all(
                    cases, partial / CASES, plans_manager, configuration, dataset_json, processes
                )
                write_json(partial / RECORD, record)
                shutil.rmtree(folder, ignore_errors=True)
    return folder / CASES


def _done(folder: Path) -> dict[str, Any]:
    return read_object(folder / RECORD) if folder.is_dir() else {}


def _raw_images(dataset: str) -> Path:
    """Where raw images without labels would be; nnU-Net's environment may name no such folder."""
    return Path(os.environ.get(RAW, os.devnull), dataset, FOLDER)


def decisive_plans(
    plans_manager: PlansManager, configuration: ConfigurationManager
) -> dict[str, Any]:
    """What of the plans decides how images are preprocessed."""
    return {
        "plans": {key: plans_manager.plans.get(key) for key in _PLANS_KEYS},
        "configuration": {k: configuration.configuration.get(k) for k in _CONFIGURATION_KEYS},
    }


def _preprocess_all(
    cases: Mapping[str, list[Path]],
    folder: Path,
    plans_manager: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    processes: int,
) -> None:
    tasks = {
        case: (
            str(folder / case),
            [str(path) for path in images],
            plans_manager,
            configuration,
            dict(dataset_json),
        )
        for case, images in cases.items()
    }
    for_each(_preprocess, tasks, processes, f"Preprocessing {FOLDER}")


def _preprocess(
    target: str,
    images: list[str],
    plans_manager: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> None:
    """Preprocess one case; ``target`` is a path without ending."""
    preprocessor: Any = configuration.preprocessor_class(verbose=False)
    preprocess_voxels = preprocessor.run_case_npy
    channels = len(configuration.normalization_schemes)
    labels = plans_manager.get_label_manager(dataset_json)
    # where there is an ignore label, nnU-Net's loader draws patches around such voxels
    drawn_from = [[-1, *labels.all_labels]] if labels.has_ignore_label else []

    def preprocess_unlabelled_voxels(data: Any, *others: Any) -> Any:
        if len(data) != channels:
            raise ValueError(
                f"its images have {len(data)} channels, but the plans have {channels}."
            )
        refuse_unusable(images, data)
        data, seg, properties = preprocess_voxels(data, *others)
        properties["class_locations"] = preprocessor._sample_foreground_locations(seg, drawn_from)
        return data, seg, properties

    preprocessor.run_case_npy = preprocess_unlabelled_voxels
    try:
        preprocessor.run_case_save(target, images, None, plans_manager, configuration, dataset_json)
    except Exception as error:  # readers and preprocessors raise anything
        reason = str(error).strip().splitlines()[-1:] or [repr(error)]
        message = f"Cannot preprocess case {Path(target).name} in {FOLDER}: {reason[0]}"
        raise UserError(message) from error


def refuse_unusable(images: Sequence[str], voxels: Any) -> None:
    """Refuse images from which nothing can be learned.

    Args:
        images: The files of a case.
        voxels: What nnU-Net has read of them, (C, *S).

    Raises:
        ValueError: Naming the file that is cut off or not finite, or saying that all are constant.
    """
    for path in images:
        stored = voxels
        if path.endswith((".nii", ".nii.gz")):
            # ITK reads as 0 what a NIfTI file lacks, and NaN
            try:
                stored = nibabel.load(path, mmap=False).dataobj.get_unscaled()
            except Exception as error:  # damaged bytes can raise anything
                told = str(error).strip().splitlines()[-1:] or [repr(error)]
                raise ValueError(f"{Path(path).name} is cut off or damaged: {told[0]}") from error
        if broken := int(np.count_nonzero(~np.isfinite(stored))):
            raise ValueError(f"{Path(path).name} is NaN or infinite in {broken} voxels.")
    if all(channel.min() == channel.max() for channel in voxels):
        names = ", ".join(Path(path).name for path in images)
        raise ValueError(f"{names} has the same intensity everywhere.")
