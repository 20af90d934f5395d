"""One picture file as 8-bit levels: whatever its depth, its transparency, its orientation."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pplmodels.data.levels import Decoding, laid_over, to_levels
from pplmodels.errors import InputError, as_input_error

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
# whatever a file is called: other readers are little used, and that of EPS starts a program
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
PIXELS = 2**24  # of an image, such as 4096 x 4096: about 200 MB while it is read, and a file of 1 KB can claim more
GREY = ("1", "L", "LA", "La")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATION = 0x0112  # the EXIF tag
# TIFF tags, and values of theirs
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # where the lowest level is white
BITS, COLOURS, SAMPLE, SIGNED = 258, 320, 339, 2
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange rows and columns


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before its pixels are decoded; height and width as a viewer shows them."""

    height: int
    width: int
    colour: bool
    transparent: bool
    turned: bool
    deep: bool  # more than 8 bits per channel
    several: bool  # pages or frames, of which the first counts


def read_header(path: Path, decoding: Decoding) -> Header:
    """The header of a picture file. Raises :class:`InputError`."""
    with _opened(path) as image:
        deep = _is_deep(image) or _is_cut(image)  # before the orientation, for which Pillow may decode the picture
        orientation = _orientation(image)
        size = image.size if orientation in SIDEWAYS else image.size[::-1]
        if orientation in SIDEWAYS and image.format == "TIFF":  # Pillow's versions differ in whether that is turned
            size = ImageOps.exif_transpose(image).size[::-1]
        transparent = _is_transparent(image)
        colour = not _is_grey(image) or (transparent and not decoding.grey)
        several = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # a JPEG with a preview is one picture
        return Header(*size, colour, transparent, orientation != 1, deep, several)


def read_picture(path: Path, decoding: Decoding) -> np.ndarray:
    """A picture as uint8, ``(H, W)`` if it is grey and ``(H, W, 3)`` else, upright. Raises :class:`InputError`."""
    with _opened(path) as image:
        transparent, grey, deep = _is_transparent(image), _is_grey(image), _is_deep(image)
        depth = _depth(image)
        inverted = deep and image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        white = None if image.mode == "1" else decoding.white_level  # one bit is black or white
        if white is not None and _is_cut(image):
            raise InputError(
                f"{path} has 16 bits per colour, of which the upper 8 are read: --white-level does not apply to it."
            )
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if deep:
            levels = _deep_levels(image, path, white, *depth)
            levels = 255 - levels if inverted else levels  # which Pillow does where there are fewer bits
        else:
            colours = "L" if grey else "RGB"
            levels = np.array(image.convert("RGBA" if transparent else colours))
            if white is not None:
                shown = levels[..., :3] if transparent else levels
                shown[...] = to_levels(shown, white, str(path))
        if transparent:
            levels = laid_over(levels, decoding.ground)
            return levels[..., 0] if grey and decoding.grey else levels
        return levels


def _deep_levels(image: Image.Image, path: Path, white: float | None, bits: int, signed: bool) -> np.ndarray:
    """The levels of a grey picture of other than 8 bits; with alpha, ``(H, W, 4)``, where one value is transparent."""
    values = np.asarray(image)
    if values.dtype.itemsize * 8 == bits and values.dtype.kind in "iu":  # Pillow's types differ from the file's in sign
        values = values.view(f"{'i' if signed else 'u'}{values.dtype.itemsize}")
    if white is None and image.mode == "F":
        white = 1.0
    elif white is None and bits <= 16 and not signed:
        white = 2**bits - 1
    if white is None:
        raise InputError(
            f"{path} has {'signed ' if signed else ''}{bits}-bit levels, from {values.min()} to {values.max()}: say "
            "which is white with --white-level."
        )
    levels = to_levels(values, white, str(path))
    if not _is_transparent(image):
        return levels
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.stack([levels, levels, levels, alpha], -1)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as Pillow opens it; whatever goes wrong within is one sentence."""
    with as_input_error(f"{path} is not a readable image."), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's: the bound here is lower than the one it warns of
        if path.stat().st_size > 8 * PIXELS:  # bytes a pixel, of 16 bits in four channels
            raise InputError(f"{path} has more bytes than an image of {PIXELS:,} pixels, which are the most.")
        # from memory: of a file Pillow asks for as many bytes as a part of it claims to have, there or not
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise InputError(f"{path} has {image.height}x{image.width} pixels; {PIXELS:,} are the most.")
            _scale_key(image)
            _scale_palette(image)
            yield image


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is ignored by viewers too
        return 1
    return orientation if orientation in range(1, 9) else 1


def _is_cut(image: Image.Image) -> bool:
    """Whether the file has 16 bits per channel of several, of which Pillow reads the upper 8."""
    return not _is_deep(image) and ";16" in str(image.tile)


def _scale_key(image: Image.Image) -> None:
    """Give the transparent level of a PNG of 2 or 4 bits the scale of its pixels, which Pillow reads as 8 bits."""
    factor = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3])) if image.tile else None
    if factor and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= factor


def _scale_palette(image: Image.Image) -> None:
    """Take the colours of a TIFF whose map has 8 bits as they are; Pillow takes the upper 8 of 16."""
    colours = np.array(image.tag_v2.get(COLOURS, ())) if image.format == "TIFF" and image.mode == "P" else ()
    if len(colours) and colours.max() <= 255:
        image.putpalette(colours.reshape(3, -1).T.astype(np.uint8).tobytes())


def _depth(image: Image.Image) -> tuple[int, bool]:
    """The bits of a value of a picture with one channel, and whether it has a sign."""
    if image.format == "TIFF":
        return image.tag_v2.get(BITS, (1,))[0], image.tag_v2.get(SAMPLE, (1,))[0] == SIGNED
    return (8 if image.mode in GREY else 16), False  # of a PNG; an old Pillow reads its 16 bits as I


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ALPHA or "transparency" in image.info


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette()).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GREY or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    """Whether there is one channel whose levels are not those from 0 to 255."""
    return image.mode in ("I", "F", *SIXTEEN_BITS) or (image.mode == "L" and _depth(image)[1])
