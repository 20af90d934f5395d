"""Reading arrays from untrusted .npz and .npy files."""

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pplmodels.data.levels import AT_ONCE, ArrayFormat, Decoding, array_format, channel_axis, extremes
from pplmodels.errors import InputError, as_input_error
from pplmodels.messages import say

# Limits of the unpacked size of an archive. Black float64 canvases compress to about 1/200, real images to 1/10.
RATIO = 256  # largest ratio to the archive's size
SMALL = 2**28  # number of bytes that is always allowed
DEEP = 2**14  # 14-bit white: 16-bit arrays with a smaller maximum may have fewer bits
DEFLATE = 1032  # largest compression ratio of a deflate stream (two bits per 258 bytes)


def read_npz(path: str | Path, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, read without pickle. Raises :class:`InputError` if the file is invalid.

    Sizes are checked before memory is allocated: an array must have exactly the size of its entry, an entry at most
    the size that its compressed bytes can unpack to, and all arrays together at most 256 times the size of the file or
    256 MiB.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or is truncated.")
    with as_input_error(f"{path} is not a readable .npz archive of plain arrays."), zipfile.ZipFile(path) as archive:
        held = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        missing = [name for name in required if name not in held]
        if missing:
            raise InputError(f"{path} has no array named {missing[0]}; its arrays are {', '.join(held)}.")
        entries = {name: held[name] for name in (*required, *optional) if name in held}
        if sum(entry.compress_size for entry in entries.values()) > path.stat().st_size:  # zipfile would allocate them
            raise ValueError("the entries are larger than the file")
        size = sum(entry.file_size for entry in entries.values())
        if size > max(SMALL, RATIO * path.stat().st_size):
            raise InputError(f"{path} would unpack to {size:,} bytes, more than {RATIO} times its own size.")
        return {name: _read_array(archive, entry) for name, entry in entries.items()}


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    # the methods that numpy writes
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not entry.filename.endswith(".npy"):
        raise ValueError("an unsupported type of entry")
    if entry.file_size > DEFLATE * entry.compress_size:
        raise ValueError("the size exceeds what the compressed bytes can expand to")
    with archive.open(entry) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions are for structured arrays
            raise ValueError("not a plain array")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError("not a plain array")
        if math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError("the shape does not match the size")
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def pixels_of(arrays: dict[str, np.ndarray], source: str, decoding: Decoding) -> dict[str, Tensor]:
    """The named arrays of one file as images, uint8 ``(N, C, H, W)``, converted by :mod:`pplmodels.data.levels`."""
    chunks = {name: (array,) for name, array in arrays.items()}
    formats = array_formats({n: (a.shape, a.dtype) for n, a in arrays.items()}, chunks, source, decoding)
    return {name: formats[name](array) for name, array in arrays.items()}


def array_formats(
    kinds: dict[str, tuple[tuple[int, ...], np.dtype]],
    chunks: Mapping[str, Iterable[np.ndarray]],
    source: str,
    decoding: Decoding,
) -> dict[str, ArrayFormat]:
    """The format of each named array, from its shape, dtype and values. Prints the formats."""
    names = {name: f"{name} in {source}" for name in kinds}
    for name, (shape, dtype) in kinds.items():
        channel_axis(shape, names[name])
        if dtype.kind not in "biuf":
            raise InputError(f"{names[name]} has type {dtype}; images are uint8, uint16, bool, or floats in [0, 1].")
    ends = {name: extremes(chunks[name], names[name]) for name in kinds}
    whole = [name for name, (_, dtype) in kinds.items() if dtype.kind in "biu"]
    binary = all(ends[name][0] >= 0 for name in whole) and max((ends[name][1] for name in whole), default=0) == 1
    if decoding.white_level is None and not binary and (bits := [name for name in whole if ends[name] == (0, 1)]):
        others = next(name for name in whole if ends[name] != (0, 1))
        raise InputError(
            f"{names[bits[0]]} has values 0 and 1, but {others} has values up to {ends[others][1]:g}: convert them to "
            "the same scale, or give the value of white with --white-level."
        )
    formats = {}
    for name, (shape, dtype) in kinds.items():
        form = formats[name] = array_format(names[name], shape, dtype, ends[name][1], binary, decoding)
        low, high = ends[name]
        size = "x".join(map(str, form(np.zeros((1, *shape[1:]), dtype))[0].movedim(0, -1).shape))
        say(f"read {shape[0]:,} images ({size}, {dtype}, {low:g}..{high:g}{form.words}) from {names[name]}")
        if form.white == 65535 and 1 < high < DEEP:
            say(
                f"warning: white is assumed to be 65535 in {names[name]}, but the largest value is {high:g}; set "
                "--white-level if this is wrong"
            )
    return formats


class NpyFile:
    """The rows of an array in a .npy file, which are read on demand.

    The header is read without pickle, and the file must have exactly the size given by its header. Raises
    :class:`InputError`.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise InputError(f"{path} is not a file.")
        with as_input_error(f"{path} is not a .npy file of a plain array, or is truncated."), open(path, "rb") as file:
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(file)]
            self.stored, columns, self.dtype = read_header(file)
            self.start = file.tell()
            if self.dtype.hasobject or not self.dtype.itemsize or min(self.stored, default=0) < 1:
                raise ValueError("not a plain array")
            if math.prod(self.stored) * self.dtype.itemsize != path.stat().st_size - self.start:
                raise ValueError("the shape does not match the size")
            if columns and len(self.stored) > 1:
                raise InputError(f"{path} is in Fortran order: save numpy.ascontiguousarray of the array.")

    def __len__(self) -> int:
        """The number of rows."""
        return self.stored[0]

    def rows(self, indices: Iterable[int]) -> np.ndarray:
        """The rows of the array at ``indices``, unconverted."""
        indices = list(indices)
        rows = np.empty((len(indices), *self.stored[1:]), self.dtype)
        data = rows.view(np.uint8).reshape(len(indices), -1)
        # read instead of mapped: the system may count mapped pages as this process's memory for long
        with as_input_error(f"{self.path} has changed, or cannot be read."), open(self.path, "rb", buffering=0) as file:
            for row, index in zip(data, indices, strict=True):
                file.seek(self.start + index * row.nbytes)
                if file.readinto(row.data) != row.nbytes:
                    raise ValueError("truncated")
        return rows

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows in order, in chunks."""
        size = max(1, AT_ONCE // math.prod(self.stored[1:]))
        return (self.rows(range(i, min(i + size, len(self)))) for i in range(0, len(self), size))


@dataclass(frozen=True)
class NpyImages:
    """The rows of a .npy file as images: a source of :class:`pplmodels.data.streams.DiskPixels`."""

    file: NpyFile
    format: ArrayFormat

    def __len__(self) -> int:
        """The number of images."""
        return len(self.file)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.format(np.zeros((1, *self.file.stored[1:]), self.file.dtype)).shape
        return channels, height, width

    def read(self, indices: Iterable[int]) -> Tensor:
        """The images at ``indices``, uint8 ``(B, C, H, W)``."""
        return self.format(self.file.rows(indices))
