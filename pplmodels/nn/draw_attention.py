"""How DRAW's networks see an image and paint a canvas, whole or through a window (Gregor et al. 2015, section 3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pplmodels.nn.filterbank import Attention, Window, read, write
from pplmodels.nn.recurrent import ContextLSTMCell, LSTMCell

State = tuple[Tensor, Tensor]  # (h, c) of an LSTM


class WholeReader(nn.Module):
    """An LSTM that sees the image, what is missing on the canvas, and the painter's state (equation 17).

    Arguments:
        image: (C, H, W).
        painter_dim, hidden_dim: sizes of the painter's state and of its own.
    """

    def __init__(self, image: Sequence[int], painter_dim: int, hidden_dim: int):
        super().__init__()
        self.lstm = ContextLSTMCell(math.prod(image), math.prod(image) + painter_dim, hidden_dim)

    def look(self, x: Tensor) -> Tensor:
        """What of the images ``x (..., C, H, W)`` does not change from step to step."""
        return self.lstm.gates(x.flatten(-3))

    def forward(self, seen: Tensor, x: Tensor, error: Tensor, painter: Tensor, state: State) -> State:
        """One step, from ``seen`` of :meth:`look`, ``error (..., C, H, W)`` and ``painter (..., painter_dim)``."""
        error = error.flatten(-3)
        return self.lstm(seen, torch.cat([error, painter.expand(*error.shape[:-1], -1)], -1), state)


class WindowReader(nn.Module):
    """An LSTM that sees image and error through a window which the painter's state places (equation 27).

    Arguments:
        image, painter_dim, hidden_dim: as :class:`WholeReader`'s.
        size: N.
    """

    def __init__(self, image: Sequence[int], painter_dim: int, hidden_dim: int, size: int):
        super().__init__()
        self.attention = Attention(painter_dim, image, size)
        self.lstm = LSTMCell(2 * image[0] * size**2 + painter_dim, hidden_dim)

    def look(self, x: Tensor) -> Tensor:
        """The images: a window sees them anew at each step."""
        return x

    def forward(self, seen: Tensor, x: Tensor, error: Tensor, painter: Tensor, state: State) -> State:
        """As :meth:`WholeReader.forward`."""
        painter = painter.expand(*error.shape[:-3], -1)
        window = self.attention.window(painter)
        both = torch.cat([x.expand(error.shape), error], -3)
        glimpse = read(both, window, self.attention.filters(window))
        return self.lstm(torch.cat([glimpse.flatten(-3), painter], -1), state)


class WholeWriter(nn.Module):
    """Paints all of the canvas at once (equation 18): ``(..., hidden_dim) -> (..., C, H, W)``."""

    def __init__(self, image: Sequence[int], hidden_dim: int):
        super().__init__()
        self.image = tuple(image)
        self.patch = nn.Linear(hidden_dim, math.prod(image))

    def forward(self, h: Tensor) -> Tensor:
        """What is added to the canvas."""
        return self.patch(h).unflatten(-1, self.image)


class WindowWriter(nn.Module):
    """Paints an N x N patch into a window (equations 28 and 29): ``(..., hidden_dim) -> (..., C, H, W)``."""

    def __init__(self, image: Sequence[int], hidden_dim: int, size: int):
        super().__init__()
        self.attention = Attention(hidden_dim, image, size)
        with torch.no_grad():  # at first a constant patch paints the canvas with that constant
            self.attention.linear.bias[4] = -2 * math.log(self.attention.tile)
        self.patch = nn.Linear(hidden_dim, image[0] * size**2)
        self.shape = (image[0], size, size)

    def forward(self, h: Tensor) -> Tensor:
        """What is added to the canvas."""
        window = self.attention.window(h)
        return write(self.patch(h).unflatten(-1, self.shape), window, self.attention.filters(window))


def window_of(part: nn.Module, h: Tensor) -> Window | None:
    """Where a reader or a writer has its window at the painter's states ``h``; None if it has none."""
    return part.attention.window(h) if hasattr(part, "attention") else None
