"""Transforms of 8-bit images, uint8 ``(..., C, H, W)``, to the values that a likelihood is a distribution of."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Literal

import torch
from torch import Tensor


class Transform:
    """A function of tensors that says what a likelihood of its values is.

    Arguments:
        function: from uint8 to what the model sees.
        kind: ``"binary"`` for values 0 and 1; ``"mass"`` where log p(x) is a log-probability of the 8-bit levels;
            ``"density"`` where it is a log-density on [0, 1] that bounds one (Theis et al. 2016, arXiv 1511.01844,
            section 3.1); None for what is no image.
        random: whether each call draws anew.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        kind: Literal["binary", "mass", "density"] | None = None,
        random: bool = False,
    ):
        update_wrapper(self, function)
        self.function, self.kind, self.random = function, kind, random

    def __call__(self, values: Tensor) -> Tensor:
        """The transformed values."""
        return self.function(values)


def _transform(kind: str | None = None, random: bool = False) -> Callable[[Callable], Transform]:
    return lambda function: Transform(function, kind, random)


@_transform()
def identity(values: Tensor) -> Tensor:
    """Vectors of floats in torch's default type of floats."""
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
    """1 with a probability that is the intensity, else 0."""
    return torch.bernoulli(to_float(pixels))


@_transform("binary")
def threshold(pixels: Tensor) -> Tensor:
    """1 where the intensity is above a half, else 0."""
    return (pixels > 127).to(torch.get_default_dtype())


@_transform()
def to_long(values: Tensor) -> Tensor:
    """Whole numbers as int64."""
    return values.long()


@_transform()
def binary_grid(pixels: Tensor) -> Tensor:
    """Grids of 0 and 1, int64 ``(..., H, W)``: 1 where a grey pixel is above a half."""
    return (pixels > 127).long().squeeze(-3)


@_transform()
def level_grid(pixels: Tensor) -> Tensor:
    """Grids of 0..255, int64 ``(..., H, W)``, of grey pixels."""
    return pixels.long().squeeze(-3)


TRANSFORMS = {
    "levels": to_float,
    "dequantised": dequantize,
    "dynamic": dynamic_binarize,
    "threshold": threshold,
    "static": threshold,  # of images that are black and white already
}
DEFAULT_TRANSFORMS = {"binary": "dynamic", "density": "dequantised", "mass": "levels"}  # by what a likelihood is
GRID_TRANSFORMS = {"codes": to_long, "bits": binary_grid, "levels": level_grid}  # of whole numbers
