"""Composing scenes of a few objects on a black canvas, with known counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pplmodels.boxes import INK, bounding_boxes
from pplmodels.data.datasets import load_images
from pplmodels.data.grounds import Ground, ground_of
from pplmodels.data.images import Images
from pplmodels.data.own_scenes import find_objects, ink_extent, load_scenes
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError
from pplmodels.messages import say
from pplmodels.nn import write_window

CHUNK = 4096  # number of scenes composed at once, whose canvases fit into the cache
TRIES = 100  # positions tried for one object before its scene is restarted
RESTARTS = 20  # restarts of a scene before an error is raised
WINDOW_PER_SIDE = 1.2  # a window's side relative to its object's
WINDOWS = 8, 28  # limits of the side of windows in pixels
SHARED = 0.1  # intensity up to which two objects may overlap in a pixel, so that blurred edges may touch
SPREADS = 0.05, 0.3  # limits of the standard deviation of sides estimated from scenes
JITTER = 0.1 / 1.3  # relative standard deviation of an object's size, as in Pyro's multi-MNIST scenes


@float32_on_cpu()
def make_scenes(
    objects: Images,
    num_scenes: int,
    *,
    canvas: int = 50,
    counts: Sequence[int] = (0, 1, 2),
    object_size: float = 28 / 1.3,
    seed: int = 0,
) -> Images:
    """Scenes ``(num_scenes, C, canvas, canvas)`` with counts sampled uniformly from ``counts``, and their boxes.

    Objects are sampled with replacement, scaled to ``object_size`` pixels (with a jitter of 8 %), and placed randomly
    inside the canvas such that they do not overlap and no pixel exceeds full intensity. The result is deterministic in
    ``seed``. The defaults give the scenes of the AIR literature (28-pixel digits at scale 1/1.3 on 50x50). An object's
    box contains its pixels above a tenth of full intensity; it is NaN if there are none.
    """
    largest = max(counts)
    if object_size * (1 + 2 * JITTER) > canvas:
        raise InputError(
            f"objects of {object_size:g} pixels (up to {1 + 2 * JITTER:.0%} with jitter) do not fit on a canvas of "
            f"{canvas}x{canvas} pixels."
        )
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor(counts)
    chosen = choices[torch.randint(len(choices), (num_scenes,), generator=generator)]
    parts = [_compose(objects, part, largest, canvas, object_size, generator) for part in chosen.split(CHUNK)]
    pixels, boxes = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Images(pixels, chosen, boxes=boxes)


def _compose(
    objects: Images, counts: Tensor, largest: int, canvas: int, object_size: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Compose scenes with the given counts: uint8 ``(N, C, canvas, canvas)``, and their boxes ``(N, largest, 4)``."""
    scenes = torch.zeros(len(counts), objects.shape[0], canvas, canvas)
    boxes = torch.full((len(counts), largest, 4), math.nan)
    todo = torch.arange(len(counts))
    for _ in range(RESTARTS):
        scenes[todo], boxes[todo] = 0, math.nan
        failed = torch.zeros(len(counts), dtype=torch.bool)
        for number in range(largest):
            waiting = todo[(counts[todo] > number) & ~failed[todo]]
            failed[_place(scenes, boxes[:, number], waiting, objects, object_size, generator)] = True
        todo = failed.nonzero().squeeze(1)
        if not len(todo):
            return _levels(scenes), boxes
    raise InputError(
        f"{largest} objects of {object_size:g} pixels do not fit on a canvas of {canvas}x{canvas} pixels without "
        "overlap."
    )


def _place(
    scenes: Tensor, boxes: Tensor, waiting: Tensor, objects: Images, object_size: float, generator: torch.Generator
) -> Tensor:
    """Add one object to each scene in ``waiting``, and its bounding box to ``boxes (N, 4)``.

    Returns the scenes in which no free position was found.
    """
    canvas = scenes.shape[-1]
    chosen = torch.randint(len(objects), (len(waiting),), generator=generator)
    for _ in range(TRIES):
        if not len(waiting):
            break
        jitter = 1 + JITTER * torch.randn(len(waiting), generator=generator).clamp(-2, 2)
        scale = object_size * jitter / canvas
        centre = (2 * torch.rand(len(waiting), 2, generator=generator) - 1) * (1 - scale)[:, None]
        where = torch.cat([scale.log()[:, None], centre], 1)
        there, new = scenes[waiting], write_window(objects[chosen], where, canvas, canvas)
        shared, sum_ = torch.minimum(there, new).flatten(1).amax(1), (there + new).flatten(1).amax(1)
        fits = (shared < SHARED) & (sum_ <= 1 + 1e-6)
        scenes[waiting[fits]] += new[fits]
        boxes[waiting[fits]] = bounding_boxes(_levels(new[fits]).amax(1) > INK)
        waiting, chosen = waiting[~fits], chosen[~fits]
    return waiting


def _levels(intensities: Tensor) -> Tensor:
    """The 8-bit levels of intensities in [0, 1]."""
    return intensities.mul(255).round_().byte()


@dataclass(frozen=True)
class SceneSet:
    """Training and held-out scenes, and the average side of their objects' bounding boxes in pixels.

    ``spread`` is the relative standard deviation of the windows' sides in :meth:`window_prior`. ``unseen`` are optional
    further held-out scenes with object counts that do not occur in training. ``ground`` is the background of the
    scenes. ``most`` is an estimate of the maximum number of objects per scene, or None if there is none.
    """

    train: Images
    test: Images
    object_side: float
    unseen: Images | None = None
    spread: float = 0.07
    ground: Ground = field(default_factory=Ground)
    most: int | None = None

    def to(self, device: torch.device | str) -> "SceneSet":
        """The same scenes on another device."""
        unseen = None if self.unseen is None else self.unseen.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), unseen=unseen)

    @property
    def window(self) -> int:
        """The side in pixels of a window that shows objects at their resolution, an even number from 8 to 28."""
        covered = WINDOW_PER_SIDE * self.object_side * (1 + self.spread)
        return min(max(2 * math.ceil(covered / 2), WINDOWS[0]), WINDOWS[1])

    def window_prior(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of (log s, x, y) for windows slightly larger than objects, on all the canvas."""
        side = self.object_side / min(self.train.shape[1:])
        reach = max(0.1, (1 - side) / math.sqrt(3))  # the standard deviation of a uniform position inside the canvas
        return [math.log(min(1.0, WINDOW_PER_SIDE * side)), 0.0, 0.0], [self.spread, reach, reach]


def scene_set(
    data: str | Path,
    data_dir: str | Path = "data",
    *,
    ready_made: bool = False,
    canvas: int | None = None,
    counts: Sequence[int] = (0, 1, 2),
    unseen_counts: Sequence[int] = (),
    object_size: float | None = None,
    object_spread: float | None = None,
    num_train: int = 60_000,
    num_test: int = 10_000,
    seed: int = 0,
    background: str = "black",
    **loading,
) -> SceneSet:
    """Scenes composed from a dataset of :func:`pplmodels.data.load_images`, with each of ``counts`` equally likely.

    Held-out scenes are composed from held-out objects. ``canvas`` and ``object_size`` default to 50 and 28/1.3 pixels,
    or to 40 and 13 for the built-in digits. With ``ready_made``, the .npz file contains complete scenes
    (:func:`pplmodels.data.load_scenes`). Then ``object_size`` is the side of their objects' bounding boxes in pixels,
    and ``object_spread`` its relative standard deviation; by default, both are estimated from the scenes, which may
    have any background (:class:`pplmodels.data.grounds.Ground`). ``background`` is the color under transparent pixels;
    composed scenes are on black. ``loading`` are further options of :func:`pplmodels.data.load_images`.
    """
    if ready_made:
        train, test = _ready_made(Path(data), background, loading.get("white_level"))
        return _measured(train.head(num_train), test.head(num_test), object_size, object_spread)
    usual_canvas, usual_size = (40, 13.0) if data == "digits" else (50, 28 / 1.3)
    # two of the small digits would fit into a slightly larger window
    spread = object_spread or (0.05 if data == "digits" else 0.07)
    canvas, object_size = canvas or usual_canvas, object_size or usual_size
    images = load_images(data, data_dir, background=background, **loading)
    extent = ink_extent(images.train)
    if not extent:
        raise InputError(f"the objects of {data} are black and would be invisible on the black canvas.")
    around = ground_of(images.train)
    if around.kind != "black":
        say(
            f"warning: the images of {data} are not black at their edges (level {around.level:.2f}), so that scenes "
            "show whole rectangles: subtract their background, invert dark objects on white, or save transparent images"
        )
    compose = partial(make_scenes, canvas=canvas, object_size=object_size, seed=seed)
    return SceneSet(
        compose(images.train, num_train, counts=counts),
        compose(images.test, num_test, counts=counts),
        object_size * extent,
        compose(images.test, num_test, counts=unseen_counts) if unseen_counts else None,
        spread,
    )


def _ready_made(path: Path, background: str, white_level: float | None) -> tuple[Images, Images]:
    if path.suffix.lower() != ".npz":
        raise InputError(f"complete scenes must be in an .npz file, but {path} is not one.")
    return load_scenes(path, background=background, white_level=white_level)


def _measured(train: Images, test: Images, side: float | None, spread: float | None) -> SceneSet:
    """The scenes with the side of their objects in pixels, its relative standard deviation, and what was found."""
    ground = ground_of(train)
    if ground.kind != "black":
        say(str(ground))
    found = find_objects(train, ground)
    if found is not None and (side is None or spread is None):
        # robust statistics, because touching objects and fragments each count as one object
        low, high = found.sides.log().quantile(torch.tensor([0.16, 0.84])).tolist()  # 1 standard deviation around
        side, spread = side or float(found.sides.median()), spread or min(max((high - low) / 2, SPREADS[0]), SPREADS[1])
        say(
            f"measured {len(found.sides):,} objects in the scenes; the prior's object size is {side:.3g} pixels with a "
            f"standard deviation of {spread:.0%} (--object-size, --object-spread)"
        )
    elif side is None:
        side = 0.4 * min(train.shape[1:])
        say(f"the object size cannot be estimated from the scenes; {side:.3g} pixels are assumed (--object-size)")
    if side > max(train.shape[1:]):
        raise InputError(
            f"--object-size {side:g} is larger than the scenes, which have {train.shape[1]}x{train.shape[2]} pixels."
        )
    spread = spread or SceneSet.spread
    most = None if found is None else found.most
    return SceneSet(train, test, side, spread=spread, ground=ground, most=most)
