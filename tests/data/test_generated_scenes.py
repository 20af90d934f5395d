"""Generated scenes: their boxes, counts and colors are what is said of them."""

import sys

import numpy as np
import pytest
import torch

from pplmodels.data import load_scenes
from pplmodels.data.generated import PRESETS, generate_scenes, scene_arrays
from pplmodels.data.generated.coins import BORDER, cut_coins, load_coins
from pplmodels.data.generated.grounds import GROUNDS, Grounds, add_noise, ground_colours, make_grounds
from pplmodels.data.generated.objects import SHAPES, extents, render, shape_templates
from pplmodels.data.generated.scenes import DrawnScenes, Objects, draw, sample_objects, segment_distance
from pplmodels.errors import InputError

SHAPED = [name for name in PRESETS if name.startswith("shapes")]
# MNIST is not there when tests run
OFFLINE = {name: {"objects": "digits"} if name.startswith("digits") else {} for name in PRESETS}


def sampled(options, number=60, templates=None):
    """Grounds and objects of scenes."""
    rng = np.random.default_rng(0)
    palette = ground_colours(2, options.channels, rng)
    grounds = make_grounds(options.ground, number, options.canvas, palette, rng)
    return grounds, sample_objects(options, shape_templates() if templates is None else templates, grounds, rng)


def without(objects, slot):
    """The same objects, except for the one that each scene draws at ``slot``."""
    index = objects.index.copy()
    index[:, slot] = -1
    return Objects(index, objects.opacities, objects.origins, objects.colours)


def contrasts(grounds, objects):
    """The distance of each object's color from the colors of its ground."""
    scene = np.nonzero(objects.index >= 0)[0]
    return segment_distance(objects.colours, grounds.ends[scene])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_file_of_a_preset_can_be_loaded(preset, tmp_path):
    train, test = generate_scenes(preset, 30, 20, **OFFLINE[preset])
    np.savez(tmp_path / "scenes.npz", **scene_arrays(train, test))
    for made, read in zip((train, test), load_scenes(tmp_path / "scenes.npz"), strict=True):
        assert torch.equal(made.pixels, read.pixels) and torch.equal(made.counts, read.counts)
        assert torch.equal(made.boxes.nan_to_num(-1), read.boxes.nan_to_num(-1))
    assert len(train) == 30 and len(test) == 20
    assert train.shape == (3 if preset in SHAPED else 1, PRESETS[preset].canvas, PRESETS[preset].canvas)


@pytest.mark.parametrize("preset", ["shapes-textured", "shapes-noise", "shapes-overlap", "digits-grid", "coins"])
def test_scenes_are_deterministic_in_the_seed_and_parts_differ(preset):
    train, test = generate_scenes(preset, 20, 20, **OFFLINE[preset])
    again, _ = generate_scenes(preset, 20, 20, **OFFLINE[preset])
    other, _ = generate_scenes(preset, 20, 20, seed=1, **OFFLINE[preset])
    assert torch.equal(train.pixels, again.pixels) and torch.equal(train.counts, again.counts)
    assert torch.equal(train.boxes.nan_to_num(-1), again.boxes.nan_to_num(-1))
    for different in (test, other):
        assert not torch.equal(train.counts, different.counts)
        assert not torch.equal(train.pixels, different.pixels)


def test_the_ground_of_a_dataset_is_the_same_in_both_parts():
    train, test = generate_scenes("shapes-constant", 20, 20, counts=(0,))
    assert train.pixels.flatten(2).unique(dim=-1).unique(dim=0).shape == (1, 3, 1)
    assert torch.equal(train.pixels, test.pixels)
    assert train.boxes.shape == (20, 0, 4)


@pytest.mark.parametrize("options", [PRESETS["shapes-graded"], PRESETS["shapes-overlap"]], ids=["apart", "overlap"])
def test_boxes_are_the_extents_of_what_an_object_changes(options):
    grounds, objects = sampled(options)
    compared = 0
    for slot in range(objects.index.shape[1]):
        # over a ground of the opposite color in each channel, so that a change is at least half of the opacity
        there = np.flatnonzero(objects.index[:, slot] >= 0)
        colours = objects.colours[objects.index[there, slot]]
        pixels = np.zeros_like(grounds.pixels)
        pixels[there] = (colours < 0.5)[:, None, None]
        opposite = Grounds(pixels, grounds.ends)
        alone = objects.index.copy()
        alone[:, np.arange(alone.shape[1]) != slot] = -1
        alone = Objects(alone, objects.opacities, objects.origins, objects.colours)
        change = np.abs(draw(opposite, alone) - draw(opposite, without(alone, slot)))[there]
        most = np.abs(colours - pixels[there, 0, 0])
        opacity = (change / most[:, None, None]).mean(-1)
        assert np.array_equal(extents(opacity, 0.1), objects.boxes[there, slot])
        compared += len(there)
    assert compared > 60


def test_boxes_hold_everything_in_the_complete_scene_that_an_object_changes():
    grounds, objects = sampled(PRESETS["shapes-textured"])
    scenes = draw(grounds, objects)
    for slot in range(3):
        change = np.abs(scenes - draw(grounds, without(objects, slot))).max(-1)
        for scene in np.flatnonzero(objects.index[:, slot] >= 0):
            left, top, right, bottom = objects.boxes[scene, slot].astype(int)
            inside = np.zeros_like(change[scene], bool)
            inside[top:bottom, left:right] = True
            assert change[scene][inside].max() > 0.1
            assert change[scene][~inside].max() <= 0.1  # a change is at most the opacity


def test_counts_are_uniform():
    number = 4000
    train, _ = generate_scenes("shapes-black", number, 10, counts=(0, 2, 3))
    shares = torch.bincount(train.counts, minlength=4) / number
    assert (train.boxes.isfinite().all(-1).sum(-1) == train.counts).all()
    assert shares[1] == 0
    error = (2 / 9 / number) ** 0.5  # the standard deviation of a share of 1/3
    assert ((shares[[0, 2, 3]] - 1 / 3).abs() < 5 * error).all()


def test_sides_have_the_mean_and_the_deviation():
    options = DrawnScenes(canvas=64, object_size=20, counts=(1,))
    _, squares = sampled(options, 1500, templates=shape_templates()[:1])
    sides = squares.opacities.sum((1, 2)) ** 0.5
    assert len(sides) == 1500
    error = 0.08 / 1500**0.5
    assert abs(sides.mean() / 20 - 1) < 5 * error
    truncated = 0.08 * 0.9594  # of a normal distribution whose values are limited to two deviations
    assert abs(sides.std() / 20 - truncated) < 5 * error  # the error of a deviation is smaller than that of a mean


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_a_shape_keeps_its_area_between_pixels(shape):
    template = shape_templates()
    phases = np.random.default_rng(0).random((50, 2))
    drawn = render(template, np.full(50, shape), np.full(50, 11.3), phases, 13)
    assert np.allclose(drawn.sum((1, 2)), 11.3**2 * template[shape].mean(), rtol=2e-3)  # small opacities are dropped
    exact = {"square": 1, "disc": np.pi / 4, "triangle": 0.5}
    if SHAPES[shape] in exact:
        assert np.isclose(template[shape].mean(), exact[SHAPES[shape]], rtol=5e-3)
    assert all((np.array([line[0], line[-1]]) > 0).all() for line in (template[shape].max(0), template[shape].max(1)))


def test_a_square_between_pixels_covers_fractions_of_them():
    drawn = render(shape_templates(), np.zeros(1, int), np.array([2.0]), np.array([[0.25, 0.5]]), 4)[0]
    assert np.allclose(drawn, np.outer([0.5, 1, 0.5, 0], [0.75, 1, 0.25, 0]), atol=1e-6)


@pytest.mark.parametrize("grey", [False, True], ids=["color", "gray"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_objects_differ_from_every_pixel_of_their_ground(ground, grey):
    options = DrawnScenes(ground=ground, grey=grey, counts=(1, 2))
    grounds, objects = sampled(options, 200)
    assert contrasts(grounds, objects).min() >= 0.3 - 1e-6
    scene = np.nonzero(objects.index >= 0)[0]
    distance = np.linalg.norm(grounds.pixels[scene] - objects.colours[:, None, None], axis=-1)
    assert distance.min() >= 0.3 - 1e-5
    assert grounds.pixels.min() >= 0 and grounds.pixels.max() <= (0.5 if grey else 1)


def test_colors_are_saturated():
    _, objects = sampled(PRESETS["shapes-black"], 400)
    brightest, darkest = objects.colours.max(1), objects.colours.min(1)
    assert brightest.min() >= 0.7 - 1e-6 and (1 - darkest / brightest).min() >= 0.6 - 1e-6
    assert np.bincount(objects.colours.argmax(1)).min() > 100  # all hues


def test_objects_that_may_not_overlap_share_no_pixel():
    _, objects = sampled(PRESETS["shapes-9"], 40)
    edges = extents(objects.opacities, 0) + np.tile(objects.origins, 2)
    assert edges.min() >= 0 and edges.max() <= 96
    for line in objects.index:
        covered = np.zeros((96, 96), int)
        for left, top, right, bottom in edges[line[line >= 0]]:
            covered[max(top - 1, 0) : bottom, max(left - 1, 0) : right] += 1
        # extents that are widened by a pixel to the left and top do not overlap, so there is a pixel between them
        assert covered.max(initial=0) <= 1


def test_half_of_each_overlapping_object_is_visible():
    _, objects = sampled(PRESETS["shapes-overlap"], 150)
    covered = 0
    for line in objects.index:
        line = line[line >= 0]
        canvas = np.zeros((len(line), 48 + 80, 48 + 80))
        size = objects.opacities.shape[1]
        for layer, number in zip(canvas, line, strict=True):
            x, y = objects.origins[number] + 40
            layer[y : y + size, x : x + size] = objects.opacities[number]
        for k in range(len(line)):
            visible = (canvas[k] * np.prod(1 - canvas[k + 1 :], axis=0)).sum() / canvas[k].sum()
            assert visible >= 0.5 - 1e-5
            covered += visible < 0.9
        colours = objects.colours[line]
        distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        assert (distance[np.triu_indices(len(line), 1)] >= 0.3 - 1e-6).all()
    assert covered > 20


def test_gradients_and_textures_reach_both_of_their_colors():
    rng = np.random.default_rng(0)
    for kind in ("graded", "textured"):
        grounds = make_grounds(kind, 20, 24, np.zeros((2, 3), np.float32), rng)
        flat = grounds.pixels.reshape(20, -1, 1, 3)
        assert np.abs(flat - grounds.ends[:, None]).sum(-1).min(1).max() < 1e-5
    graded = make_grounds("graded", 20, 24, np.zeros((2, 1), np.float32), rng).pixels[..., 0]
    assert np.abs(np.diff(graded, 2, axis=1)).max() < 1e-5 and np.abs(np.diff(graded, 2, axis=2)).max() < 1e-5


def test_a_gray_grid_and_gray_noise_are_those_of_supair():
    rng = np.random.default_rng(0)
    grid = make_grounds("grid", 40, 50, np.ones((2, 1), np.float32), rng).pixels[..., 0]
    assert np.isclose(np.unique(grid), [0, 0.4]).all()
    assert np.allclose((grid > 0).mean((1, 2)), 1 - 0.8**2)  # every fifth row and column
    black = make_grounds("noise", 40, 50, np.ones((2, 1), np.float32), rng).pixels
    assert not black.any()
    values = add_noise(0.5 + black, 0.1, rng)
    assert abs(values.mean() - 0.5) < 5 * 0.1 / values.size**0.5
    assert abs(values.std() - 0.1) < 5 * 0.1 / (2 * values.size) ** 0.5
    assert add_noise(black, 0.2, rng).min() == 0


def test_the_coins_are_24_in_4_rows_of_6():
    photograph = load_coins()
    assert photograph.coins.max() == 24
    centres = []
    for coin in range(1, 25):
        rows, columns = np.nonzero(photograph.coins == coin)
        assert 1000 < len(rows) < 4000
        assert len(rows) / (np.ptp(rows) + 1) / (np.ptp(columns) + 1) > 0.7  # of its box; a disc has 0.785
        centres.append((rows.mean(), columns.mean(), rows.min(), rows.max()))
    by_row = np.array(sorted(centres)).reshape(4, 6, 4)
    assert (np.diff([line[:, 0].mean() for line in by_row]) > 50).all()
    assert all(np.ptp(line[:, 0]) < 35 and np.diff(np.sort(line[:, 1])).min() > 35 for line in by_row)
    assert by_row[1, :, 3].max() < BORDER <= by_row[2, :, 2].min()  # no coin is in both parts


def test_the_ground_below_coins_continues_the_ground_around_them():
    photograph = load_coins()
    painted = photograph.around > 0
    assert np.array_equal(photograph.empty[~painted], photograph.photo[~painted])
    near = ~painted & (np.roll(painted, 6, 0) | np.roll(painted, -6, 0))
    inside = painted & (np.roll(~painted, 6, 0) | np.roll(~painted, -6, 0))
    assert abs(photograph.empty[inside].mean() - photograph.photo[near].mean()) < 3  # coins are brighter by 70 levels
    assert photograph.photo[photograph.coins > 0].mean() - photograph.photo[near].mean() > 50


def test_boxes_of_coins_are_inside_and_around_what_is_brighter():
    train, test = generate_scenes("coins", 200, 100)
    for part in (train, test):
        used = part.boxes[part.boxes.isfinite().all(-1)]
        assert used.min() >= 0 and used.max() <= 48 and (used[:, 2:] - used[:, :2]).min() > 8
        assert torch.equal(part.boxes.isfinite().all(-1).sum(-1), part.counts)
        assert torch.equal(part.boxes[..., 0].isnan().sort(-1).values, part.boxes[..., 0].isnan())  # NaN at the end
        for pixels, boxes in zip(part.pixels[:, 0].float(), part.boxes, strict=True):
            inside = torch.zeros(48, 48, dtype=torch.bool)
            for left, top, right, bottom in boxes[boxes[:, 0].isfinite()].round().int():
                inside[top:bottom, left:right] = True
            assert pixels[inside].mean() > pixels[~inside].mean() + 20


def test_coins_that_are_mostly_outside_are_painted_over():
    photograph = load_coins()
    # a crop whose upper left corner is the center of a coin has about a quarter of it
    coin = photograph.coins[55, 45]  # the first of the first row
    rows, columns = np.nonzero(photograph.coins == coin)
    row, column = int(rows.mean()), int(columns.mean())

    class Corner:
        """In place of random numbers: the crop at this corner, not mirrored."""

        def __init__(self):
            self.values = iter([row, column, np.zeros((2, 1, 1), int)])

        def integers(self, *_, size):
            return np.broadcast_to(next(self.values), size)

    scenes, counts, boxes = cut_coins(photograph, 1, 48, Corner())
    seen = photograph.coins[row : row + 96, column : column + 96]
    total, visible = np.bincount(photograph.coins.ravel()), np.bincount(seen.ravel(), minlength=25)
    whole = (2 * visible >= total).nonzero()[0]
    assert coin and 0 < visible[coin] < total[coin] / 2
    assert counts[0] == len(whole[whole > 0]) and boxes.shape == (1, counts[0], 4)
    corner = scenes[0, :8, :8, 0]
    assert abs(corner.mean() - photograph.empty[row : row + 16, column : column + 16].mean()) < 1
    assert photograph.photo[row : row + 16, column : column + 16].mean() - corner.mean() > 20


@pytest.mark.parametrize(
    "preset, changes, sentence",
    [
        ("cubes", {}, "there are no scenes 'cubes': choose shapes-black"),
        ("coins", {"counts": (1,)}, "--counts does not apply to coins"),
        ("digits-5", {"grey": True}, "--grey does not apply to digits-5"),
        ("shapes-9", {"objects": "digits"}, "--objects does not apply to shapes-9"),
        ("shapes-9", {"noise": 1.0}, "--noise does not apply to shapes-9"),
        ("shapes-9", {"ground": "sand"}, "there is no ground 'sand'"),
        ("shapes-9", {"counts": ()}, "counts are one or more integers"),
        ("shapes-9", {"grey": True, "overlap": True}, "--overlap does not apply to gray shapes"),
        ("shapes-black", {"canvas": 13}, r"objects of 12 pixels \(up to 116%\) do not fit on a canvas of 13x13"),
        ("shapes-black", {"counts": (12,)}, "12 objects of 12 pixels do not fit on a canvas of 48x48 pixels without"),
        ("coins", {"canvas": 76}, "--canvas must be at most 75 for coins"),
        ("digits-5", {"objects": "cifar"}, "there is no dataset 'cifar'"),
    ],
)
def test_scenes_that_cannot_be_made_get_one_sentence(preset, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        generate_scenes(preset, 4, 4, **changes)


def test_objects_without_contrast_or_in_color_are_refused(tmp_path):
    dark = np.full((20, 8, 8), 100, np.uint8)
    colour = np.zeros((20, 8, 8, 3), np.uint8)
    colour[:, 2:6, 2:6, 0] = 255
    dark[0, 0, 0] = 101
    for images, sentence in ((dark, "are darker than one half"), (colour, "must be gray images")):
        np.savez(tmp_path / "objects.npz", x_train=images, x_test=images[::-1])
        with pytest.raises(InputError, match=sentence):
            generate_scenes("digits-5", 4, 4, objects=str(tmp_path / "objects.npz"))


def test_without_scikit_image_coins_get_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InputError, match="scikit-image, which is not installed: pip install scikit-image"):
        generate_scenes("coins", 4, 4)
