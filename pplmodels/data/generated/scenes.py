"""Generated scenes of several objects on various backgrounds, with true counts and bounding boxes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from pplmodels.data.datasets import load_images
from pplmodels.data.generated.coins import BORDER, cut_coins, load_coins
from pplmodels.data.generated.grounds import GROUNDS, Grounds, add_noise, ground_colours, make_grounds
from pplmodels.data.generated.objects import extents, image_templates, render, shape_templates
from pplmodels.data.images import Images
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError

CHUNK = 500  # number of scenes generated at once
DEVIATION = 0.08  # relative standard deviation of sides
MOST = 2  # largest deviation of a side, in standard deviations
CONTRAST = 0.3  # smallest distance of an object's color from the colors of the ground, in RGB from 0 to 1
SATURATION, VALUE = (0.6, 1.0), (0.7, 1.0)  # ranges of the colors of objects (HSV)
GAP = 1  # smallest distance in pixels of two objects that do not overlap
SHOWN = 0.5  # smallest visible fraction of an object that others overlap
BOX_LEVEL = 0.1  # pixels of at least this opacity are in an object's box
TRIES = 100  # positions tried for one object before its scene is restarted
RESTARTS = 50  # restarts of a scene before an error is raised
COLOURS = 1000  # colors tried for one object before an error is raised

Cut = tuple[np.ndarray, np.ndarray, np.ndarray]  # scenes (N, H, W, C), counts (N) and boxes (N, K, 4)


@dataclass(frozen=True)
class DrawnScenes:
    """The options of scenes of objects that are drawn over a ground.

    Arguments:
        objects: ``shapes``, or images in the form of :func:`pplmodels.data.load_images` (white on black).
        canvas: side of the scenes in pixels.
        object_size: mean side of a shape, or of the frame of an image, in pixels.
        counts: possible numbers of objects, which are equally likely.
        ground: one of :data:`GROUNDS`.
        grey: gray shapes on gray ground; images are always gray.
        overlap: whether objects may overlap.
        noise: standard deviation of the ground ``noise``.
    """

    objects: str = "shapes"
    canvas: int = 48
    object_size: float = 12.0
    counts: tuple[int, ...] = (0, 1, 2, 3)
    ground: str = "constant"
    grey: bool = False
    overlap: bool = False
    noise: float = 0.1

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that may be changed."""
        shared = ("canvas", "object_size", "counts", "ground", "overlap")
        return (*shared, "grey") if self.objects == "shapes" else (*shared, "objects")

    @property
    def channels(self) -> int:
        """The number of channels of the scenes."""
        return 3 if self.objects == "shapes" and not self.grey else 1


@dataclass(frozen=True)
class CoinScenes:
    """The options of scenes that are cut from a photograph of coins (:mod:`pplmodels.data.generated.coins`)."""

    canvas: int = 48

    options: ClassVar[tuple[str, ...]] = ("canvas",)


_DIGITS = DrawnScenes("mnist", canvas=50, object_size=28 / 1.3, counts=(0, 1, 2), noise=0.2)
PRESETS: dict[str, DrawnScenes | CoinScenes] = {
    "shapes-black": DrawnScenes(ground="black"),
    "shapes-constant": DrawnScenes(),
    "shapes-graded": DrawnScenes(ground="graded"),
    "shapes-textured": DrawnScenes(ground="textured"),
    "shapes-noise": DrawnScenes(ground="noise"),
    "shapes-overlap": DrawnScenes(overlap=True, object_size=16),
    "shapes-9": DrawnScenes(canvas=96, object_size=10, counts=tuple(range(10))),
    "digits-noise": replace(_DIGITS, ground="noise"),
    "digits-grid": replace(_DIGITS, ground="grid"),
    "digits-5": replace(_DIGITS, ground="black", canvas=64, object_size=16, counts=tuple(range(6))),
    "coins": CoinScenes(),
}


@float32_on_cpu()
def generate_scenes(
    preset: str,
    num_train: int = 20_000,
    num_test: int = 5_000,
    *,
    seed: int = 0,
    data_dir: str | Path = "data",
    **changes: Any,
) -> tuple[Images, Images]:
    """Training and held-out scenes with counts and boxes, deterministic in ``seed``.

    ``preset`` is one of :data:`PRESETS`, and ``changes`` replace some of its options (:class:`DrawnScenes`).
    ``data_dir`` is the folder of MNIST. Training and held-out scenes come from different random streams and, if the
    objects are images or coins, have different objects. They share the colors of a ground that is the same in all
    scenes.

    Drawn objects are anti-aliased and inside the canvas, and their sides have a relative standard deviation of 8 %.
    Shapes have saturated random colors (HSV, with saturations above 0.6 and values above 0.7) or random gray levels,
    whose distance in RGB from all colors of the ground is at least 0.3. Digits are white, on levels of at most 0.5.
    Boxes enclose the pixels with an opacity above 0.1, whether or not other objects cover them. Without ``overlap``,
    the distance between the extents of two objects is at least one pixel. With ``overlap``, later objects cover
    earlier ones, at least half of each object remains visible, and the colors of shapes in one scene differ as much
    from each other as from the ground. All of this holds before the noise of ``noise`` is added.

    Raises:
        InputError: if an option does not apply to the preset, or objects do not fit.
    """
    if preset not in PRESETS:
        raise InputError(f"there are no scenes {preset!r}: choose {', '.join(PRESETS)}.")
    chosen = PRESETS[preset]
    for name in changes:
        if name not in chosen.options:
            raise InputError(f"--{name.replace('_', '-')} does not apply to {preset}.")
    options = replace(chosen, **changes)
    shared, *streams = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    numbers = (num_train, num_test)
    if isinstance(options, CoinScenes):
        coins = load_coins()
        parts = (coins.rows(slice(BORDER)), coins.rows(slice(BORDER, None)))
        cut = [cut_coins(part, n, options.canvas, rng) for part, n, rng in zip(parts, numbers, streams, strict=True)]
    else:
        _check(options)
        palette = ground_colours(2, options.channels, shared)
        templates = _templates(options, data_dir)
        cut = [
            draw_scenes(options, objects, palette, n, rng)
            for objects, n, rng in zip(templates, numbers, streams, strict=True)
        ]
    train, test = map(_images, cut)
    return train, test


def _check(options: DrawnScenes) -> None:
    if options.ground not in GROUNDS:
        raise InputError(f"there is no ground {options.ground!r}: choose {', '.join(GROUNDS)}.")
    if not options.counts or min(options.counts) < 0:
        raise InputError(f"counts are one or more integers of at least 0, not {options.counts}.")
    if options.grey and options.overlap:
        raise InputError("--overlap does not apply to gray shapes, whose levels would not tell them apart.")
    if _patch(options) > options.canvas:
        raise InputError(
            f"objects of {options.object_size:g} pixels (up to {1 + MOST * DEVIATION:.0%}) do not fit on a canvas of "
            f"{options.canvas}x{options.canvas} pixels."
        )


def _templates(options: DrawnScenes, data_dir: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The objects of training and of held-out scenes."""
    if options.objects == "shapes":
        return (shape_templates(),) * 2
    images = load_images(options.objects, data_dir, background="black")
    return image_templates(images.train, options.objects), image_templates(images.test, options.objects)


def _images(cut: Cut) -> Images:
    scenes, counts, boxes = cut
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(scenes, -1, 1)))
    return Images(pixels, torch.from_numpy(counts.astype("int64")), boxes=torch.from_numpy(boxes.astype("float32")))


def scene_arrays(train: Images, test: Images) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that :func:`pplmodels.data.load_scenes` reads. Gray scenes are ``(N, H, W)``."""
    arrays = {}
    for split, scenes in (("train", train), ("test", test)):
        pixels = np.moveaxis(scenes.pixels[:].numpy(), 1, -1)
        arrays[f"x_{split}"] = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        if scenes.counts is not None and scenes.boxes is not None:
            arrays |= {f"n_{split}": scenes.counts.numpy(), f"boxes_{split}": scenes.boxes.numpy()}
    return arrays


@dataclass(frozen=True)
class Objects:
    """The M objects of N scenes, ordered by scene and within a scene from the first to the last that is drawn.

    index (N, K): the number of each object, or -1; opacities (M, P, P), in a patch around the object;
    origins (M, 2): x and y of the patch's corner in the scene, which may be negative; colours (M, C).
    """

    index: np.ndarray
    opacities: np.ndarray
    origins: np.ndarray
    colours: np.ndarray

    @cached_property
    def boxes(self) -> np.ndarray:
        """The boxes of each scene's objects, float ``(N, K, 4)``."""
        edges = extents(self.opacities, BOX_LEVEL) + np.tile(self.origins, 2)
        boxes = np.full((*self.index.shape, 4), np.nan)
        boxes[self.index >= 0] = edges
        return boxes


def draw_scenes(
    options: DrawnScenes, templates: np.ndarray, palette: np.ndarray, number: int, rng: np.random.Generator
) -> Cut:
    """``number`` scenes of objects with the given ``templates (T, h, w)``.

    ``palette (2, C)`` has the colors of grounds that are the same in all scenes. Returns the scenes, uint8
    ``(N, H, W, C)``, the counts ``(N)`` and the boxes ``(N, K, 4)``.
    """
    parts = []
    for start in range(0, number, CHUNK):
        size = min(CHUNK, number - start)
        grounds = make_grounds(options.ground, size, options.canvas, palette, rng)
        objects = sample_objects(options, templates, grounds, rng)
        scenes = draw(grounds, objects)
        if options.ground == "noise":
            scenes = add_noise(scenes, options.noise, rng)
        parts.append((np.rint(255 * scenes).astype(np.uint8), (objects.index >= 0).sum(1), objects.boxes))
    scenes, counts, boxes = (np.concatenate(part) for part in zip(*parts, strict=True))
    return scenes, counts, boxes


def sample_objects(options: DrawnScenes, templates: np.ndarray, grounds: Grounds, rng: np.random.Generator) -> Objects:
    """The objects of scenes on ``grounds``."""
    number = len(grounds.pixels)
    counts = rng.choice(np.array(options.counts), number)
    present = np.arange(max(options.counts)) < counts[:, None]
    total = present.sum()
    index = np.full(present.shape, -1)
    index[present] = np.arange(total)
    jitter = rng.standard_normal(total).clip(-MOST, MOST)
    sides = options.object_size * (1 + DEVIATION * jitter)
    opacities = render(
        templates, rng.integers(len(templates), size=total), sides, rng.random((total, 2)), _patch(options)
    )
    colours = np.ones((total, options.channels), np.float32)
    if options.objects == "shapes":
        colours = _colours(index, grounds.ends, options.overlap, rng)
    layout = (_Overlapping if options.overlap else _Apart)(index, opacities, options.canvas)
    return Objects(index, opacities, layout.sample(options, rng), colours)


def draw(grounds: Grounds, objects: Objects) -> np.ndarray:
    """Draw the objects over the grounds, in their order: ``(N, H, W, C)`` in [0, 1]."""
    margin, height = objects.opacities.shape[1], grounds.pixels.shape[1]
    scenes = np.pad(grounds.pixels, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    for numbers in objects.index.T:
        there = np.flatnonzero(numbers >= 0)
        drawn = numbers[there]
        place = _place(there, objects.origins[drawn], margin)
        opacity = objects.opacities[drawn][..., None]
        below = scenes[place]
        scenes[place] = below + opacity * (objects.colours[drawn][:, None, None] - below)
    return scenes[:, margin : margin + height, margin : margin + height]


def _patch(options: DrawnScenes) -> int:
    """The side of the patch that holds the largest object at any offset."""
    return int(np.ceil(options.object_size * (1 + MOST * DEVIATION))) + 1


def _place(scenes: np.ndarray, origins: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the patches at ``origins (M, 2)`` of canvases with a margin as wide as a patch, ``(M, P, P)``."""
    pixel = margin + np.arange(margin)
    columns, rows = (origins[:, axis, None] + pixel for axis in (0, 1))
    return scenes[:, None, None], rows[:, :, None], columns[:, None, :]


class _Apart:
    """Places of objects whose extents are at least :data:`GAP` pixels apart."""

    def __init__(self, index: np.ndarray, opacities: np.ndarray, canvas: int):
        self.index, self.opacities, self.canvas = index, opacities, canvas
        self.support = extents(opacities, 0)
        self.origins = np.zeros((len(opacities), 2), int)

    def sample(self, options: DrawnScenes, rng: np.random.Generator) -> np.ndarray:
        """Places ``(M, 2)``, uniform inside the canvas; a place that does not fit is sampled again."""
        todo = np.arange(len(self.index))
        for _ in range(RESTARTS):
            self.restart(self.index[todo])
            failed = np.zeros(len(self.index), bool)
            for slot in range(self.index.shape[1]):
                waiting = todo[(self.index[todo, slot] >= 0) & ~failed[todo]]
                for _ in range(TRIES):
                    if not len(waiting):
                        break
                    new = self.index[waiting, slot]
                    low, high = -self.support[new, :2], self.canvas - self.support[new, 2:]
                    self.origins[new] = rng.integers(low, high + 1)
                    waiting = waiting[~self.fit(new, self.index[waiting, :slot])]
                failed[waiting] = True
            todo = np.flatnonzero(failed)
            if not len(todo):
                return self.origins
        raise InputError(
            f"{self.index.shape[1]} objects of {options.object_size:g} pixels do not fit on a canvas of "
            f"{self.canvas}x{self.canvas} pixels{'' if options.overlap else ' without overlap'}."
        )

    def restart(self, index: np.ndarray) -> None:
        """Forget the places of objects."""

    def fit(self, new: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Whether objects ``new (B)`` fit to the ``earlier (B, k)`` ones of their scenes."""
        edges = self.support + np.tile(self.origins, 2)
        ours, theirs = edges[new, None], edges[earlier]
        apart = (ours[..., :2] >= theirs[..., 2:] + GAP) | (theirs[..., :2] >= ours[..., 2:] + GAP)
        return apart.any(-1).all(-1)


class _Overlapping(_Apart):
    """Places of objects of which at least the fraction :data:`SHOWN` is visible when all are drawn."""

    def __init__(self, index: np.ndarray, opacities: np.ndarray, canvas: int):
        super().__init__(index, opacities, canvas)
        self.visible = opacities.copy()
        self.needed = SHOWN * opacities.sum((1, 2))

    def restart(self, index: np.ndarray) -> None:
        """Make objects visible again."""
        again = index[index >= 0]
        self.visible[again] = self.opacities[again]

    def fit(self, new: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        """Whether enough of ``earlier (B, k)`` remains visible below ``new (B)``."""
        patch = self.opacities.shape[1]
        rows = np.arange(len(new))
        covering = np.zeros((len(new), self.canvas + 2 * patch, self.canvas + 2 * patch), np.float32)
        covering[_place(rows, self.origins[new], patch)] = self.opacities[new]
        left = np.empty((*earlier.shape, patch, patch), np.float32)
        for k, below in enumerate(earlier.T):
            left[:, k] = self.visible[below] * (1 - covering[_place(rows, self.origins[below], patch)])
        fits = (left.sum((2, 3)) >= self.needed[earlier]).all(1)
        self.visible[earlier[fits]] = left[fits]
        return fits


def _colours(index: np.ndarray, ends: np.ndarray, all_differ: bool, rng: np.random.Generator) -> np.ndarray:
    """Colors of shapes ``(M, C)`` that differ from the ground and, with ``all_differ``, from each other in a scene."""
    colours = np.zeros((index.max(initial=-1) + 1, ends.shape[-1]), np.float32)
    for slot in range(index.shape[1]):
        scenes = np.flatnonzero(index[:, slot] >= 0)
        for candidates in _candidates(ends.shape[-1], rng):
            if not len(scenes):
                break
            new = candidates(len(scenes))
            far = segment_distance(new, ends[scenes]) >= CONTRAST
            for other in index[scenes, :slot].T if all_differ else ():
                far &= np.linalg.norm(new - colours[other], axis=1) >= CONTRAST
            colours[index[scenes[far], slot]] = new[far]
            scenes = scenes[~far]
        if len(scenes):
            raise InputError(f"there are not enough colors for {index.shape[1]} objects that differ from each other.")
    return colours


def _candidates(channels: int, rng: np.random.Generator) -> Iterator[Callable[[int], np.ndarray]]:
    """Functions that sample ``(n, channels)`` saturated colors or gray levels, once per try."""

    def sample(n: int) -> np.ndarray:
        if channels == 1:
            return rng.random((n, 1), dtype=np.float32)
        hue, saturation, value = (rng.uniform(low, high, (n, 1)) for low, high in ((0, 6), SATURATION, VALUE))
        # the channels of HSV: each falls from the value to value (1 - saturation) away from its own hue
        distance = np.abs((hue - np.array([0, 2, 4]) + 3) % 6 - 3)
        return (value * (1 - saturation * (distance - 1).clip(0, 1))).astype(np.float32)

    return (sample for _ in range(COLOURS))


def segment_distance(colours: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The distances ``(M)`` of points ``(M, C)`` from line segments ``(M, 2, C)``."""
    start, along = ends[:, 0], ends[:, 1] - ends[:, 0]
    length = (along**2).sum(1)
    position = ((colours - start) * along).sum(1) / np.where(length > 0, length, 1)
    return np.linalg.norm(colours - start - position.clip(0, 1)[:, None] * along, axis=1)
