"""Arrays from .npz files that strangers may have written."""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplmodels.errors import InputError, refused_as

# What an archive may unpack to. Black canvases as float64 shrink to about 1/200 of their bytes, real images to 1/10.
RATIO = 256  # times the archive's own bytes,
SMALL = 2**28  # or so many bytes, whatever the ratio
DEFLATE = 1032  # times its bytes is the most that a deflated stream can unpack to (two bits for each 258 bytes)


def read_npz(path: str | Path, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, read without pickle; :class:`InputError` says what is wrong with it.

    Nothing is allocated before the sizes agree: an array has exactly the bytes that its entry says, an entry no more
    than its compressed bytes can give, and all arrays together at most 256 times the file's bytes, or 256 MiB.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or was cut short.")
    with refused_as(f"{path} is not a readable .npz archive of plain arrays."), zipfile.ZipFile(path) as archive:
        held = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        missing = [name for name in required if name not in held]
        if missing:
            raise InputError(f"{path} has no array named {missing[0]}; it holds {', '.join(held)}.")
        entries = {name: held[name] for name in (*required, *optional) if name in held}
        if sum(entry.compress_size for entry in entries.values()) > path.stat().st_size:  # zipfile would ask for them
            raise ValueError("more bytes than the file has")
        size = sum(entry.file_size for entry in entries.values())
        if size > max(SMALL, RATIO * path.stat().st_size):
            raise InputError(f"{path} says that it unpacks to {size:,} bytes, more than {RATIO} times its own.")
        return {name: _read_array(archive, entry) for name, entry in entries.items()}


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    # what numpy writes
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not entry.filename.endswith(".npy"):
        raise ValueError("an entry of another kind")
    if entry.file_size > DEFLATE * entry.compress_size:
        raise ValueError("more bytes than its compressed bytes can give")
    with archive.open(entry) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions are for tables
            raise ValueError("not a plain array")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError("not a plain array")
        if math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError("another shape than its bytes have")
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


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
