"""A small synthetic 3D data set, the same for the same seed.

Every image shows a body with an organ, a lesion at the organ's rim, a gland and vessels.
The organ and the lesion are labelled; the gland and the vessels look like them and are not.
The images come from three "sites" that see the same anatomy with other contrast (site B
inverts it), gain, noise, blur and bias field.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_json

DATASET = "Dataset999_Phantom"
"""Its number is far from the Decathlon's ten."""

SHAPE = (40, 48, 40)
"""Voxels of every image, slices first."""

FIRST_TEST_NUMBER = 101
"""Number of a site's first test case, so that no name occurs in training and test."""

Volume = NDArray[np.float64]


class Site(NamedTuple):
    """How one site's scanner shows the tissues."""

    air: float
    body: float
    organ: float
    lesion: float
    gland: float
    vessel: float
    gain: float
    noise: float
    blur: float
    bias: float


SITES = {
    "siteA": Site(20, 300, 480, 640, 390, 570, gain=1.0, noise=22, blur=0.7, bias=0.08),
    "siteB": Site(20, 520, 320, 170, 420, 250, gain=0.6, noise=30, blur=0.9, bias=0.12),
    "siteC": Site(20, 380, 560, 240, 470, 310, gain=2.5, noise=36, blur=0.6, bias=0.10),
}
"""Name of a site, which is also the prefix of its cases, -> its scanner."""


def make_case(site: Site, seed: int, number: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw one case, independently of others.

    Returns:
        Image and label map of shape :data:`SHAPE`.
    """
    rng = np.random.default_rng([seed, number])
    masks = _anatomy(rng)
    values = np.full(SHAPE, site.air, float)
    for tissue, mask in masks.items():  # later tissues cover earlier ones
        values[mask] = getattr(site, tissue)
    values[masks["organ"]] += 25.0 * _smooth_noise(rng, sigma=1.5)[masks["organ"]]
    label = np.zeros(SHAPE, np.uint8)
    label[masks["organ"]] = 1
    label[masks["lesion"]] = 2
    field = 1 + site.bias * np.clip(_smooth_noise(rng, sigma=12.0), -2, 2)
    exposure = site.gain * rng.uniform(0.85, 1.15)
    noise = rng.normal(scale=site.noise, size=SHAPE)
    scanned = exposure * (gaussian_filter(values, site.blur) * field + noise)
    return np.clip(np.round(scanned), 0, np.iinfo(np.int16).max).astype(np.int16), label


def _anatomy(rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """Draw the shapes of the tissues, in the order in which they cover each other."""
    size = np.array(SHAPE, float)
    body = _blob(rng, centre=size / 2, radii=size * 0.46, wobble=1.0)
    centre = size / 2 + rng.uniform(-3, 3, 3)
    radii = rng.uniform([8, 9, 7], [11, 13, 10])
    organ = _blob(rng, centre, radii, wobble=2.0)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    lesion = _blob(rng, centre + 0.55 * radii * direction, rng.uniform(4.0, 5.5, 3), wobble=1.0)
    gland = _blob(rng, centre - 1.45 * radii * direction, rng.uniform(3.5, 5.0, 3), wobble=1.0)
    # a winding tube through all slices
    z, y, x = _grid()
    phase_y, phase_x = rng.uniform(0, 2 * np.pi, 2)
    middle_y = rng.choice([0.22, 0.78]) * SHAPE[1] + 3 * np.sin(z / 7 + phase_y)
    middle_x = rng.uniform(0.3, 0.7) * SHAPE[2] + 3 * np.sin(z / 9 + phase_x)
    vessel = np.hypot(y - middle_y, x - middle_x) <= 1.8
    outside = body & ~organ
    return {
        "body": body,
        "gland": gland & outside,
        "vessel": vessel & outside,
        "organ": organ & body,
        "lesion": lesion & organ & body,
    }


def _grid() -> Volume:
    return np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij"))


def _blob(rng: np.random.Generator, centre: Volume, radii: Volume, wobble: float) -> Any:
    """An ellipsoid whose surface is displaced smoothly by about ``wobble`` voxels."""
    warp = np.stack([_smooth_noise(rng, sigma=5.0) for _ in SHAPE], -1)
    place = np.moveaxis(_grid(), 0, -1) + wobble * warp - centre
    return np.linalg.norm(place / radii, axis=-1) <= 1


def _smooth_noise(rng: np.random.Generator, sigma: float) -> Volume:
    """Noise of standard deviation 1 that varies over about ``sigma`` voxels."""
    noise: Volume = gaussian_filter(rng.normal(size=SHAPE), sigma, mode="reflect")
    return (noise - noise.mean()) / noise.std()


def case_names(training: int, test: int) -> tuple[list[str], list[str]]:
    """Names of the training and the test cases, the sites taking turns."""

    def names(number: int, first: int) -> list[str]:
        turns = (divmod(index, len(SITES)) for index in range(number))
        return [f"{[*SITES][site]}_{turn + first:03d}" for turn, site in turns]

    return names(training, 1), names(test, FIRST_TEST_NUMBER)


def write_raw(raw: Path, training: int = 24, test: int = 6, seed: int = 0) -> Path:
    """Write so many cases as a raw data set of nnU-Net's into ``raw``, unless it is there.

    Its folder, which is returned, appears only when it is complete; the sites are its domains.
    """
    import SimpleITK as sitk  # noqa: N813 (the name that its own documentation uses)

    names, target = case_names(training, test), raw / DATASET
    described = {
        "description": f"Synthetic organ and lesion as three sites see them, seed {seed}",
        "licence": "CC0",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": training,
        "numTest": test,
        "file_ending": ".nii.gz",
        "domains": {name: name.split("_")[0] for name in names[0]},
    }
    if target.is_dir():
        if read_json(target / "dataset.json") != described:
            raise UserError(
                f"{target} holds other cases, or cases of another seed. Name another folder."
            )
        return target
    raw.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=raw, prefix=f".{DATASET}.") as folder:
        partial = Path(folder, DATASET)
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (partial / part).mkdir(parents=True)
        for number, name in enumerate([*names[0], *names[1]]):
            subset = "Tr" if number < training else "Ts"
            files = (f"images{subset}/{name}_0000.nii.gz", f"labels{subset}/{name}.nii.gz")
            case = make_case(SITES[name.split("_")[0]], seed, number)
            for array, file in zip(case, files, strict=True):
                sitk.WriteImage(sitk.GetImageFromArray(array), partial / file)
        write_json(partial / "dataset.json", described)
        os.replace(partial, target)
    return target
