"""One raw data set of several, each a domain."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_object, replacing, write_json
from nnunet_ext.domains import unlabelled
from nnunet_ext.domains.assignment import DOMAINS_KEY, read_domains, refuse_unfit
from nnunet_ext.nnunet.datasets import (
    DATASET_JSON,
    PREPROCESSED,
    RAW,
    RESULTS,
    find_dataset,
    nnunet_folder,
    short_name,
    training_cases,
)
from nnunet_ext.nnunet.images import channels_in, copy_image

CHANNELS = "channel_names"
FILES = ("file_ending", "overwrite_image_reader_writer")
"""Keys of dataset.json that say how files are read."""
COLOURED = (".png", ".bmp", ".tif")
"""Endings of files that may hold several channels as colours."""
LABELS = ("labels", "regions_class_order")
PROVENANCE = ("name", "description", "reference", "licence", "license", "release")
"""Keys of dataset.json that are kept for each source."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Case:
    """A case of a source."""

    source: str  # full name of its data set
    name: str  # there
    images: tuple[Path, ...]  # one per channel
    label: Path | None = None
    domain: str = ""  # in the joined data set; empty without labels


@dataclass(frozen=True)
class Joined:
    """A joined data set."""

    folder: Path  # the new raw data set
    content: dict[str, Any]  # of its dataset.json
    cases: dict[str, Case]  # by new name, labelled ones
    unlabelled: dict[str, Case]  # by new name


def gather(
    labelled: Sequence[str], without_labels: Sequence[str], number: int, name: str
) -> Joined:
    """Find out what the joined data set will hold; writes nothing.

    Args:
        labelled: Data sets whose training cases are joined; each becomes a domain, or one for
            each domain that it has.
        without_labels: Data sets whose images in imagesTr and imagesUn go to imagesUn.
        number: Of the new data set, 1 to 999.
        name: Its short name.

    Raises:
        UserError: If the sources do not go together, or the new data set exists.
    """
    raw = nnunet_folder(RAW)
    folder = _new_folder(raw, number, name)
    labelled = [find_dataset(each, RAW) for each in labelled]
    without_labels = [find_dataset(each, RAW) for each in without_labels]
    sources = [*labelled, *without_labels]
    twice = [source for source, times in Counter(sources).items() if times > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice; each data set can be joined once.")
    described = {source: read_object(raw / source / DATASET_JSON) for source in sources}
    for source, key in product(sources, (CHANNELS, "labels", "file_ending")):
        if key not in described[source]:
            raise UserError(f'{raw / source / DATASET_JSON} has no "{key}".')
    first, shared = labelled[0], described[labelled[0]]
    for other in labelled[1:]:
        _refuse_difference(described, first, other, (CHANNELS, *LABELS, *FILES))
    for other in without_labels:
        # its channels may be called otherwise: CT where the first shows MR
        _refuse_difference(described, first, other, FILES)
    times = Counter(map(short_name, sources))
    prefixes = {
        name: short_name(name) if times[short_name(name)] == 1 else name for name in sources
    }
    cases: list[Case] = []
    images: list[Case] = []
    for source in labelled:
        cases += _labelled_cases(raw / source, described[source], prefixes[source])
    for source in without_labels:
        images += _unlabelled_cases(raw / source, shared["file_ending"])
    for case in (*cases, *images):
        channels = _channels(case, shared)
        if channels != len(shared[CHANNELS]):
            raise UserError(
                f"{case.source}: case {case.name} has images of {channels} channels, but "
                f"{first} has {len(shared[CHANNELS])}. Only data sets with equal channels can be "
                "joined."
            )
    names = new_names([*cases, *images], prefixes)
    joined = dict(zip(names, cases, strict=False))
    content = {key: shared[key] for key in (CHANNELS, *LABELS, *FILES) if key in shared} | {
        "numTraining": len(cases),
        "name": name,
        DOMAINS_KEY: {new: case.domain for new, case in joined.items()},
        "joined_from": {
            source: {key: description[key] for key in PROVENANCE if key in description}
            for source, description in described.items()
        },
    }
    return Joined(folder, content, joined, dict(zip(names[len(cases) :], images, strict=True)))


def write(joined: Joined, link: bool) -> None:
    """Write a joined data set, all of it or nothing."""
    ending = joined.content["file_ending"]
    files: list[tuple[Path, str]] = [
        *_places("imagesTr", joined.cases, ending),
        *_places(unlabelled.FOLDER, joined.unlabelled, ending),
        *((c.label, f"labelsTr/{name}{ending}") for name, c in joined.cases.items() if c.label),
    ]
    try:
        with replacing(joined.folder) as partial:
            for folder in {Path(place).parent for _, place in files}:
                (partial / folder).mkdir(parents=True)
            for source, place in tqdm(files, leave=False, unit="file", disable=None):
                copy_image(source, partial / place, link=link)
            write_json(partial / DATASET_JSON, joined.content)
    except OSError as error:
        raise UserError(f"Cannot write {joined.folder}: {error}. Nothing was kept.") from None


def _places(folder: str, cases: Mapping[str, Case], ending: str) -> Iterator[tuple[Path, str]]:
    for name, case in cases.items():
        for channel, image in enumerate(case.images):
            yield image, f"{folder}/{name}_{channel:04d}{ending}"


# ---------------------------------------------------------------------------------- the new names


def _new_folder(raw: Path, number: int, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(
            f'"{name}" cannot be the name of a data set: use letters, digits, dots, dashes and '
            "underscores, the first and the last a letter or digit."
        )
    prefix = f"Dataset{number:03d}_"
    variables = [name for name in (RAW, PREPROCESSED, RESULTS) if os.environ.get(name)]
    folders = [nnunet_folder(variable, must_exist=False) for variable in variables]
    taken = [path for folder in folders for path in folder.glob(f"{prefix}*")]
    if taken:
        raise UserError(
            f"There is a data set of number {number} already: {taken[0]}. Choose another --id."
        )
    return raw / f"{prefix}{name}"


def new_names(cases: Sequence[Case], prefixes: Mapping[str, str]) -> list[str]:
    """Name the cases anew, with the source's prefix where several sources have the name.

    Raises:
        UserError: If that makes two names the same.
    """
    owners: dict[str, set[str]] = {}
    for case in cases:  # some file systems do not tell a from A
        owners.setdefault(case.name.casefold(), set()).add(case.source)
    names = [
        case.name
        if len(owners[case.name.casefold()]) == 1
        else f"{prefixes[case.source]}_{case.name}"
        for case in cases
    ]
    again = [name for name, times in Counter(names).items() if times > 1]
    if again:
        places = [case.source for case, name in zip(cases, names, strict=True) if name == again[0]]
        raise UserError(
            f"Several cases would be called {again[0]}, from {' and '.join(places)}. Rename one "
            "of these cases."
        )
    return names


# ------------------------------------------------------------------------------------ the sources


def _refuse_difference(
    described: Mapping[str, Mapping[str, Any]], one: str, other: str, keys: Sequence[str]
) -> None:
    for key in keys:
        first, second = (described[source].get(key) for source in (one, other))
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            values = {f'{key} "{k}"': (first.get(k), second.get(k)) for k in {**first, **second}}
        else:
            values = {key: (first, second)}
        differences = [
            f"{name} is {_shown(ours)} in {one} and {_shown(theirs)} in {other}"
            for name, (ours, theirs) in values.items()
            if ours != theirs
        ]
        if differences:
            raise UserError(f"{one} and {other} cannot be joined: {'; '.join(differences)}.")


def _channels(case: Case, description: Mapping[str, Any]) -> int:
    """Count a case's channels; looks into files only where they may hold several."""
    coloured = description["file_ending"].lower() in COLOURED
    alone = len(case.images) == 1 < len(description[CHANNELS])
    return channels_in(case.images) if coloured or alone else len(case.images)


def _shown(value: Any) -> str:
    return "missing" if value is None else json.dumps(value)


def _labelled_cases(source: Path, description: Mapping[str, Any], prefix: str) -> Iterator[Case]:
    where = str(source / DATASET_JSON)
    found = training_cases(source)
    domains = read_domains(description, where)
    if domains:
        refuse_unfit(domains, found, where)
    for name, files in found.items():
        label = Path(files["label"])
        if not label.is_file():
            raise UserError(
                f"{source.name}: case {name} has no label {label}. Images without labels can be "
                "joined by --unlabeled, as a data set of their own."
            )
        domain = f"{prefix}_{domains[name]}" if domains else prefix
        yield Case(source.name, name, tuple(map(Path, files["images"])), label, domain)


def _unlabelled_cases(source: Path, ending: str) -> list[Case]:
    cases = [
        Case(source.name, name, tuple(images))
        for folder in ("imagesTr", unlabelled.FOLDER)
        for name, images in unlabelled.images_in(source / folder, ending).items()
    ]
    if not cases:
        raise UserError(f"{source} has no images in imagesTr or {unlabelled.FOLDER}.")
    return cases
