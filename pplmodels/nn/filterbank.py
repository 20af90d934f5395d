"""Grids of Gaussian filters that read from or write to a part of a canvas (DRAW: Gregor et al. 2015, section 3.2)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pplmodels.nn.projected_clamp import projected_clamp

# Largest absolute values of the center (the canvas is -1..1), log variance, log stride and log intensity. They keep
# all windows finite, on the canvas or off it, for any output of a network.
LIMITS = (2.0, 2.0, 5.0, 4.0, 8.0)


class Window(NamedTuple):
    """A square grid of N x N filters. Each field has shape ``(...)``; center, stride and variance are in pixels."""

    x: Tensor
    y: Tensor
    variance: Tensor
    stride: Tensor
    intensity: Tensor


class Filters(NamedTuple):
    """A window's filters as matrices whose rows sum to 1: ``rows (..., N, H)``, ``columns (..., N, W)``."""

    rows: Tensor
    columns: Tensor


def filterbank(window: Window, size: int, height: int, width: int) -> Filters:
    """The filters of ``size x size`` windows on a canvas (equations 25 and 26; pixels are counted from 0).

    Each row is a softmax, so it also sums to 1 if a filter is off the canvas. Such a filter reads the nearest edge.
    """

    def filters(centre: Tensor, pixels: int) -> Tensor:
        offsets = torch.arange(size, dtype=centre.dtype, device=centre.device) - (size - 1) / 2
        positions = torch.arange(pixels, dtype=centre.dtype, device=centre.device)
        means = centre[..., None] + offsets * window.stride[..., None]  # (..., N)
        distance = positions - means[..., None]  # (..., N, pixels)
        return (-(distance**2) / (2 * window.variance[..., None, None])).softmax(-1)

    return Filters(filters(window.y, height), filters(window.x, width))


class Attention(nn.Module):
    """The parameters of a window: five numbers that are linear in a network's state (equations 21 to 24).

    Initially the N x N filters tile the canvas, each as wide as its tile, so that the whole canvas provides gradients.

    Arguments:
        hidden_dim: size of the state.
        canvas: (C, H, W).
        size: N.
    """

    limits: Tensor

    def __init__(self, hidden_dim: int, canvas: Sequence[int], size: int):
        super().__init__()
        _, self.height, self.width = canvas
        if size > min(self.height, self.width):
            raise ValueError(f"a window of {size} x {size} does not fit images of {self.height} x {self.width}")
        self.size = size
        self.linear = nn.Linear(hidden_dim, 5)
        self.register_buffer("limits", torch.tensor(LIMITS), persistent=False)
        longest = max(self.height, self.width)
        self.full_stride = (longest - 1) / max(size - 1, 1)  # the outermost filters are at the canvas edges
        self.tile = longest / size
        with torch.no_grad():
            self.linear.bias.zero_()
            self.linear.bias[2] = 2 * math.log(self.tile / 2)
            self.linear.bias[3] = math.log(self.tile / self.full_stride)

    def window(self, h: Tensor) -> Window:
        """The window at the states ``h (..., hidden_dim)``."""
        x, y, log_variance, log_stride, log_intensity = projected_clamp(self.linear(h), self.limits).unbind(-1)
        return Window(
            x=(x + 1) * (self.width + 1) / 2 - 1,
            y=(y + 1) * (self.height + 1) / 2 - 1,
            variance=log_variance.exp(),
            stride=self.full_stride * log_stride.exp(),
            intensity=log_intensity.exp(),
        )

    def filters(self, window: Window) -> Filters:
        """The window's filters on the canvas."""
        return filterbank(window, self.size, self.height, self.width)


def read(image: Tensor, window: Window, filters: Filters) -> Tensor:
    """Read the patch in a window, times its intensity (equation 27): ``image (..., C, H, W) -> (..., C, N, N)``."""
    seen = filters.rows[..., None, :, :] @ image @ filters.columns[..., None, :, :].mT
    return window.intensity[..., None, None, None] * seen


def write(patch: Tensor, window: Window, filters: Filters) -> Tensor:
    """Write a patch to a canvas, divided by the intensity (equation 29): ``(..., C, N, N) -> (..., C, H, W)``."""
    painted = filters.rows[..., None, :, :].mT @ patch @ filters.columns[..., None, :, :]
    return painted / window.intensity[..., None, None, None]
