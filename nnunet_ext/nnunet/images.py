"""Image files as nnU-Net reads them: other voxels, and everything else as it was."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Image:
    """An image or a label map that has been read."""

    path: Path
    voxels: "NDArray[Any]"  # (C, *S); colours are channels, and so are the images of a 4D file
    spacing: tuple[float, ...]  # of voxels along each axis of S
    write: "Callable[[NDArray[Any], Path], None]"  # other voxels of this shape and type to a path
    has_alpha: bool = False  # which is not among the voxels, but a channel to nnU-Net

    def save(self, voxels: "NDArray[Any]", target: Path) -> None:
        """Write other voxels in one step; alpha, geometry and spacing stay what they were."""
        with replacing(target) as partial:
            self.write(voxels, partial)
        _copy_sidecar(self.path, target)


def read_image(path: Path) -> Image:
    """Read an image or a label map in a format of nnU-Net's."""
    readers = {".png": _read_picture, ".bmp": _read_picture, ".tif": _read_tif, ".tiff": _read_tif}
    try:
        return readers.get(path.suffix.lower(), _read_medical)(path)
    except Exception as error:  # damaged files raise anything
        reason = str(error).strip().splitlines()[-1:] or [repr(error)]
        raise UserError(f"Cannot read the image {path}: {reason[0]}") from error


def channels_in(images: Iterable[Path]) -> int:
    """Count the channels of a case as nnU-Net does, alpha included.

    Raises:
        UserError: If an image cannot be read.
    """
    return sum(len(image.voxels) + image.has_alpha for image in map(read_image, images))


def copy_image(source: Path, target: Path, link: bool = False) -> None:
    """Copy an image or a label map in one step, with the spacing that may stand beside it."""
    with replacing(target) as partial:
        if link:
            partial.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, partial)
    _copy_sidecar(source, target)


def _read_medical(path: Path) -> Image:
    import numpy as np
    import SimpleITK as sitk  # noqa: N813

    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    is_vector = image.GetNumberOfComponentsPerPixel() > 1
    if is_vector:
        array = np.moveaxis(array, -1, 0)
    elif array.ndim < 4:
        array = array[None]

    def write(voxels: "NDArray[Any]", target: Path) -> None:
        if is_vector:
            voxels = np.moveaxis(voxels, 0, -1)
        elif image.GetDimension() < 4:
            voxels = voxels[0]
        changed = sitk.GetImageFromArray(voxels, isVector=is_vector)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(target), useCompression=True)

    return Image(path, array, image.GetSpacing()[::-1][1 - array.ndim :], write)


def _read_picture(path: Path) -> Image:
    import numpy as np
    from skimage.io import imread, imsave

    array = imread(path)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ValueError(f"its shape is {array.shape}; nnU-Net takes grey, RGB and RGBA")
    alpha = array[..., 3:]

    def write(voxels: "NDArray[Any]", target: Path) -> None:
        merged = np.concatenate([np.moveaxis(voxels, 0, -1), alpha], axis=-1)
        imsave(target, merged.squeeze(-1) if len(voxels) == 1 else merged, check_contrast=False)

    voxels = np.moveaxis(array[..., :3], -1, 0)
    return Image(path, voxels, (1.0, 1.0), write, has_alpha=alpha.size > 0)


def _read_tif(path: Path) -> Image:
    import tifffile

    array = tifffile.imread(path)
    # in this order nnU-Net tries its readers
    if path.suffix.lower() == ".tif" and (array.ndim == 2 or array.shape[-1] in (3, 4)):
        return _read_picture(path)
    if array.ndim != 3:
        raise ValueError(f"its shape is {array.shape}; nnU-Net takes 3D")
    sidecar = _sidecar(path)
    spacing = json.loads(sidecar.read_text(encoding="utf-8"))["spacing"] if sidecar else (1.0,) * 3

    def write(voxels: "NDArray[Any]", target: Path) -> None:
        tifffile.imwrite(target, voxels[0], photometric="minisblack", compression="zlib")

    return Image(path, array[None], tuple(spacing), write)


def _sidecar(path: Path) -> Path | None:
    """File with the spacing of a 3D TIFF, named like the case, without the channel's number."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    names = (path.stem, re.sub(r"_\d{4}$", "", path.stem))
    candidates = [path.with_name(f"{name}.json") for name in names]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _copy_sidecar(source: Path, target: Path) -> None:
    sidecar = _sidecar(source)
    if sidecar is not None:
        channel = source.stem.removeprefix(sidecar.stem)
        copy = target.with_name(f"{target.stem.removesuffix(channel)}.json")
        with replacing(copy) as partial:
            shutil.copyfile(sidecar, partial)
