"""Arrays from .npz files that strangers may have written."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplmodels.errors import InputError


def read_npz(path: str | Path, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, read without pickle; :class:`InputError` says what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or was cut short.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in required if name not in archive.files]
            if missing:
                raise InputError(f"{path} has no array named {missing[0]}; it holds {', '.join(archive.files)}.")
            return {name: archive[name] for name in (*required, *optional) if name in archive.files}
    except InputError:
        raise
    # what numpy, zipfile and zlib raise for files that are missing, cut short, damaged or made up
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path} is not a readable .npz archive of plain arrays.") from error


def to_pixels(array: np.ndarray, name: str) -> Tensor:
    """Images as uint8 ``(N, C, H, W)``, from uint8 or floats in [0, 1]: ``(N, H, W)`` or ``(N, H, W, 1 or 3)``."""
    if array.ndim not in (3, 4) or 0 in array.shape or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise InputError(f"{name} has shape {array.shape}; images are (N, H, W), (N, H, W, 1) or (N, H, W, 3).")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise InputError(f"{name} has values that are NaN or infinite.")
        if array.min() < 0 or array.max() > 1:
            raise InputError(
                f"{name} has values from {array.min():g} to {array.max():g}; floats must lie in [0, 1]: "
                "divide levels by 255, or save them as uint8."
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{name} has type {array.dtype}; images are uint8, or floats in [0, 1].")
    if array.ndim == 3:
        array = array[..., None]
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
