"""Transforms of 8-bit images, uint8 ``(..., C, H, W)``, to the values that are modeled by a likelihood."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["binary", "mass", "density"]  # see Transform


class Transform:
    """A function of tensors together with the kind of likelihood of its values.

    Arguments:
        function: a function from uint8 to the model's input.
        kind: ``"binary"`` for values 0 and 1; ``"mass"`` if log p(x) is a log-probability of the 8-bit levels;
            ``"density"`` if it is a log-density on [0, 1], which bounds such a log-probability (Theis et al. 2016,
            arXiv 1511.01844, section 3.1); None for other data.
        random: whether each call samples new values.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        kind: Kind | None = None,
        random: bool = False,
    ):
        update_wrapper(self, function)
        self.function, self.kind, self.random = function, kind, random

    def __call__(self, values: Tensor) -> Tensor:
        """The transformed values."""
        return self.function(values)


def _transform(kind: Kind | None = None, random: bool = False) -> Callable[[Callable], Transform]:
    return lambda function: Transform(function, kind, random)


@_transform()
def identity(values: Tensor) -> Tensor:
    """Vectors of floats, converted to torch's default dtype."""
    return values.to(torch.get_default_dtype())


@_transform("mass")
def to_float(pixels: Tensor) -> Tensor:
    """Levels divided by 255, in [0, 1]."""
    return pixels.to(torch.get_default_dtype()) / 255


@_transform("density", random=True)
def dequantize(pixels: Tensor) -> Tensor:
    """(level + u) / 256 in [0, 1) with u ~ U(0, 1): log P(level) >= E_u log p - D log 256."""
    return (pixels + torch.rand(pixels.shape, device=pixels.device)) / 256


@_transform("binary", random=True)
def dynamic_binarize(pixels: Tensor) -> Tensor:
    """1 with the intensity as probability, otherwise 0."""
    return torch.bernoulli(to_float(pixels))


@_transform("binary")
def threshold(pixels: Tensor) -> Tensor:
    """1 where the intensity is above a half, otherwise 0."""
    return (pixels > 127).to(torch.get_default_dtype())


@_transform()
def to_long(values: Tensor) -> Tensor:
    """Integers as int64."""
    return values.long()


@_transform()
def binary_grid(pixels: Tensor) -> Tensor:
    """Grids of 0 and 1, int64 ``(..., H, W)``, which are 1 where a gray pixel is above a half."""
    return (pixels > 127).long().squeeze(-3)


@_transform()
def level_grid(pixels: Tensor) -> Tensor:
    """Grids of the levels 0..255 of gray pixels, int64 ``(..., H, W)``."""
    return pixels.long().squeeze(-3)


TRANSFORMS = {
    "levels": to_float,
    "dequantised": dequantize,
    "dynamic": dynamic_binarize,
    "threshold": threshold,
    "static": threshold,  # for images that are already binary
}
# by kind of likelihood
DEFAULT_TRANSFORMS: dict[Kind, str] = {"binary": "dynamic", "density": "dequantised", "mass": "levels"}
GRID_TRANSFORMS = {"codes": to_long, "bits": binary_grid, "levels": level_grid}  # transforms to integer grids
