"""Conversion of the values in image files and arrays to 8-bit levels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor

from pplmodels.errors import InputError, as_input_error

AT_ONCE = 2**24  # number of values converted at once
WHITE = {"uint8": 255.0, "uint16": 65535.0, "bool": 1.0}  # values of full intensity; 1 for floats


@dataclass(frozen=True)
class Decoding:
    """The user's options for converting files.

    Arguments:
        background: color under transparent pixels in CSS notation (``white``, ``#ff8800``).
        image_size: resize images so that the shorter side has this many pixels, and crop the central square. None does
            not resize; all images must then have the same size.
        white_level: value of full intensity. None: 255 for 8 bits, 65,535 for 16 bits, 1 for floats and booleans.
    """

    background: str = "white"
    image_size: int | None = None
    white_level: float | None = None

    def __post_init__(self):
        """Reject invalid colors and images of one pixel."""
        _ = self.ground
        if self.image_size is not None and self.image_size < 2:
            raise InputError(f"--image-size {self.image_size} is too small: the side must be at least 2 pixels.")

    @property
    def ground(self) -> tuple[int, int, int]:
        """The background's red, green and blue levels."""
        with as_input_error(f"{self.background!r} is not a color: use CSS notation, such as white or #ff8800."):
            return ImageColor.getrgb(self.background)[:3]

    @property
    def grey(self) -> bool:
        """Whether the background is gray."""
        return len(set(self.ground)) == 1

    def fitted(self, pixels: Tensor) -> Tensor:
        """Images ``(..., C, H, W)`` resized and cropped to the requested size."""
        if self.image_size is None:
            return pixels
        from torchvision.transforms.v2 import functional  # slow to import and rarely needed

        resized = functional.resize(pixels, [self.image_size], antialias=True)
        return functional.center_crop(resized, [self.image_size])


def laid_over(levels: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    """Composite ``levels`` with alpha, uint8 ``(..., 4)``, over a background color: uint8 ``(..., 3)``."""
    alpha = levels[..., 3:].astype(np.uint16)
    mixed = levels[..., :3] * alpha + np.array(ground, np.uint16) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def to_levels(values: np.ndarray, white: float, name: str) -> np.ndarray:
    """Convert values from 0 to ``white`` to 8-bit levels. Other values raise an :class:`InputError` with ``name``."""
    if values.dtype == np.uint8 and white == 255:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    precise = np.promote_types(values.dtype, np.float32)
    scaled = (values.astype(precise, copy=False) * precise.type(255 / white)).round()
    if not (scaled.min() >= 0 and scaled.max() <= 255):  # also true for NaN
        raise InputError(
            f"{name} has values from {values.min():g} to {values.max():g}, but they must be from 0 (black) to "
            f"{white:g} (white): give the value of white with --white-level, or rescale the values."
        )
    return scaled.astype(np.uint8)


@dataclass(frozen=True)
class ArrayFormat:
    """Converts arrays ``(B, ...)`` of one format to pixels; created by :func:`array_format`.

    ``channels`` is the axis of the channels or None, ``white`` the value of full intensity, and ``name`` is used in
    messages.
    """

    name: str
    channels: int | None
    white: float
    decoding: Decoding

    def __call__(self, array: np.ndarray) -> Tensor:
        """Pixels, uint8 ``(B, C, H, W)``."""
        rows = max(1, AT_ONCE // max(1, array[0].size))
        if len(array) <= rows or (array.dtype == np.uint8 and self._plain(array)):
            return self._converted(array)
        return torch.cat([self._converted(array[start : start + rows]) for start in range(0, len(array), rows)])

    def _plain(self, array: np.ndarray) -> bool:
        """Whether values are not changed by the conversion."""
        alpha = self.channels is not None and array.shape[self.channels] == 4
        return self.white == 255 and not alpha and self.decoding.image_size is None

    def _converted(self, array: np.ndarray) -> Tensor:
        levels = to_levels(array, self.white, self.name)
        last = levels[..., None] if self.channels is None else np.moveaxis(levels, self.channels, -1)
        if last.shape[-1] == 4:
            last = laid_over(last, self.decoding.ground)
        return self.decoding.fitted(torch.from_numpy(np.ascontiguousarray(np.moveaxis(last, -1, 1))))

    @property
    def words(self) -> str:
        """A description of the format in addition to shape and dtype."""
        white = "" if self.white in (255.0, 65535.0) else f", white is {self.white:g}"
        return white + {None: "", 1: ", channels first", 3: ", channels last"}[self.channels]


def channel_axis(shape: tuple[int, ...], name: str) -> int | None:
    """The channel axis in arrays of images: the last axis if it has 1, 3 or 4 entries, otherwise the second axis."""
    if len(shape) == 3 and 0 not in shape:
        return None
    if len(shape) == 4 and 0 not in shape:
        for axis in (3, 1):
            if shape[axis] in (1, 3, 4):
                return axis
    raise InputError(
        f"{name} has shape {shape}; images must be (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4 (RGBA)."
    )


def extremes(chunks: Iterable[np.ndarray], name: str) -> tuple[float, float]:
    """The smallest and the largest value. Raises :class:`InputError` if any value is NaN or infinite."""
    low, high = np.inf, -np.inf
    for chunk in chunks:
        ends = float(chunk.min()), float(chunk.max())
        if not np.isfinite(ends).all():
            raise InputError(f"{name} has NaN or infinite values.")
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def array_format(
    name: str, shape: tuple[int, ...], dtype: np.dtype, high: float, binary: bool, decoding: Decoding
) -> ArrayFormat:
    """The format of images in an array, determined by rules. Raises :class:`InputError` if it is ambiguous.

    ``high`` is the largest value of the array. ``binary`` is true if this array and all related arrays only contain
    the integers 0 and 1.
    """
    axis = channel_axis(shape, name)
    white = decoding.white_level
    if white is None and dtype.kind == "f":
        white = 1.0
    elif white is None:
        white = 1.0 if binary else WHITE.get(dtype.name)
    if white is None or dtype.kind not in "biuf":
        raise InputError(
            f"{name} has type {dtype} and values up to {high:g}, but images must be uint8, uint16, bool, or floats in "
            "[0, 1]: give the value of white with --white-level, or convert the array."
        )
    return ArrayFormat(name, axis, float(white), decoding)
