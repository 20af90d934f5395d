"""Bounding boxes of objects: left, top, right and bottom in pixels, with 0 at the outer edge of the first pixel."""

import math

import torch
from torch import Tensor

INK = 25  # an object's pixels differ from the background by more than this 8-bit level, a tenth of full intensity


def bounding_boxes(mask: Tensor) -> Tensor:
    """The bounding boxes of the pixels that are True, bool ``(..., H, W)`` to float32 ``(..., 4)``; NaN if none are.

    >>> bounding_boxes(torch.tensor([[False, False, False], [False, True, True]]))
    tensor([1., 1., 3., 2.])
    """
    pixels = mask.float()  # on a CPU, sums of floats are many times faster than any() of bools
    (left, right), (top, bottom) = _ends(pixels.sum(-2) > 0), _ends(pixels.sum(-1) > 0)
    boxes = torch.stack([left, top, right, bottom], -1).float()
    return boxes.masked_fill((right == 0)[..., None], math.nan)


def _ends(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the first True of each row ``(..., size)`` and the index after the last, which is 0 without any."""
    size = occupied.shape[-1]
    positions = torch.arange(size, device=occupied.device)
    return torch.where(occupied, positions, size).amin(-1), torch.where(occupied, positions + 1, 0).amax(-1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes ``(..., M, 4)`` and ``(..., N, 4)``, ``(..., M, N)``; 0 for boxes of NaN.

    >>> float(pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])))
    0.3333333432674408
    """
    one, other = first[..., :, None, :], second[..., None, :, :]
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    return (shared / (areas[0] + areas[1] - shared)).nan_to_num(0.0)
