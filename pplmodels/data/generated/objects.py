"""Objects of generated scenes: shapes and images, scaled to any side and placed between pixels."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pplmodels.data.images import Images
from pplmodels.errors import InputError

SHAPES = ("square", "disc", "triangle", "heart")
TEMPLATE = 64  # side of the templates of shapes
SAMPLES = 4  # samples per pixel of these templates, in each direction
SMALLEST = 28  # templates of smaller images are interpolated
VISIBLE = 0.5  # templates without larger opacities are omitted
LEAST = 1 / 255  # smaller opacities are 0


def shape_templates() -> np.ndarray:
    """The opacities of :data:`SHAPES`, ``(4, 64, 64)`` in [0, 1]. Each shape touches all four edges of its template."""
    position = (np.arange(TEMPLATE * SAMPLES) + 0.5) / (TEMPLATE * SAMPLES)  # from 0 to 1
    x, y = np.meshgrid(2 * position - 1, position)
    u, v = 1.139 * x, 1.236 - 2.236 * y  # the extents of the heart (u^2 + v^2 - 1)^3 = u^2 v^3
    inside = (
        np.ones_like(x),
        x**2 + (2 * y - 1) ** 2 <= 1,
        np.abs(x) <= y,
        (u**2 + v**2 - 1) ** 3 <= u**2 * v**3,
    )
    sampled = np.stack(inside).reshape(len(SHAPES), TEMPLATE, SAMPLES, TEMPLATE, SAMPLES)
    return sampled.mean((2, 4)).astype(np.float32)


def image_templates(images: Images, source: str) -> np.ndarray:
    """Gray images, such as white digits on black, as opacities ``(N, h, w)`` in [0, 1].

    Images of less than 28 pixels are bilinearly interpolated, and images without a level above one half are omitted.
    Raises :class:`InputError` for images in color, or if all images are omitted.
    """
    if images.shape[0] != 1:
        raise InputError(f"the objects in {source} must be gray images, whose levels are the opacities of the objects.")
    parts = (_enlarged(levels.float() / 255) for levels in images.levels())
    templates = torch.cat([part.squeeze(1) for part in parts]).numpy()
    templates = templates[templates.max((1, 2)) > VISIBLE]
    if not len(templates):
        raise InputError(f"the objects in {source} are darker than one half; objects are white on black.")
    return templates


def _enlarged(images: Tensor) -> Tensor:
    factor = -(-SMALLEST // min(images.shape[2:]))
    return interpolate(images, scale_factor=factor, mode="bilinear") if factor > 1 else images


def render(templates: np.ndarray, chosen: np.ndarray, sides: np.ndarray, phases: np.ndarray, patch: int) -> np.ndarray:
    """The opacities of objects in patches, ``(M, patch, patch)``, exact means over the areas of the pixels.

    Arguments:
        templates: ``(T, h, w)``.
        chosen: the template of each object, ``(M)``.
        sides: the side of each object in pixels, ``(M)``.
        phases: the offset of the object's left and top edge from those of the patch in pixels, ``(M, 2)`` in [0, 1).
        patch: the side of the patches, at least the largest side + 1.
    """
    rows = _overlaps(sides, phases[:, 1], patch, templates.shape[1])
    columns = _overlaps(sides, phases[:, 0], patch, templates.shape[2])
    opacities = rows @ templates[chosen] @ columns.swapaxes(1, 2)
    return np.where(opacities < LEAST, 0, opacities.clip(max=1))


def _overlaps(sides: np.ndarray, offsets: np.ndarray, patch: int, size: int) -> np.ndarray:
    """The fraction of each pixel that is covered by each row of a template, ``(M, patch, size)``."""
    pixel = np.arange(patch, dtype=np.float32)[None, :, None]
    row = np.arange(size, dtype=np.float32)[None, None, :]
    scale = (sides / size).astype(np.float32)[:, None, None]  # pixels per row of the template
    first = offsets.astype(np.float32)[:, None, None] + row * scale
    return (np.minimum(first + scale, pixel + 1) - np.maximum(first, pixel)).clip(min=0)


def extents(opacities: np.ndarray, level: float) -> np.ndarray:
    """Left, top, right and bottom edges of the pixels above ``level`` in each patch, int64 ``(M, 4)``."""
    above = opacities > level
    columns, rows = above.any(1), above.any(2)
    size = opacities.shape[1]
    ends = [(line.argmax(1), size - np.flip(line, 1).argmax(1)) for line in (columns, rows)]
    return np.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], -1)
