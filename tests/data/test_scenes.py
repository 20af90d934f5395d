"""Scenes of objects."""

import numpy as np
import pytest
import torch

from pplmodels.boxes import INK, bounding_boxes
from pplmodels.data import load_images, load_scenes, make_scenes, scene_set
from pplmodels.data.images import Images
from pplmodels.data.own_scenes import ink_extent
from pplmodels.errors import InputError

OPTIONS = {"canvas": 32, "object_size": 12.0, "seed": 3}


@pytest.fixture(scope="module")
def objects():
    return load_images("digits").train


def test_deterministic_in_the_seed(objects):
    first, same, other = (make_scenes(objects, 200, **{**OPTIONS, "seed": seed}) for seed in (3, 3, 4))
    assert torch.equal(first.pixels, same.pixels) and torch.equal(first.counts, same.counts)
    assert not torch.equal(first.pixels, other.pixels)


def test_counts_are_even_and_empty_scenes_black(objects):
    scenes = make_scenes(objects, 3000, **OPTIONS)
    shares = scenes.counts.bincount() / 3000
    assert ((shares - 1 / 3).abs() < 4 * (2 / 9 / 3000) ** 0.5).all()
    brightness = scenes.pixels.flatten(1).amax(1)
    assert torch.equal(brightness > 0, scenes.counts > 0)


def test_each_object_is_there_whole_and_none_overlaps():
    """Discs of one brightness: a scene's light is its count times that of one disc; nothing is cut or covered."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    disc = Images(((x**2 + y**2 < 0.8) * 255).byte()[None, None])
    scenes = make_scenes(disc, 500, canvas=64, counts=(1, 2, 3), object_size=16.0)
    assert scenes[:].amax() <= 1
    light = scenes[:].flatten(1).sum(1)
    one = light[scenes.counts == 1].mean()
    # the size has a deviation of 1/13, so the area of a disc has one of 2/13, and of n discs at most sqrt(n) times that
    per_object = light / scenes.counts / one
    assert (per_object - 1).abs().max() < 2 * 2.2 / 13 * 1.2
    for n in (2, 3):
        assert light[scenes.counts == n].mean() == pytest.approx(float(n * one), rel=0.03)


def test_a_box_is_the_extent_of_an_objects_ink(objects):
    scenes = make_scenes(objects, 400, **OPTIONS)
    assert scenes.boxes.shape == (400, 2, 4) and scenes.boxes.dtype == torch.float32
    assert torch.equal(scenes.boxes.isfinite().all(-1).sum(1), scenes.counts)
    ink = scenes.pixels.amax(1) > INK
    single = scenes.counts == 1
    assert torch.equal(scenes.boxes[single, 0], bounding_boxes(ink[single]))
    at = torch.arange(32) + 0.5
    left, top, right, bottom = (edge[..., None] for edge in scenes.boxes.nan_to_num(0).unbind(-1))  # (N, 2, 1)
    inside = ((at > left) & (at < right))[:, :, None, :] & ((at > top) & (at < bottom))[:, :, :, None]
    assert not (ink & ~inside.any(1)).any()  # all ink is in a box
    for edge in (inside.float().amax(-1), inside.float().amax(-2)):
        assert edge[scenes.counts == 2].amax(-1).all()


def test_each_of_several_objects_has_its_box():
    """Bright squares that fill their image: the ink of a scene is exactly its boxes, which do not touch."""
    square = Images(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))
    scenes = make_scenes(square, 300, canvas=40, counts=(0, 3), object_size=8.0, seed=1)
    assert scenes.boxes.shape == (300, 3, 4)
    drawn = torch.zeros(300, 40, 40, dtype=torch.bool)
    for scene, boxes in zip(drawn, scenes.boxes, strict=True):
        for left, top, right, bottom in boxes[boxes.isfinite().all(-1)].long().tolist():
            scene[top:bottom, left:right] = True
    corners = (drawn != (scenes.pixels.amax(1) > INK)).flatten(1).sum(1)
    assert (corners <= 4 * scenes.counts).all()  # blurred corners of a square may be too dark
    assert drawn.flatten(1).sum(1)[scenes.counts == 3].min() > 3 * 40


def test_the_boxes_of_scenes_that_are_begun_again_are_those_of_the_last_attempt():
    """Six squares rarely fit at the first attempt."""
    square = Images(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))
    scenes = make_scenes(square, 100, canvas=32, counts=(1, 6), object_size=9.0, seed=1)
    assert torch.equal(scenes.boxes.isfinite().all(-1).sum(1), scenes.counts)
    ink = scenes.pixels.amax(1) > 2 * INK + 1  # more than two blurred edges can have together outside of their boxes
    for scene, boxes in zip(ink, scenes.boxes, strict=True):
        for left, top, right, bottom in boxes[boxes.isfinite().all(-1)].long().tolist():
            scene[top:bottom, left:right] = False
    assert not ink.any()


def test_an_object_too_dark_to_be_seen_has_no_box():
    dark = Images(torch.full((1, 1, 8, 8), INK, dtype=torch.uint8))
    scenes = make_scenes(dark, 5, canvas=32, counts=(1,), object_size=12.0)
    assert scenes.boxes.isnan().all() and scenes.pixels.any()


def test_only_the_given_counts_appear(objects):
    scenes = make_scenes(objects, 300, counts=(0, 1, 3), **OPTIONS)
    assert scenes.counts.unique().tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "options", [{"canvas": 32, "object_size": 31.0}, {"canvas": 32, "object_size": 24.0, "counts": (6,)}], ids=str
)
def test_what_does_not_fit_is_refused(options):
    full = Images(torch.full((3, 1, 8, 8), 255, dtype=torch.uint8))
    with pytest.raises(InputError, match="do not fit on a canvas of 32x32 pixels"):
        make_scenes(full, 20, **options)


def test_held_out_scenes_are_made_of_held_out_objects(tmp_path):
    """Dark training objects, bright test objects: no scene of one set shows the other's."""
    path = tmp_path / "objects.npz"
    np.savez(path, x_train=np.full((3, 8, 8), 100, np.uint8), x_test=np.full((3, 8, 8), 200, np.uint8))
    scenes = scene_set(str(path), canvas=40, object_size=9.0, num_train=50, num_test=40)
    assert (len(scenes.train), len(scenes.test)) == (50, 40)
    assert [int(split.pixels.amax()) for split in (scenes.train, scenes.test)] == [100, 200]


def test_the_window_prior_fits_the_objects():
    loc, scale = scene_set("digits", num_train=2, num_test=2).window_prior()
    assert torch.tensor(loc[0]).exp() == pytest.approx(1.2 * 13 / 40)
    assert scale[1] == scale[2] == pytest.approx((1 - 13 / 40) / 3**0.5)


IMAGES = np.zeros((4, 6, 6), np.uint8)


@pytest.mark.parametrize("counts", [[0, 1, 2], [0.0, 1.0, 2.0, 1.0], [-1, 0, 1, 2]], ids=str)
def test_wrong_counts_of_ready_made_scenes_are_refused(tmp_path, counts):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=IMAGES, x_test=IMAGES, n_train=np.array(counts))
    with pytest.raises(InputError, match="n_train"):
        load_scenes(path)


def test_ready_made_scenes_keep_their_counts_where_they_have_them(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=IMAGES, x_test=IMAGES[:2], n_test=np.array([1, 0]))
    train, test = load_scenes(path)
    assert train.counts is None and test.counts.tolist() == [1, 0]


def test_ink_extent_is_the_bounding_box():
    pixels = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    pixels[0, 0, 2:6, 3:5] = 255  # 4 of 10
    pixels[1, 0, 0, 1:9] = 255  # 8 of 10
    assert ink_extent(Images(pixels)) == pytest.approx(0.6)
