"""Axis-aligned spatial transformers (Jaderberg et al. 2015, arXiv 1506.02025, section 3).

A window is ``where = (log s, x, y)``: its sides are the fraction s of the canvas sides, and its center is (x, y) in
canvas coordinates, which run from -1 to 1 across the image. Because the scale is stored as a logarithm, windows cannot
vanish or be mirrored for any value.

Without rotation, bilinear interpolation separates into one small matrix per side, so reading and writing are two
batched matrix products. The results equal those of :func:`torch.nn.functional.grid_sample` (zero padding,
``align_corners=False``), and the backward pass needs no scattered adds.
"""

import torch
from torch import Tensor


def _interpolation(scale: Tensor, shift: Tensor, in_size: int, out_size: int) -> Tensor:
    """Bilinear weights ``(..., out_size, in_size)`` of the input pixels in each output pixel.

    Output coordinate u in [-1, 1] reads input coordinate ``scale * u + shift``; both parameters are ``(...)``.
    """
    out_pixels = torch.arange(out_size, dtype=scale.dtype, device=scale.device)
    in_pixels = torch.arange(in_size, dtype=scale.dtype, device=scale.device)
    u = (2 * out_pixels + 1) / out_size - 1
    looked_at = scale[..., None] * u + shift[..., None]  # (..., out)
    position = (looked_at + 1) * (in_size / 2) - 0.5  # in pixels of the input
    return (1 - (position[..., None] - in_pixels).abs()).clamp(min=0)


def read_window(image: Tensor, where: Tensor, size: int) -> Tensor:
    """The glimpse under a window: ``image (..., C, H, W), where (..., 3) -> (..., C, size, size)``."""
    log_s, x, y = where.unbind(-1)
    s = log_s.exp()
    rows = _interpolation(s, y, image.shape[-2], size)  # (..., size, H)
    columns = _interpolation(s, x, image.shape[-1], size)  # (..., size, W)
    return rows[..., None, :, :] @ image @ columns[..., None, :, :].mT


def write_window(glimpse: Tensor, where: Tensor, height: int, width: int) -> Tensor:
    """Draw a glimpse into a window of an empty canvas; the inverse of :func:`read_window`.

    ``glimpse (..., C, h, w), where (..., 3) -> (..., C, height, width)``.
    """
    log_s, x, y = where.unbind(-1)
    inverse_s = (-log_s).exp()
    rows = _interpolation(inverse_s, -y * inverse_s, glimpse.shape[-2], height)  # (..., height, h)
    columns = _interpolation(inverse_s, -x * inverse_s, glimpse.shape[-1], width)  # (..., width, w)
    return rows[..., None, :, :] @ glimpse @ columns[..., None, :, :].mT
