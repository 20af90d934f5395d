"""Picture files as people have them: depth, transparency, orientation."""

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pplmodels.data import load_images
from pplmodels.data.levels import Decoding
from pplmodels.data.pictures import read_header, read_picture
from pplmodels.errors import InputError

RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))  # every level of 8 bits
DRAWING = np.zeros((8, 8, 4), np.uint8)  # black ink on a transparent ground
DRAWING[2:6, 3:5, 3] = 255


def written(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def read(path, **options):
    decoding = Decoding(**options)
    picture, header = read_picture(path, decoding), read_header(path, decoding)
    assert picture.dtype == np.uint8 and picture.shape[:2] == (header.height, header.width)
    assert header.colour == (picture.ndim == 3)
    return picture


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("kind", [np.uint16, ">u2"], ids=["little", "big"])
def test_the_same_levels_in_8_and_in_16_bits_are_the_same_pixels(tmp_path, name, kind):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    if kind == ">u2":
        deep = Image.frombytes("I;16B", deep.size, (RAMP.astype(">u2") * 257).astype(">u2").tobytes())
        if name == "a.png":
            pytest.skip("PNG has one order of bytes")
    path = written(tmp_path, deep, name)
    with Image.open(path) as image:
        assert image.mode.startswith("I;16")
    assert np.array_equal(read(path), RAMP)
    assert np.array_equal(read(written(tmp_path, Image.fromarray(RAMP), name)), RAMP)


def test_16_bits_are_rounded_to_the_nearest_of_8(tmp_path):
    values = np.arange(0, 65536, 13, dtype=np.uint16)[None]
    found = read(written(tmp_path, Image.fromarray(values)))
    assert np.abs(found.astype(float) - values / 257).max() <= 0.5


@pytest.mark.parametrize(
    "values, white, expected",
    [
        (RAMP / np.float32(255), None, RAMP),
        (RAMP.astype(np.float32), 255, RAMP),
        (RAMP.astype(np.int32), 255, RAMP),
        ((RAMP.astype(np.uint16) * 16), 4080, RAMP),  # 12 bits
    ],
    ids=["floats", "floats to 255", "32 bits", "12 bits in 16"],
)
def test_the_level_of_white_is_known_or_given(tmp_path, values, white, expected):
    path = written(tmp_path, Image.fromarray(values), "a.tif")
    assert np.array_equal(read(path, white_level=white), expected)


@pytest.mark.parametrize(
    "values, sentence",
    [
        (RAMP.astype(np.float32), r"has values from 0 to 255, but they must be from 0 \(black\) to 1 \(white\)"),
        (RAMP - np.float32(1), "has values from -1 to 254"),
        (np.full((4, 4), np.nan, np.float32), "has values from nan"),
        (RAMP.astype(np.int32), "has signed 32-bit levels from 0 to 255: give the value of white with --white-level"),
    ],
    ids=["floats to 255", "negative", "NaN", "32 bits"],
)
def test_levels_whose_white_is_not_known_are_refused(tmp_path, values, sentence):
    path = written(tmp_path, Image.fromarray(values), "a.tif")
    with pytest.raises(InputError, match=sentence):
        read_picture(path, Decoding())


def test_8_bits_above_the_given_white_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"from 0 to 255, but they must be from 0 \(black\) to 100 \(white\)"):
        read_picture(written(tmp_path, Image.fromarray(RAMP)), Decoding(white_level=100))


@pytest.mark.parametrize("background, ground", [("white", 255), ("black", 0), ("#808080", 128)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_have_the_colour_of_the_background(tmp_path, background, ground, mode):
    drawing = DRAWING.copy()
    drawing[..., :3] = 60
    image = Image.fromarray(drawing)
    path = written(tmp_path, image.quantize(4) if mode == "P" else image.convert(mode))
    found = np.atleast_3d(read(path, background=background))
    assert (found[drawing[..., 3] == 0] == ground).all() and (found[drawing[..., 3] > 0] == 60).all()
    assert found.shape[2] == (3 if mode == "RGBA" else 1)


def test_half_transparent_pixels_are_mixed_as_pillow_mixes_them(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 20, 4)).astype(np.uint8))
    ground = Image.new("RGBA", image.size, (255, 136, 0, 255))
    expected = np.asarray(Image.alpha_composite(ground, image).convert("RGB")).astype(int)
    found = read(written(tmp_path, image), background="#ff8800")
    assert np.abs(found - expected).max() <= 1  # Pillow's own rounding is of another kind


def test_what_is_hidden_under_transparency_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    noisy = DRAWING.copy()
    noisy[..., :3][DRAWING[..., 3] == 0] = rng.integers(0, 255, 3)
    pictures = [read(written(tmp_path, Image.fromarray(array))) for array in (DRAWING, noisy)]
    assert np.array_equal(*pictures) and pictures[0].min() == 0 and pictures[0].max() == 255


def test_a_grey_picture_over_a_coloured_background_has_colours(tmp_path):
    path = written(tmp_path, Image.fromarray(DRAWING).convert("LA"))
    assert (read(path, background="#ff0000")[0, 0] == (255, 0, 0)).all()


@pytest.mark.parametrize("values, transparent", [(RAMP, 7), (RAMP.astype(np.uint16) * 257, 7 * 257)], ids=["8", "16"])
def test_a_transparent_level_of_a_grey_png_is_background(tmp_path, values, transparent):
    found = read(written(tmp_path, Image.fromarray(values), transparency=transparent))
    assert (found[:, 7] == 255).all() and np.array_equal(np.delete(found, 7, 1), np.delete(RAMP, 7, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_pictures_are_turned_as_a_viewer_turns_them(tmp_path, name, orientation):
    """Each orientation's transposition is undone: stored turned, read upright."""
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # one corner is white
    undo = [None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"]
    undo += ["TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]
    stored = Image.fromarray(upright)
    if undo[orientation]:
        stored = stored.transpose(getattr(Image.Transpose, undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(written(tmp_path, stored, name, exif=exif))
    assert found.shape == upright.shape and np.abs(found.astype(int) - upright).max() < 60  # JPEG's losses


def test_damaged_exif_is_ignored_as_viewers_do(tmp_path):
    path = written(tmp_path, Image.fromarray(RAMP), "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read(path).shape == RAMP.shape


def test_a_palette_of_greys_is_grey(tmp_path):
    assert np.array_equal(read(written(tmp_path, Image.fromarray(RAMP).convert("P"))), RAMP)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff", "a.bmp", "a.webp", "a.jpg", "a.jpeg", "a.jfif"])
def test_every_ending_is_read(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    options |= {"format": "JPEG", "quality": 100} if name == "a.jfif" else {}
    path = written(tmp_path, Image.fromarray(RAMP), name, **options)
    found = np.atleast_3d(read(path))[..., 0]
    assert np.abs(found.astype(int) - RAMP).max() <= (40 if name[2] == "j" else 0)


def test_of_several_pages_the_first_is_read_and_it_is_said(tmp_path, capsys):
    for number in range(10):
        pages = [Image.fromarray(np.full((6, 6), level, np.uint8)) for level in (number, 200)]
        written(tmp_path, pages[0], f"{number}.tif", save_all=True, append_images=pages[1:])
    images = load_images(tmp_path)
    assert images.train.pixels.max() == 8
    assert "10 of the images have several pages or frames, of which only the first was read" in capsys.readouterr().err


def test_a_color_that_is_none_is_refused():
    with pytest.raises(InputError, match="'mauvish' is not a color: use CSS notation"):
        Decoding(background="mauvish")


@pytest.mark.parametrize("kind", [np.uint16, np.float32], ids=["16 bits", "floats"])
def test_where_the_lowest_level_is_white_it_is_read_so(tmp_path, kind):
    values = RAMP.astype(np.uint16) * 257 if kind is np.uint16 else RAMP / np.float32(255)
    path = written(tmp_path, Image.fromarray(values), "a.tif", tiffinfo={262: 0})
    assert np.array_equal(read(path), 255 - RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_of_a_turned_tiff_is_that_of_its_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(written(tmp_path, Image.fromarray(RAMP), "a.tif", exif=exif))
    assert found.shape == (RAMP.shape[::-1] if orientation > 4 else RAMP.shape)


def png(path, depth, colour, rows, transparent=None):
    """A PNG whose rows are bytes already, of a depth that Pillow does not write."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, len(rows), depth, colour, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(">H", transparent)))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


@pytest.mark.parametrize("depth, row, step", [(2, bytes([0b00011011]), 85), (4, bytes([0x01, 0x23]), 17)])
def test_a_transparent_level_of_few_bits_is_background(tmp_path, depth, row, step):
    found = read(png(tmp_path / "a.png", depth, 0, [row], transparent=1))
    assert found.tolist() == [[0, 255, 2 * step, 3 * step]]


def test_16_bits_per_colour_are_said_and_take_no_white_level(tmp_path):
    row = b"".join(struct.pack(">HHH", 257 * level, 0, 257 * 7) for level in (0, 5, 128, 255))
    path = png(tmp_path / "a.png", 16, 2, [row])
    assert read(path)[0].tolist() == [[level, 0, 7] for level in (0, 5, 128, 255)]
    assert read_header(path, Decoding()).deep
    with pytest.raises(InputError, match="16 bits per channel"):
        read_picture(path, Decoding(white_level=4095))


def test_images_of_one_pixel_are_refused():
    with pytest.raises(InputError, match="the side must be at least 2 pixels"):
        Decoding(image_size=1)


def tiff(values, signed, bits=None, colours=None):
    """A TIFF file of grey levels, or of indices of 16-bit ``colours`` (256, 3); Pillow writes not all of these."""
    data = values.tobytes()
    entries = {
        256: (4, values.shape[1]),
        257: (4, values.shape[0]),
        258: (3, bits or values.itemsize * 8),
        259: (3, 1),
        262: (3, 1 if colours is None else 3),
        277: (3, 1),
        278: (4, values.shape[0]),
        279: (4, len(data)),
        339: (3, 2 if signed else 1),
    }
    count = len(entries) + 1 + (colours is not None)
    after = 8 + 2 + 12 * count + 4
    packed = [struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in entries.items()]
    table = b"" if colours is None else colours.T.astype("<u2").tobytes()
    packed.append(struct.pack("<HHII", 273, 4, 1, after + len(table)))
    if colours is not None:
        packed.append(struct.pack("<HHII", 320, 3, colours.size, after))
    packed.sort(key=lambda entry: entry[:2][::-1])
    return b"II*\0" + struct.pack("<IH", 8, count) + b"".join(packed) + struct.pack("<I", 0) + table + data


@pytest.mark.parametrize("kind, name", [("<i2", "signed 16"), ("<u4", "32"), ("<i4", "signed 32"), ("i1", "signed 8")])
def test_tiffs_of_every_type_are_read_by_the_white_level_or_refused(tmp_path, kind, name):
    top = np.iinfo(kind).max
    values = (RAMP[:, ::2].astype(float) * (top / 254)).astype(kind)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, signed=np.iinfo(kind).min < 0))
    with pytest.raises(InputError, match=f"has {name}-bit levels from 0 to {top}: give the value of white"):
        read_picture(path, Decoding())
    found = read(path, white_level=top)
    assert np.abs(found - values.astype(float) * (255 / top)).max() <= 0.51
    if np.iinfo(kind).min < 0:
        path.write_bytes(tiff(values - np.array(top // 4, kind), signed=True))
        with pytest.raises(InputError, match=re.escape(f"has values from -{top // 4:g} to")):
            read_picture(path, Decoding(white_level=top))


def test_12_bits_of_a_tiff_have_the_white_of_12_bits(tmp_path):
    bits = np.unpackbits(np.array([[0, 4095, 2048, 16]], ">u2").view(np.uint8)).reshape(4, 16)[:, 4:]
    path = tmp_path / "a.tif"
    packed = np.packbits(bits.flatten())[None]
    entry = struct.pack("<HHII", 256, 4, 1, packed.shape[1])
    path.write_bytes(tiff(packed, signed=False, bits=12).replace(entry, struct.pack("<HHII", 256, 4, 1, 4)))
    assert read(path).tolist() == [[0, 255, 128, 1]]


def test_a_colour_map_of_8_bits_is_that_of_16(tmp_path):
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    for scale in (1, 257):
        (tmp_path / "a.tif").write_bytes(tiff(indices, signed=False, colours=colours * scale))
        assert np.array_equal(read(tmp_path / "a.tif"), colours[indices])


def test_a_white_level_is_of_colours_not_of_alpha(tmp_path):
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[:2, :, :3] = 1
    mask[:, :3, 3] = 255
    found = read(written(tmp_path, Image.fromarray(mask)), white_level=1, background="black")
    assert (found[:2, :3] == 255).all() and not found[2:].any() and not found[:, 3].any()


def test_one_bit_is_black_or_white_whatever_the_white_level(tmp_path):
    path = written(tmp_path, Image.fromarray(RAMP > 100))
    assert np.array_equal(read(path, white_level=1), np.where(RAMP > 100, 255, 0))
