"""Convolutional encoders and decoders for small images."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pplmodels.nn.batch_apply import BatchApply
from pplmodels.nn.mlp import mlp


def conv_encoder(image: Sequence[int], channels: Sequence[int], out_dim: int) -> nn.Module:
    """3x3 convolutions, the first with stride 1 and the others with stride 2, followed by a linear layer.

    ``(..., C, H, W) -> (..., out_dim)``; ReLU after each convolution.
    """
    layers: list[nn.Module] = []
    before, height, width = image
    for number, after in enumerate(channels):
        stride = 1 if number == 0 else 2
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
        before, height, width = after, -(-height // stride), -(-width // stride)
    return BatchApply(nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, out_dim)), 3)


def conv_decoder(
    in_dim: int, channels: Sequence[int], image: Sequence[int], outputs: int, refine: bool = True
) -> nn.Module:
    """A linear layer followed by transposed 4x4 convolutions with stride 2 and ReLU in between.

    ``(..., in_dim) -> (..., outputs, H, W)`` for an image (C, H, W). ``channels`` are those of the feature maps from
    coarse to fine, each with twice the height and width of the previous one. With ``refine``, the last feature map has
    the size of the image, and a 3x3 convolution computes the outputs. Otherwise the last feature map has half that
    size, and a transposed convolution computes the outputs. With kernel 4, stride 2 and padding 1, all output pixels
    have equally many inputs (no checkerboard artifacts).
    """
    *_, height, width = image
    halvings = len(channels) - refine
    parts = 2**halvings
    if height % parts or width % parts:
        raise ValueError(
            f"the sides of {height}x{width} images are not multiples of {parts}, which {len(channels)} feature maps "
            "need: give fewer channels"
        )
    start = channels[0], height // parts, width // parts
    layers = [*mlp(in_dim, (math.prod(start),)), nn.Unflatten(1, start)]
    for before, after in pairwise(channels):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
    last = nn.Conv2d(channels[-1], outputs, 3, 1, 1) if refine else nn.ConvTranspose2d(channels[-1], outputs, 4, 2, 1)
    return BatchApply(nn.Sequential(*layers, last), 1)
