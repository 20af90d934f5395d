"""Loading user-provided scenes, and estimating the size of their objects."""

import math
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pplmodels.boxes import INK, bounding_boxes
from pplmodels.data.arrays import pixels_of, read_npz
from pplmodels.data.images import Images
from pplmodels.data.levels import Decoding
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError
from pplmodels.messages import say

LOOKED_AT = 2000  # maximum number of scenes for the estimate
ENOUGH = 20  # minimum number of objects for the estimate
SPECK = 4  # smaller components, in pixels, are noise
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


@float32_on_cpu()
def object_sides(scenes: Images) -> Tensor | None:
    """The longer sides of objects' bounding boxes in pixels, ``(M)``, or None if they cannot be determined.

    True boxes are used if the scenes have them. Otherwise boxes are computed from the pixels that differ from the
    background, the most common color of the scenes' borders. If the count is known to be 1, there is one box around all
    of them. Otherwise there is one per connected component; if counts are known, only scenes with as many components as
    objects are used.
    """
    if scenes.boxes is not None:
        used = scenes.boxes[scenes.boxes.isfinite().all(-1)]
        return (used[:, 2:] - used[:, :2]).amax(1) if len(used) >= ENOUGH else None
    ink = _differing(scenes.head(LOOKED_AT))
    counts = None if scenes.counts is None else scenes.counts[:LOOKED_AT]
    found = []
    if counts is not None and (counts == 1).sum() >= ENOUGH:
        found = [ndimage.find_objects(scene.astype(int))[:1] for scene in ink[(counts == 1).numpy()]]
    else:
        for index, scene in enumerate(ink):
            labels = np.empty(scene.shape, np.int32)
            ndimage.label(scene, np.ones((3, 3)), output=labels)
            large = [part for part in ndimage.find_objects(labels) if _area(part) > SPECK]
            if counts is None or len(large) == counts[index]:
                found.append(large)
    sides = torch.tensor([max(float(axis.stop - axis.start) for axis in part) for parts in found for part in parts])
    canvas = min(scenes.shape[1:])
    if len(sides) < ENOUGH or not SPECK**0.5 < float(sides.median()) < WHOLE * canvas:
        return None
    return sides


def _differing(scenes: Images) -> np.ndarray:
    """The pixels that differ from the background, bool ``(N, H, W)``. Prints the background if it is not black."""
    pixels = torch.cat(list(scenes.levels())).cpu().numpy().astype(np.int16)
    rows = np.concatenate([pixels[:, :, side, :] for side in (0, -1)] + [pixels[..., side] for side in (0, -1)], -1)
    ground = np.median(rows, axis=(0, 2))  # (C)
    if ground.max() > INK:
        level = "x".join(f"{value:g}" for value in ground)
        say(f"warning: the background of the scenes has level {level}, but AIR renders objects on black (level 0)")
    return (np.abs(pixels - ground[:, None, None]) > INK).any(1)


def _area(part: tuple[slice, ...]) -> int:
    return math.prod(axis.stop - axis.start for axis in part)
