"""Reading an image file of any depth, transparency and orientation as 8-bit levels."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from pplmodels.data.levels import Decoding, laid_over, to_levels
from pplmodels.errors import InputError, as_input_error

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
# allowed formats, independent of file names: other readers are rarely used, and the EPS reader starts a program
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
PIXELS = 2**24  # maximum per image, e.g. 4096 x 4096, which takes about 200 MB to read; a 1 KB file can claim more
GREY = ("1", "L", "LA", "La")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATION = 0x0112  # the EXIF tag
# TIFF tags and their values
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # the lowest level is white
BITS, COLOURS, SAMPLE, SIGNED = 258, 320, 339, 2
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap rows and columns


@dataclass(frozen=True)
class Header:
    """The properties of an image that are known before decoding. Height and width are those of the upright image."""

    height: int
    width: int
    colour: bool
    transparent: bool
    turned: bool
    deep: bool  # more than 8 bits per channel
    several: bool  # several pages or frames, of which the first is used


def read_header(path: Path, decoding: Decoding) -> Header:
    """The header of an image file. Raises :class:`InputError`."""
    with _opened(path) as image:
        deep = _is_deep(image) or _is_cut(image)  # before the orientation, for which Pillow may decode the image
        orientation = _orientation(image)
        size = image.size if orientation in SIDEWAYS else image.size[::-1]
        if orientation in SIDEWAYS and image.format == "TIFF":  # Pillow versions differ in whether they rotate it
            size = ImageOps.exif_transpose(image).size[::-1]
        transparent = _is_transparent(image)
        colour = not _is_grey(image) or (transparent and not decoding.grey)
        several = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # a JPEG with a preview is one image
        return Header(*size, colour, transparent, orientation != 1, deep, several)


def read_picture(path: Path, decoding: Decoding) -> np.ndarray:
    """The upright image as uint8, ``(H, W)`` if it is gray, otherwise ``(H, W, 3)``. Raises :class:`InputError`."""
    with _opened(path) as image:
        transparent, grey, deep = _is_transparent(image), _is_grey(image), _is_deep(image)
        depth = _depth(image)
        inverted = deep and _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO
        white = None if image.mode == "1" else decoding.white_level  # 1-bit images have no other levels
        if white is not None and _is_cut(image):
            raise InputError(
                f"--white-level does not apply to {path}, which has 16 bits per channel: only the upper 8 are read."
            )
        upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        if deep:
            levels = _deep_levels(upright, path, white, *depth)
            levels = 255 - levels if inverted else levels  # Pillow inverts images with fewer bits itself
        else:
            colours = "L" if grey else "RGB"
            levels = np.array(upright.convert("RGBA" if transparent else colours))
            if white is not None:
                shown = levels[..., :3] if transparent else levels
                shown[...] = to_levels(shown, white, str(path))
        if transparent:
            levels = laid_over(levels, decoding.ground)
            return levels[..., 0] if grey and decoding.grey else levels
        return levels


def _deep_levels(image: Image.Image, path: Path, white: float | None, bits: int, signed: bool) -> np.ndarray:
    """The levels of a gray image without 8 bits; ``(H, W, 4)`` with alpha if one value is marked as transparent."""
    values = np.asarray(image)
    if values.dtype.itemsize * 8 == bits and values.dtype.kind in "iu":  # Pillow's sign may differ from the file's
        values = values.view(f"{'i' if signed else 'u'}{values.dtype.itemsize}")
    if white is None and image.mode == "F":
        white = 1.0
    elif white is None and bits <= 16 and not signed:
        white = 2**bits - 1
    if white is None:
        raise InputError(
            f"{path} has {'signed ' if signed else ''}{bits}-bit levels from {values.min()} to {values.max()}: give "
            "the value of white with --white-level."
        )
    levels = to_levels(values, white, str(path))
    if not _is_transparent(image):
        return levels
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.stack([levels, levels, levels, alpha], -1)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open the file with Pillow. Any error inside this context becomes an error of one sentence."""
    with as_input_error(f"{path} is not a readable image."), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the limit here is below the one that Pillow warns about
        if path.stat().st_size > 8 * PIXELS:  # bytes per pixel of four 16-bit channels
            raise InputError(f"{path} has more bytes than an image of {PIXELS:,} pixels, the maximum size.")
        # from memory: for a file, Pillow allocates as many bytes as a chunk claims to have
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise InputError(f"{path} has {image.height}x{image.width} pixels, but the maximum is {PIXELS:,}.")
            _scale_key(image)
            _scale_palette(image)
            yield image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data is ignored, as in viewers
        return 1
    return orientation if orientation in range(1, 9) else 1


def _is_cut(image: ImageFile.ImageFile) -> bool:
    """Whether the file has several channels of 16 bits, of which Pillow only reads the upper 8."""
    return not _is_deep(image) and ";16" in str(image.tile)


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Scale the transparent level of a 2-bit or 4-bit PNG like its pixels, which Pillow reads as 8 bits."""
    factor = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3])) if image.tile else None
    if factor and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= factor


def _scale_palette(image: Image.Image) -> None:
    """Use the colors of a TIFF with an 8-bit color map unchanged, because Pillow takes the upper 8 of 16 bits."""
    if image.mode == "P":
        colours = np.array(_tags(image).get(COLOURS, ()))
        if len(colours) and colours.max() <= 255:
            image.putpalette(colours.reshape(3, -1).T.astype(np.uint8).tobytes())


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF, or none for other formats."""
    return getattr(image, "tag_v2", {})


def _depth(image: Image.Image) -> tuple[int, bool]:
    """The number of bits per value of a single-channel image, and whether values are signed."""
    if image.format == "TIFF":
        return _tags(image).get(BITS, (1,))[0], _tags(image).get(SAMPLE, (1,))[0] == SIGNED
    return (8 if image.mode in GREY else 16), False  # for a PNG; old Pillow versions read 16 bits as I


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ALPHA or "transparency" in image.info


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette()).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GREY or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    """Whether there is a single channel whose levels are not in 0 to 255."""
    return image.mode in ("I", "F", *SIXTEEN_BITS) or (image.mode == "L" and _depth(image)[1])
