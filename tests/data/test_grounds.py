"""The background of scenes and the objects on it, for scenes drawn with a known answer."""

import numpy as np
import pytest
import torch

from pplmodels.data.generated.grounds import make_grounds
from pplmodels.data.grounds import eight_bits, foreground, ground_of, smooth_background
from pplmodels.data.images import Images
from pplmodels.data.own_scenes import find_objects

CANVAS = 48
Y, X = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j]
KINDS = {
    "black": "black",
    "constant": "common",
    "graded": "common",
    "textured": "common",
    "levels": "varying",
    "slopes": "varying",
    "lighting": "varying",
    "photographs": "varying",
}


def texture(rng, shape, width):
    """Noise of unit variance, smoothed by a Gaussian of ``width`` pixels on a torus."""
    rows, columns = np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])
    gain = np.exp(-2 * (np.pi * width) ** 2 * (rows**2 + columns**2))
    smooth = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * gain, s=shape[-2:])
    return smooth / smooth.std()


def backgrounds(name, number, channels, rng):
    """Intensities that broadcast to ``(number, channels, CANVAS, CANVAS)``."""
    if name == "black":
        return 0.0
    if name == "constant":
        return np.linspace(0.35, 0.55, channels)[:, None, None]
    if name == "graded":
        return 0.5 + 0.2 * X + 0.1 * Y
    if name == "textured":
        return 0.5 + 0.08 * texture(rng, (channels, CANVAS, CANVAS), 1.5)
    if name == "levels":
        return rng.uniform(0.2, 0.7, (number, channels, 1, 1))
    if name == "slopes":
        level, right, down = rng.uniform((0.35, -0.15, -0.15), (0.6, 0.15, 0.15), (number, channels, 3)).T[
            ..., None, None
        ]
        return (level + right * X + down * Y).swapaxes(0, 1)
    if name == "lighting":  # one texture in all scenes, whose brightness differs
        return 0.45 + 0.06 * texture(rng, (channels, CANVAS, CANVAS), 1) + rng.uniform(-0.2, 0.2, (number, 1, 1, 1))
    parts = [(2, 0.03), (6, 0.06), (16, 0.12)]  # a falling spectrum, as that of photographs
    return 0.5 + sum(scale * texture(rng, (number, channels, CANVAS, CANVAS), width) for width, scale in parts)


def drawn(name, *, number=150, channels=1, noise=0.0, most=3, sides=(9, 12), disc=False, apart=2, seed=0):
    """Scenes of 0 to ``most`` squares or discs with ``apart`` pixels between them, and the sides of the objects."""
    rng = np.random.default_rng(seed)
    shape = (number, channels, CANVAS, CANVAS)
    scenes = np.broadcast_to(backgrounds(name, number, channels, rng), shape).copy()
    found, counts = [], np.zeros(number, int)
    for n, wanted in enumerate(rng.integers(0, most + 1, number)):
        taken = np.zeros((CANVAS + 2 * apart,) * 2, bool)
        for _ in range(1000):
            if counts[n] == wanted:
                break
            side = rng.integers(sides[0], sides[1] + 1)
            top, left = rng.integers(0, CANVAS - side + 1, 2)
            around = taken[top : top + side + 2 * apart, left : left + side + 2 * apart]
            if around.any():
                continue
            taken[top + apart : top + apart + side, left + apart : left + apart + side] = True
            offset = np.arange(side) - (side - 1) / 2
            inside = (offset[:, None] ** 2 + offset**2 <= side**2 / 4) if disc else np.ones((side, side), bool)
            part = scenes[n, :, top : top + side, left : left + side]
            contrast = rng.uniform(0.4, 0.5) if name != "black" else rng.uniform(0.7, 1)
            part[:, inside] += contrast * (1 if part[:, inside].mean() < 0.5 else -1)
            found.append(side)
            counts[n] += 1
    scenes += noise * rng.normal(size=shape)
    return Images(torch.from_numpy((255 * scenes.clip(0, 1)).round().astype(np.uint8))), np.array(found), counts


def agrees(images, sides, counts, more=0):
    """Objects found without counts: the median side is within 10 %, the maximum per scene right or too large by 1."""
    found = find_objects(images, ground_of(images))
    assert float(found.sides.median()) == pytest.approx(np.median(sides), rel=0.1)
    assert counts.max() <= found.most <= counts.max() + more


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.08])
@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "color"])
@pytest.mark.parametrize("name", KINDS)
def test_kind_noise_sides_and_maximum_are_found_on_any_background(name, channels, noise):
    photographs = name == "photographs"
    images, sides, counts = drawn(name, channels=channels, noise=noise)
    ground = ground_of(images)
    assert ground.kind == KINDS[name]
    assert ground.noise == pytest.approx(noise, rel=0.2, abs=0.01 if photographs else 0.005)
    assert ground.picture.shape == images.shape
    agrees(images, sides, counts, more=1 if photographs else 0)  # photographs have features as large as objects


@pytest.mark.parametrize("kind, patterns", [("grid", 8), ("graded", 9), ("constant", 0), ("noise", 0)])
def test_backgrounds_that_combine_few_pictures_are_explained_by_them(kind, patterns):
    """The lines of a grid have five offsets in each direction; a gradient has a level and two slopes per channel."""
    rng = np.random.default_rng(0)
    channels = 3 if kind == "graded" else 1
    grounds = make_grounds(kind, 400, CANVAS, np.array([[0.2] * channels, [0.6] * channels]), rng).pixels
    scenes = grounds.transpose(0, 3, 1, 2).copy()
    if kind == "noise":
        scenes += 0.1 * rng.normal(size=scenes.shape)
    for n, (top, left) in enumerate(rng.integers(0, CANVAS - 8, (300, 2))):
        scenes[n, :, top : top + 8, left : left + 8] = rng.uniform(0.5, 1, (channels, 1, 1))
    ground = ground_of(Images(torch.from_numpy((255 * scenes.clip(0, 1)).round().astype(np.uint8))))
    if not patterns:
        assert ground.patterns is None
        return
    assert len(ground.patterns) == patterns and f"as a combination of {patterns} pictures" in str(ground)
    rows = ground.patterns.flatten(1)
    gram = rows @ rows.T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-3 * float(gram.max()))
    empty = (torch.from_numpy(scenes[300:]).float() - ground.picture).flatten(1)
    left = empty - empty @ rows.T @ gram.inverse() @ rows
    crossings = 0.16**2 / (0.16**2 + 2 * 0.8**2 * 0.16)  # where lines cross they do not add up: 0.11 of the variance
    assert left.square().mean() < (1.1 * crossings if kind == "grid" else 0.01) * empty.square().mean()


@pytest.mark.parametrize("name", ["black", "textured", "slopes"])
@pytest.mark.parametrize("most, sides", [(1, (14, 20)), (9, (6, 8))], ids=["one large", "nine small"])
def test_the_number_of_objects_may_be_small_or_large(name, most, sides):
    agrees(*drawn(name, most=most, sides=sides, disc=True, noise=0.02))


@pytest.mark.parametrize("name", ["black", "constant", "levels"])
def test_touching_objects_are_a_minority_that_does_not_matter(name):
    images, sides, counts = drawn(name, apart=0)
    found = find_objects(images, ground_of(images))
    assert len(found.sides) < len(sides)  # some do touch
    agrees(images, sides, counts)


def test_known_counts_select_scenes_without_touching_objects():
    images, sides, counts = drawn("levels", apart=0, most=4)
    images = Images(images.pixels, torch.from_numpy(counts)).part(torch.from_numpy((counts != 1).nonzero()[0]))
    found = find_objects(images, ground_of(images))
    assert found.most == counts.max() and set(found.sides.tolist()) <= set(sides.tolist())


@pytest.mark.parametrize("name", KINDS)
def test_noise_far_from_a_single_object_does_not_widen_its_box(name):
    """The scenes with one object have a box around all its parts, but not around specks of noise."""
    images, sides, counts = drawn(name, most=1, noise=0.08)
    found = find_objects(Images(images.pixels, torch.from_numpy(counts)), ground_of(images))
    assert float(found.sides.median()) == pytest.approx(np.median(sides), rel=0.1)
    assert len(found.sides) >= 0.95 * len(sides)


def test_a_grid_with_a_random_offset_is_not_common():
    """Most pixels are black in each scene and in the median of all scenes."""
    rng = np.random.default_rng(0)
    at = np.arange(CANVAS)
    lines = (at + rng.integers(0, 5, (200, 1))) % 5 == 0
    grid = 100 * (lines[:, None] | lines[:, :, None])[:, None]
    for scenes, kind in ((grid + 10, "varying"), (np.broadcast_to(grid[:1], grid.shape) + 60, "common")):
        assert ground_of(Images(torch.from_numpy(scenes.astype(np.uint8)))).kind == kind


def test_black_scenes_without_noise_have_the_threshold_of_a_tenth():
    images, _, _ = drawn("black")
    pixels = images.pixels.clone()
    pixels[::2, :, 5:9, 5:9] = torch.arange(18, 34, dtype=torch.uint8).reshape(4, 4)  # on both sides of the threshold
    images = Images(pixels)
    expected = (pixels > 25).any(1).numpy()
    assert np.array_equal(foreground(eight_bits(images), ground_of(images)), expected)


def test_levels_that_differ_by_as_much_as_the_noise_are_not_the_same():
    """A mean of many pixels tells apart what no single pixel does; without differences, the noise alone stays."""
    rng = np.random.default_rng(0)
    noise, levels = 0.08 * rng.normal(size=(200, 1, 32, 32)), 0.08 * rng.normal(size=(200, 1, 1, 1))
    for scenes, kind in ((0.5 + noise, "common"), (0.5 + levels + noise, "varying")):
        images = Images(torch.from_numpy((255 * scenes.clip(0, 1)).round().astype(np.uint8)))
        assert ground_of(images).kind == kind


def test_a_polynomial_is_recovered_under_objects():
    """A quadratic surface, a quarter of which is covered: exact up to the weight that is left to the objects."""
    rng = np.random.default_rng(0)
    a = rng.uniform(-20, 20, (20, 2, 6, 1, 1))
    surface = (
        120 + a[:, :, 0] + a[:, :, 1] * X + a[:, :, 2] * Y + a[:, :, 3] * X * Y + a[:, :, 4] * X**2 + a[:, :, 5] * Y**2
    )
    covered = surface.copy()
    covered[:, :, 10:34, 20:44] += 90
    assert np.abs(smooth_background(covered) - surface).max() < 1
    least_squares = np.abs(covered - surface).mean()
    assert least_squares > 20  # what the objects are to a fit that is not robust


def test_the_scenes_that_are_examined_are_spread_over_the_data():
    """Sorted scenes: the last of them have another background."""
    pixels = torch.full((3000, 1, 6, 6), 60, dtype=torch.uint8)
    pixels[2000:] = 200
    pixels[1000:2000] = 130
    assert ground_of(Images(pixels)).kind == "varying"


@pytest.mark.parametrize("value", ["black", "gray", "noise"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (30, 3, 1, 1), (30, 1, 1, 7), (30, 1, 2, 3), (1, 1, 20, 20)], ids=str)
def test_tiny_and_single_scenes_have_a_background_and_no_objects(shape, value):
    rng = np.random.default_rng(0)
    levels = {"black": np.zeros(shape), "gray": np.full(shape, 99), "noise": rng.integers(0, 256, shape)}[value]
    images = Images(torch.from_numpy(levels.astype(np.uint8)))
    ground = ground_of(images)
    assert np.isfinite([ground.level, ground.noise]).all() and ground.picture.shape == shape[1:]
    assert find_objects(images, ground) is None
