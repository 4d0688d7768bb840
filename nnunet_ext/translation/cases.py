"""Labelled cases in target looks, as a preprocessed data set beside the original one."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_ext._common.files import (
    clear_partial,
    fingerprint,
    one_at_a_time,
    replacing,
    write_json,
    writing,
)
from nnunet_ext.networks.mind_the_gap.translator import DIVISOR, SOURCE, TARGET
from nnunet_ext.settings.mind_the_gap import TranslatorSettings
from nnunet_ext.translation.crops import is_flat, pad
from nnunet_ext.translation.intensities import Voxels
from nnunet_ext.translation.training import TranslatorTraining

_CASES = "cases"  # a folder of their own: nnU-Net tells a format by all files that lie together


def translated_cases(
    datasets: Sequence[Any],
    settings: TranslatorSettings,
    beside: Path,
    device: torch.device,
    log: Callable[[str], object] = print,
    workers: int = 0,
    zero_outside: Sequence[bool] = (),
) -> Path:
    """Translate all source cases, after training a translator; reuse what is there of both.

    Settings and preprocessed images decide whether it can be reused: others lead to another
    folder, and nothing is overwritten. Of several processes that ask at the same time, one
    works and the others wait.

    Args:
        datasets: nnU-Net's data sets of source and target.
        settings: Of Step A.
        beside: Preprocessed configuration; checkpoint, pictures and cases go to a folder
            beside it.
        device: Where to compute.
        log: Gets a line now and then.
        workers: Processes that draw crops.
        zero_outside: For each channel, whether nnU-Net normalises within a mask, outside of which
            voxels are 0 and stay so. Default: none.

    Returns:
        Folder that the source's class of data sets can read: the same cases with the same
        labels and properties.

    Raises:
        UserError: See :class:`~nnunet_ext.translation.training.TranslatorTraining`.
    """
    record = {
        "settings": {
            # constants by now, but part of the key of what is there already
            **TranslatorSettings.retired,
            # those of Step B, which may stand beside them, are of no consequence here
            **{each.name: getattr(settings, each.name) for each in fields(TranslatorSettings)},
        },
        "source": _files(datasets[SOURCE]),
        "target": _files(datasets[TARGET]),
    }
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
    folder = beside.with_name(f"{beside.name}_translated_{key}")
    cases = folder / _CASES
    if cases.is_dir():
        return cases  # also where nobody may write
    with writing(beside.parent):
        folder.mkdir(exist_ok=True)
        lock = folder / ".lock"
        lock.touch()
    with one_at_a_time(lock, log):
        if not cases.is_dir():
            clear_partial(folder / "*")
            log(f"Step A works in {folder}")
            write_json(folder / "made_from.json", record)
            training = TranslatorTraining(datasets, settings, folder, device, log, workers)
            training.run()
            with replacing(cases) as partial:
                partial.mkdir()
                translate_all(datasets[SOURCE], training, partial, zero_outside)
    return cases


def _files(dataset: Any) -> dict[str, str]:
    """Fingerprints of all preprocessed files."""
    files = sorted(Path(dataset.source_folder).iterdir())
    endings = (".b2nd", ".npz", ".pkl")
    return {file.name: fingerprint(file) for file in files if file.suffix in endings}


def translate_all(
    dataset: Any, training: TranslatorTraining, folder: Path, zero_outside: Sequence[bool] = ()
) -> None:
    """Write every case of a source data set in target looks."""
    masked = np.flatnonzero(zero_outside)
    cases = tqdm(dataset.identifiers, "Translating", unit="case", leave=False, disable=None)
    for case in cases:
        voxels, seg, _, properties = dataset.load_case(case)
        layout = {}
        if hasattr(voxels, "chunks"):  # not in nnU-Net's older format
            layout = {
                "chunks": voxels.chunks,
                "blocks": voxels.blocks,
                "chunks_seg": seg.chunks,
                "blocks_seg": seg.blocks,
            }
        translated, labels = translate(voxels[:], training), seg[:]
        translated[masked[:, None], labels[0] < 0] = 0
        dataset.save_case(translated, labels, properties, str(folder / case), **layout)


@torch.no_grad()
def translate(voxels: Voxels, training: TranslatorTraining) -> Voxels:
    """Give the voxels (C, *S) of a source case the looks of the target.

    Slices that are nearly constant, which normalisation would blow up to noise, only change their
    range. Small ones are padded as they were in training, because all of a slice counts in the
    translator's normalisation.
    """
    unit = training.ranges[SOURCE].to_unit(voxels)
    dim = training.settings.translator_dim
    # images of the translator come first, (N, C, *S'), also where the volume is one
    images = np.moveaxis(unit, 1, 0) if dim == 2 else unit[None]
    result = images.copy()
    size = images.shape[2:]
    padded_size = [
        max(crop, -(-edge // DIVISOR) * DIVISOR)
        for edge, crop in zip(size, training.shape, strict=True)
    ]
    inside: tuple[Any, ...] = (...,)
    for edge, padded in zip(size, padded_size, strict=True):
        start = (padded - edge) // 2
        inside += (slice(start, start + edge),)
    telling = [number for number, image in enumerate(images) if not is_flat(image)]
    batch = training.settings.translator_batch
    for first in range(0, len(telling), batch):
        chosen = telling[first : first + batch]
        padded = np.stack([pad(images[number], padded_size) for number in chosen])
        translation = training.translator(
            torch.from_numpy(padded).to(training.device),
            torch.full((len(chosen),), SOURCE, device=training.device),
        )
        result[chosen] = translation.cpu().numpy()[inside]
    result = np.moveaxis(result, 0, 1) if dim == 2 else result[0]
    return np.ascontiguousarray(training.ranges[TARGET].from_unit(result))
