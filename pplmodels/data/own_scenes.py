"""Loading user-provided scenes, and estimating the size of their objects."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pplmodels.boxes import INK, bounding_boxes
from pplmodels.data.arrays import pixels_of, read_npz
from pplmodels.data.grounds import WITHIN_SCENE, Ground, eight_bits, examined, foreground, ground_of
from pplmodels.data.images import Images
from pplmodels.data.levels import Decoding
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError

ENOUGH = 20  # minimum number of objects for the estimate
SPECK = 4  # smaller components, in pixels, are noise
PART = 0.1  # smaller components, relative to the largest, are not parts of the only object of a scene
WHOLE = 0.9  # components above this fraction of the canvas are not objects


@float32_on_cpu()
def load_scenes(
    path: str | Path, *, background: str = "black", white_level: float | None = None
) -> tuple[Images, Images]:
    """Load training and test scenes from an .npz file.

    =======================  ==============================================================================
    x_train, x_test          scenes, in the same formats as images (:func:`pplmodels.data.load_images`)
    n_train, n_test          optional, integers ``(N)``: the number of objects in each scene
    boxes_train, boxes_test  optional, floats ``(N, K, 4)``: left, top, right and bottom edges of the objects'
                             bounding boxes in pixels, with 0 at the outer edge of the first pixel; scenes with
                             fewer than K objects have rows of NaN
    =======================  ==============================================================================

    If only boxes are given, they determine the counts. A count is at most the number of pixels. ``background`` and
    ``white_level`` are as for :func:`pplmodels.data.load_images`. Raises :class:`InputError`.
    """
    splits = ("train", "test")
    known = tuple(f"{kind}_{split}" for split in splits for kind in ("n", "boxes"))
    arrays = read_npz(path, required=("x_train", "x_test"), optional=known)
    scenes = {name: arrays[name] for name in ("x_train", "x_test")}
    pixels = pixels_of(scenes, str(path), Decoding(background, white_level=white_level))
    train, test = (_with_truth(pixels[f"x_{split}"], arrays, split, path) for split in splits)
    if train.shape != test.shape:
        raise InputError(f"x_train and x_test in {path} differ in size: {train.shape} and {test.shape}.")
    return train, test


def _with_truth(pixels: Tensor, arrays: dict[str, np.ndarray], split: str, path: str | Path) -> Images:
    counts, boxes = arrays.get(f"n_{split}"), arrays.get(f"boxes_{split}")
    used = None if boxes is None else _checked_boxes(boxes, pixels, f"boxes_{split} in {path}")
    if counts is None:
        counts = used
    if counts is not None:
        most = pixels[0, 0].numel()  # bounds the confusion matrix, which has a row per count
        if counts.shape != (len(pixels),) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise InputError(f"n_{split} in {path} must have one integer of at least 0 for each image of x_{split}.")
        if counts.max() > most:
            raise InputError(f"n_{split} in {path} has a count of {counts.max()} for an image of only {most} pixels.")
        if used is not None and (used != counts).any():
            scene = int((used != counts).argmax())
            raise InputError(
                f"boxes_{split} in {path} has {used[scene]} boxes for scene {scene}, but n_{split} has a count of "
                f"{counts[scene]}."
            )
    return Images(
        pixels,
        None if counts is None else torch.from_numpy(counts.astype("int64")),
        boxes=None if boxes is None else torch.from_numpy(boxes.astype("float32")),
    )


def _checked_boxes(boxes: np.ndarray, pixels: Tensor, name: str) -> np.ndarray:
    """The number of boxes of each scene, ``(N)``. Raises :class:`InputError` if boxes are not valid."""
    if boxes.ndim != 3 or boxes.shape[2] != 4 or len(boxes) != len(pixels) or boxes.dtype.kind not in "iuf":
        raise InputError(
            f"{name} has shape {boxes.shape} and type {boxes.dtype}, not shape ({len(pixels)}, K, 4) and floats."
        )
    unused = np.isnan(boxes).all(-1)
    left, top, right, bottom = np.moveaxis(boxes[~unused], -1, 0)
    height, width = pixels.shape[2:]
    inside = (left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)
    if not (inside & (left < right) & (top < bottom)).all():  # also true if only some values of a box are NaN
        raise InputError(
            f"each row of {name} must be NaN or a box in pixels with left < right and top < bottom, inside images of "
            f"{height}x{width} pixels."
        )
    if len(right) and max(right.max(), bottom.max()) <= 1 < min(height, width):
        raise InputError(f"{name} has boxes in fractions of the image: give left, top, right and bottom in pixels.")
    return (~unused).sum(-1)


@float32_on_cpu()
def ink_extent(objects: Images) -> float:
    """The mean longer side of bounding boxes of pixels above a tenth of full intensity, as a fraction of the frame."""
    boxes = torch.cat([bounding_boxes(pixels.amax(1) > INK) for pixels in objects.levels()])
    height, width = objects.shape[1:]
    sides = (boxes[:, 2:] - boxes[:, :2]).nan_to_num(0.0) / boxes.new_tensor([width, height])
    return float(sides.amax(1).mean())


@dataclass(frozen=True)
class FoundObjects:
    """Objects that were found in scenes.

    ``sides (M)`` are the longer sides of their bounding boxes in pixels. ``most`` is the number of objects per scene
    that only one scene of a hundred exceeds.
    """

    sides: Tensor
    most: int


def object_sides(scenes: Images) -> Tensor | None:
    """The :attr:`FoundObjects.sides` of scenes on any background, or None if they cannot be determined."""
    found = find_objects(scenes, ground_of(scenes))
    return None if found is None else found.sides


@float32_on_cpu()
def find_objects(scenes: Images, ground: Ground) -> FoundObjects | None:
    """The objects of scenes on the background ``ground``, or None if they cannot be determined.

    True boxes are used if the scenes have them. Otherwise boxes are computed from the pixels that differ from the
    background (:func:`pplmodels.data.grounds.foreground`). If enough scenes have a count of 1, there is one box around
    all large components of each such scene. Otherwise there is one per connected component; if counts are known, only
    scenes with as many components as objects are used.
    """
    if scenes.boxes is not None:
        real = scenes.boxes.isfinite().all(-1)
        edges = scenes.boxes[real]
        sides = (edges[:, 2:] - edges[:, :2]).amax(1)
        return FoundObjects(sides, int(real.sum(1).max())) if len(sides) >= ENOUGH else None
    scenes = examined(scenes).to("cpu")
    counts = None if scenes.counts is None else scenes.counts.numpy()
    labels, _ = ndimage.label(foreground(eight_bits(scenes), ground), WITHIN_SCENE)
    smallest = SPECK
    if counts is not None and (counts == 1).sum() >= ENOUGH:
        labels = np.where(
            _main_parts(labels) & (counts == 1)[:, None, None], np.arange(1, len(labels) + 1)[:, None, None], 0
        )
        smallest = 0
    boxes = [box for box in ndimage.find_objects(labels) if box is not None and _area(box) > smallest]
    scene = np.array([box[0].start for box in boxes], int)
    longer = np.array([max(axis.stop - axis.start for axis in box[1:]) for box in boxes], np.float32)
    if counts is not None:
        longer = longer[(np.bincount(scene, minlength=len(scenes)) == counts)[scene]]
    middle = float(np.median(longer)) if len(longer) >= ENOUGH else 0.0
    if not SPECK**0.5 < middle < WHOLE * min(scenes.shape[1:]):
        return None
    if counts is None:  # components of less than half the median side are fragments
        per_scene = np.bincount(scene[longer > middle / 2], minlength=len(scenes))
        most = int(np.quantile(per_scene, 0.99, method="nearest"))
    else:
        most = int(counts.max())
    return FoundObjects(torch.from_numpy(longer), most)


def _main_parts(labels: np.ndarray) -> np.ndarray:
    """The pixels of components of at least a tenth of the area of the scene's largest, bool ``(N, H, W)``."""
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    area = areas[labels]
    return (area > 0) & (area >= PART * area.max((1, 2), keepdims=True))


def _area(box: tuple[slice, ...]) -> int:
    return math.prod(axis.stop - axis.start for axis in box)
