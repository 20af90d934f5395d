"""Scenes that users bring: true boxes, the size of the objects, the ground."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pplmodels.data import load_images, load_scenes, make_scenes, scene_set
from pplmodels.data.own_scenes import ink_extent, object_sides
from pplmodels.errors import InputError

SIDES = (9, 12)  # of squares, evenly


def squares(number=400, ground=0, canvas=48, seed=0):
    """Scenes of 0 to 2 squares that do not touch, their counts and boxes."""
    rng = np.random.default_rng(seed)
    scenes = np.full((number, canvas, canvas), ground, np.uint8)
    counts = rng.integers(0, 3, number)
    boxes = np.full((number, 2, 4), np.nan)
    for scene, count in enumerate(counts):
        for k in range(count):
            side = rng.choice(SIDES)
            left, top = rng.integers(k * 24, k * 24 + 24 - side - 1), rng.integers(0, canvas - side)
            scenes[scene, top : top + side, left : left + side] = 255
            boxes[scene, k] = left, top, left + side, top + side
    return scenes, counts, boxes


SCENES, COUNTS, BOXES = squares()


def saved(tmp_path, **changed):
    arrays = {f"x_{split}": SCENES for split in ("train", "test")}
    arrays |= {
        f"{kind}_{split}": value for split in ("train", "test") for kind, value in (("n", COUNTS), ("boxes", BOXES))
    }
    arrays = {name: value for name, value in {**arrays, **changed}.items() if value is not None}
    np.savez_compressed(tmp_path / "scenes.npz", **arrays)
    return tmp_path / "scenes.npz"


def test_true_boxes_are_read(tmp_path):
    train, test = load_scenes(saved(tmp_path))
    assert train.boxes.dtype == torch.float32 and train.boxes.shape == (400, 2, 4)
    assert torch.equal(train.boxes.nan_to_num(-1), torch.from_numpy(BOXES).float().nan_to_num(-1))
    assert torch.equal(test.head(5).boxes.isnan().all(-1).sum(-1), 2 - test.head(5).counts)


def test_boxes_alone_say_the_counts(tmp_path):
    train, _ = load_scenes(saved(tmp_path, n_train=None, n_test=None))
    assert np.array_equal(train.counts.numpy(), COUNTS)


def changed_boxes(row, value):
    boxes = BOXES.copy()
    boxes[(COUNTS == 1).argmax(), row] = value
    return boxes


@pytest.mark.parametrize(
    "boxes, sentence",
    [
        (BOXES[:10], r"has shape \(10, 2, 4\) and type float64, not shape \(400, K, 4\)"),
        (BOXES[..., :3], r"not shape \(400, K, 4\)"),
        (BOXES.astype(str), r"not shape \(400, K, 4\)"),
        (changed_boxes(0, np.nan), r"has 0 boxes for scene \d+, but n_train has a count of 1"),
        (changed_boxes(1, (1, 1, 3, 3)), r"has 2 boxes for scene \d+, but n_train has a count of 1"),
        (changed_boxes(0, (5, 1, 3, 3)), "left < right and top < bottom"),
        (changed_boxes(0, (5, 1, 49, 3)), "inside images of 48x48"),
        (changed_boxes(0, (5, 1, np.nan, 3)), "left < right and top < bottom"),
        (BOXES / 48, "has boxes in fractions of the image"),
    ],
    ids=["length", "coordinates", "text", "missing", "too many", "order", "outside", "NaN", "fractions"],
)
def test_wrong_boxes_get_one_sentence(tmp_path, boxes, sentence):
    with pytest.raises(InputError, match=sentence):
        load_scenes(saved(tmp_path, boxes_train=boxes))


@pytest.mark.parametrize("ground", [0, 90], ids=["black", "grey"])
@pytest.mark.parametrize("known", ["boxes", "counts", "nothing", "no single objects"])
def test_the_sides_of_objects_are_seen(tmp_path, known, ground):
    scenes, counts, _ = squares(ground=ground)
    path = saved(tmp_path, x_train=scenes)
    train, _ = load_scenes(path)
    if known != "boxes":
        train = replace(train, boxes=None, counts=None if known == "nothing" else train.counts)
    if known == "no single objects":
        train = train.part((train.counts != 1).nonzero().squeeze(1))
    sides = object_sides(train)
    assert set(sides.tolist()) == set(SIDES)
    if known != "counts":
        assert len(sides) == (counts[counts != 1] if known == "no single objects" else counts).sum()


@pytest.mark.parametrize("scenes", ["noise", "black", "white"])
def test_what_shows_no_objects_has_no_sides(tmp_path, scenes):
    rng = np.random.default_rng(0)
    content = {
        "noise": rng.integers(0, 256, (50, 20, 20)),
        "black": np.zeros((50, 20, 20)),
        "white": np.full((50, 20, 20), 255),
    }
    path = saved(tmp_path, **{f"x_{h}": content[scenes].astype(np.uint8) for h in ("train", "test")}, **NOTHING_KNOWN)
    train, _ = load_scenes(path)
    assert object_sides(train) is None


NOTHING_KNOWN = {f"{kind}_{split}": None for kind in ("n", "boxes") for split in ("train", "test")}


def test_scenes_that_the_library_made_are_measured_as_they_were_made():
    digits = load_images("digits").train
    scenes = make_scenes(digits, 2000, canvas=40, object_size=13.0)
    middle = object_sides(scenes).median()
    assert middle == pytest.approx(13.0 * ink_extent(digits), abs=1)  # a blurred edge on either side


def test_a_set_of_own_scenes_takes_their_size_says_so_and_can_be_told(tmp_path, capsys):
    path = saved(tmp_path)
    found = scene_set(path, ready_made=True)
    assert found.object_side in SIDES and found.spread == pytest.approx(np.log(12 / 9) / 2)
    assert "the prior's object size is 12 pixels" in capsys.readouterr().err
    told = scene_set(path, ready_made=True, object_size=20.0, object_spread=0.1)
    assert (told.object_side, told.spread) == (20.0, 0.1)
    assert told.window_prior()[1][0] == 0.1


@pytest.mark.parametrize(
    "shade, sentence",
    [
        (0, "the background of the scenes is black (level 0.00, pixel noise 0.00): none is learned"),
        (90, "all scenes have the same background (level 0.35, pixel noise 0.00): one background for all scenes"),
        (None, "the background varies from scene to scene (level 0.20, pixel noise 0.00): a background per scene"),
    ],
    ids=["black", "gray", "varying"],
)
def test_the_background_is_said_and_kept(tmp_path, capsys, shade, sentence):
    scenes = squares(ground=shade or 0)[0]
    if shade is None:
        scenes = np.maximum(scenes, np.arange(400)[:, None, None] % 100).astype(np.uint8)
    found = scene_set(saved(tmp_path, x_train=scenes, **NOTHING_KNOWN), ready_made=True)
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if "(--background-model)" in line]
    assert sentence in str(found.ground) and said == ([] if shade == 0 else [str(found.ground)])  # black is usual
    assert found.most == 2
    assert found.window == 18  # 1.2 * 12 pixels * (1 + 0.144) = 16.5, and even


def single(value, shape=(40, 20, 20)):
    return np.full(shape, value, np.uint8)


def with_square(large):
    """Scenes of a square of that side in a corner, or of more than a scene."""
    scenes = single(0)
    scenes[::2, :large, :large] = 200
    return scenes


@pytest.mark.parametrize(
    "scenes",
    [
        single(0),
        single(140),
        np.broadcast_to(np.arange(20, dtype=np.uint8) * 9, (40, 20, 20)),
        np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 20, 20), np.uint8) * 5,
        with_square(20),
        with_square(19),
        single(0, (1, 20, 20)),
        single(200, (1, 20, 20)),
        single(7, (40, 1, 1)),
        single(70, (40, 1, 1)),
    ],
    ids=[
        "black",
        "gray",
        "all equal",
        "empty",
        "as large as scenes",
        "larger than objects",
        "one",
        "one gray",
        "black pixel",
        "gray pixel",
    ],
)
def test_scenes_without_measurable_objects_get_the_defaults_and_a_sentence(tmp_path, capsys, scenes):
    path = saved(tmp_path, x_train=scenes, x_test=scenes, **NOTHING_KNOWN)
    found = scene_set(path, ready_made=True)
    assert "the object size cannot be estimated from the scenes" in capsys.readouterr().err
    assert found.object_side == pytest.approx(0.4 * scenes.shape[1]) and found.most is None
    assert 8 <= found.window <= 28 and found.window % 2 == 0


def test_composed_scenes_have_a_black_background_and_objects_on_paper_are_said(tmp_path, capsys):
    paper = np.full((30, 8, 8), 255, np.uint8)
    paper[:, 2:6, 3:5] = 20
    for name, images, warned in (("paper", paper, True), ("ink", 255 - paper, False)):
        np.savez(tmp_path / f"{name}.npz", x_train=images, x_test=images)
        scenes = scene_set(tmp_path / f"{name}.npz", num_train=4, num_test=4, counts=(0, 1))
        assert ("not black at their edges (level 1.00)" in capsys.readouterr().err) == warned
        assert scenes.ground.kind == "black" and scenes.most is None
