"""Masked convolutional networks whose outputs only depend on earlier positions in raster order.

(PixelCNN: van den Oord et al. 2016, arXiv 1601.06759; Gated PixelCNN: arXiv 1606.05328.) Raster order is row by row,
from left to right. A network maps codes ``(B, H, W)`` to logits ``(B, K, H, W)``, which only depend on earlier
positions. Its method ``steps`` yields the same logits one position at a time during sampling. Each layer then only
computes its output at that position, from cached inputs.
"""

from collections.abc import Generator, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

Steps = Generator[Tensor, Tensor, None]


class CausalConv2d(nn.Module):
    """A masked k x k convolution over the rows above and the left part of the current row.

    The kernel only has its upper half, k // 2 + 1 rows, and the last row is masked to the right of the center.

    Arguments:
        in_channels, out_channels: numbers of channels.
        size: k, odd.
        centre: whether the output at a position depends on its own input (type B) or not (type A).
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, size: int, centre: bool):
        super().__init__()
        full = nn.Conv2d(in_channels, out_channels, (size // 2 + 1, size))
        self.weight, self.bias = full.weight, full.bias
        mask = torch.ones(size // 2 + 1, size)
        mask[-1, size // 2 + centre :] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.reach = size // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W) -> (B, out, H, W)``."""
        padded = pad(x, (self.reach, self.reach, self.reach, 0))
        return conv2d(padded, self.weight * self.mask, self.bias)


class Kept:
    """The padded inputs of a causal convolution so far, ``(n, in, H, W)``. Computes the output at single positions."""

    def __init__(self, conv: CausalConv2d, n: int, height: int, width: int):
        reach = conv.reach
        self.inputs = conv.weight.new_zeros(n, conv.weight.shape[1], height + reach, width + 2 * reach)
        self.weight, self.bias, self.reach = (conv.weight * conv.mask).flatten(1), conv.bias, reach

    def put(self, x: Tensor, row: int, column: int) -> None:
        """Store the input ``x (n, in)`` at a position."""
        self.inputs[:, :, row + self.reach, column + self.reach] = x

    def at(self, row: int, column: int) -> Tensor:
        """The output ``(n, out)`` at a position."""
        seen = self.inputs[:, :, row : row + self.reach + 1, column : column + 2 * self.reach + 1]
        return linear(seen.flatten(1), self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution of maps ``(B, in, H, W)`` or of vectors ``(B, in)`` at one position."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the linear map at each position."""
        return super().forward(x) if x.dim() == 4 else linear(x, self.weight[:, :, 0, 0], self.bias)


def head(channels: int, hidden: int, levels: int) -> nn.Sequential:
    """A network from features to logits, independently at each position."""
    return nn.Sequential(nn.ReLU(), Pointwise(channels, hidden), nn.ReLU(), Pointwise(hidden, levels))


class ResidualBlock(nn.Module):
    """A residual block: ReLU and 1 x 1 to half the channels, ReLU and causal convolution, ReLU and 1 x 1 back."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        half = channels // 2
        self.before = nn.Sequential(nn.ReLU(), Pointwise(channels, half), nn.ReLU())
        self.conv = CausalConv2d(half, half, size, centre=True)
        self.after = nn.Sequential(nn.ReLU(), Pointwise(half, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x + self.after(self.conv(self.before(x)))

    def at(self, kept: Kept, x: Tensor, row: int, column: int) -> Tensor:
        """The output ``(n, C)`` at one position."""
        kept.put(self.before(x), row, column)
        return x + self.after(kept.at(row, column))


class PixelCNNNetwork(nn.Module):
    """PixelCNN (1601.06759, sections 3.3 to 3.5). It has a blind spot: a wedge of earlier positions to the upper right.

    Arguments:
        levels: K, the number of values of a position.
        channels: number of channels.
        blocks: residual blocks after the first convolution.
        size: kernel size k of the first convolution and of the blocks.
        embedding: size of a value's embedding.
        hidden: channels of the last hidden layer.
    """

    def __init__(
        self, levels: int, channels: int = 64, blocks: int = 10, size: int = 7, embedding: int = 64, hidden: int = 512
    ):
        super().__init__()
        self.embedding = nn.Embedding(levels, embedding)
        self.first = CausalConv2d(embedding, channels, size, centre=False)
        self.blocks = nn.ModuleList(ResidualBlock(channels, size) for _ in range(blocks))
        self.head = head(channels, hidden, levels)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` of ``codes (B, H, W)``, int64."""
        x = self.first(self.embedding(codes).movedim(-1, 1))
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def steps(self, n: int, height: int, width: int) -> Steps:
        """Yields the logits ``(n, K)`` of each position in turn, and must be sent the codes ``(n)`` chosen there."""
        blocks = list(cast(Iterable[ResidualBlock], self.blocks))  # a ModuleList has no type of its items
        first, *kept = (Kept(conv, n, height, width) for conv in (self.first, *(block.conv for block in blocks)))
        for row in range(height):
            for column in range(width):
                x = first.at(row, column)
                for block, inputs in zip(blocks, kept, strict=True):
                    x = block.at(inputs, x, row, column)
                codes = yield self.head(x)
                first.put(self.embedding(codes), row, column)


def gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other (1606.05328, equation 2)."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """A layer of the vertical stack (over the rows above) and of the horizontal stack (over the current row).

    (1606.05328, figure 2.) Vertical features of a row depend on that row and the rows above. The horizontal stack also
    gets the vertical features of the previous row.

    Arguments:
        in_channels, channels: numbers of input and output channels.
        size: kernel size k.
        first: whether this is the first layer: its horizontal stack excludes the position itself and has no residual.
        classes: number of image classes on which the gates depend; 0 for none.
    """

    def __init__(self, in_channels: int, channels: int, size: int, first: bool, classes: int):
        super().__init__()
        self.reach, self.first = size // 2, first
        self.vertical = nn.Conv2d(in_channels, 2 * channels, (size // 2 + 1, size))
        self.across = Pointwise(2 * channels, 2 * channels)
        self.horizontal = nn.Conv2d(in_channels, 2 * channels, (1, size // 2 + (not first)))
        self.out = Pointwise(channels, channels)
        self.classes = nn.Embedding(classes, 4 * channels) if classes else None

    def condition(self, label: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """The class-dependent terms of the vertical and of the horizontal gate, ``(B, 2 C, 1, 1)``."""
        return (0.0, 0.0) if self.classes is None else self.classes(label)[..., None, None].chunk(2, 1)

    def forward(self, v: Tensor, h: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs of both stacks, ``(B, C, H, W)``."""
        to_v, to_h = self.condition(label)
        below = self.vertical(pad(v, (self.reach, self.reach, self.reach, 0)))
        above = pad(self.across(below), (0, 0, 1, 0))[:, :, :-1]
        left = self.horizontal(pad(h, (self.reach, -1 if self.first else 0)))
        return gate(below + to_v), self.residual(gate(left + above + to_h), h)

    def residual(self, out: Tensor, h: Tensor | None) -> Tensor:
        """The horizontal stack's output, from the output of its gate and its input."""
        return self.out(out) if self.first else h + self.out(out)


class KeptRows:
    """The inputs of a gated layer so far, and the vertical features for the current row."""

    def __init__(self, layer: GatedLayer, n: int, height: int, width: int, label: Tensor | None):
        weight, reach = layer.vertical.weight, layer.reach
        self.layer, self.width = layer, width
        self.rows = weight.new_zeros(n, weight.shape[1], height + reach, width + 2 * reach)
        self.row = weight.new_zeros(n, weight.shape[1], width + reach)
        self.above = weight.new_zeros(n, len(weight), width)
        self.to_v, self.to_h = layer.condition(label)
        self.weight = layer.horizontal.weight.flatten(1)

    def at(self, h: Tensor | None, column: int) -> Tensor:
        """The horizontal stack's output ``(n, C)`` at a position, from its input there (None in a first layer)."""
        layer = self.layer
        if h is not None:
            self.put(h, column)
        seen = self.row[:, :, column : column + layer.reach + (not layer.first)]
        left = linear(seen.flatten(1), self.weight, layer.horizontal.bias)
        through = gate((left + self.above[:, :, column])[..., None, None] + self.to_h)[..., 0, 0]
        return layer.residual(through, h)

    def put(self, h: Tensor, column: int) -> None:
        """Store the horizontal stack's input at a position."""
        self.row[:, :, column + self.layer.reach] = h

    def end_row(self, v: Tensor, row: int) -> Tensor:
        """The vertical stack's output, ``(n, C, 1, W)``, for a completed row, from its input."""
        layer = self.layer
        self.rows[:, :, row + layer.reach, layer.reach : layer.reach + self.width] = v[:, :, 0]
        below = layer.vertical(self.rows[:, :, row : row + layer.reach + 1])
        self.above = layer.across(below)[:, :, 0]
        self.row.zero_()
        return gate(below + self.to_v)


class GatedPixelCNNNetwork(nn.Module):
    """Gated PixelCNN (1606.05328): two stacks of gated layers without a blind spot, optionally class-conditional.

    Arguments:
        levels, channels, size, embedding, hidden: as for :class:`PixelCNNNetwork`.
        layers: number of gated layers.
        classes: number of image classes to condition on; 0 for none.
    """

    def __init__(
        self,
        levels: int,
        channels: int = 64,
        layers: int = 10,
        size: int = 7,
        embedding: int = 64,
        hidden: int = 512,
        classes: int = 0,
    ):
        super().__init__()
        self.embedding = nn.Embedding(levels, embedding)
        self.layers = nn.ModuleList(
            GatedLayer(channels if number else embedding, channels, size, number == 0, classes)
            for number in range(layers)
        )
        self.head = head(channels, hidden, levels)

    def forward(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits ``(B, K, H, W)`` of ``codes (B, H, W)``, int64, given the image classes ``label (B)``."""
        v = h = self.embedding(codes).movedim(-1, 1)
        for layer in self.layers:
            v, h = layer(v, h, label)
        return self.head(h)

    def steps(self, n: int, height: int, width: int, label: Tensor | None = None) -> Steps:
        """As :meth:`PixelCNNNetwork.steps`, given the image classes ``label (n)``."""
        layers = cast(Iterable[GatedLayer], self.layers)  # a ModuleList has no type of its items
        kept = [KeptRows(layer, n, height, width, label) for layer in layers]
        for row in range(height):
            embedded = []
            for column in range(width):
                h = None
                for layer in kept:
                    h = layer.at(h, column)
                codes = yield self.head(h)
                embedded.append(self.embedding(codes))
                kept[0].put(embedded[-1], column)
            v = torch.stack(embedded, -1)[:, :, None]
            for layer in kept:
                v = layer.end_row(v, row)
