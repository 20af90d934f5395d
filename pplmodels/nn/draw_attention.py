"""DRAW's read and write operations, without or with an attention window (Gregor et al. 2015, section 3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pplmodels.nn.filterbank import Attention, Window, read, write
from pplmodels.nn.recurrent import ContextLSTMCell, LSTMCell

State = tuple[Tensor, Tensor]  # (h, c) of an LSTM


class FullReader(nn.Module):
    """An LSTM that reads the image, the error of the canvas, and the decoder's state (equation 17).

    Arguments:
        image: (C, H, W).
        painter_dim, hidden_dim: sizes of the decoder's state and of this LSTM's state.
    """

    def __init__(self, image: Sequence[int], painter_dim: int, hidden_dim: int):
        super().__init__()
        self.lstm = ContextLSTMCell(math.prod(image), math.prod(image) + painter_dim, hidden_dim)

    def look(self, x: Tensor) -> Tensor:
        """Features of the images ``x (..., C, H, W)`` that are the same in all steps."""
        return self.lstm.gates(x.flatten(-3))

    def forward(self, seen: Tensor, x: Tensor, error: Tensor, painter: Tensor, state: State) -> State:
        """One step, from ``seen`` of :meth:`look`, ``error (..., C, H, W)`` and ``painter (..., painter_dim)``."""
        error = error.flatten(-3)
        return self.lstm(seen, torch.cat([error, painter.expand(*error.shape[:-1], -1)], -1), state)


class AttentionReader(nn.Module):
    """An LSTM that reads image and error through an attention window placed by the decoder's state (equation 27).

    Arguments:
        image, painter_dim, hidden_dim: as for :class:`FullReader`.
        size: N.
    """

    def __init__(self, image: Sequence[int], painter_dim: int, hidden_dim: int, size: int):
        super().__init__()
        self.attention = Attention(painter_dim, image, size)
        self.lstm = LSTMCell(2 * image[0] * size**2 + painter_dim, hidden_dim)

    def look(self, x: Tensor) -> Tensor:
        """The images themselves, because the window differs between steps."""
        return x

    def forward(self, seen: Tensor, x: Tensor, error: Tensor, painter: Tensor, state: State) -> State:
        """One step, as :meth:`FullReader.forward`."""
        painter = painter.expand(*error.shape[:-3], -1)
        window = self.attention.window(painter)
        both = torch.cat([x.expand(error.shape), error], -3)
        glimpse = read(both, window, self.attention.filters(window))
        return self.lstm(torch.cat([glimpse.flatten(-3), painter], -1), state)


class FullWriter(nn.Module):
    """Writes to the whole canvas (equation 18): ``(..., hidden_dim) -> (..., C, H, W)``."""

    def __init__(self, image: Sequence[int], hidden_dim: int):
        super().__init__()
        self.image = tuple(image)
        self.patch = nn.Linear(hidden_dim, math.prod(image))

    def forward(self, h: Tensor) -> Tensor:
        """What is added to the canvas."""
        return self.patch(h).unflatten(-1, self.image)


class AttentionWriter(nn.Module):
    """Writes an N x N patch through a window (equations 28 and 29): ``(..., hidden_dim) -> (..., C, H, W)``."""

    def __init__(self, image: Sequence[int], hidden_dim: int, size: int):
        super().__init__()
        self.attention = Attention(hidden_dim, image, size)
        with torch.no_grad():  # initially, a constant patch fills the canvas with its value
            self.attention.linear.bias[4] = -2 * math.log(self.attention.tile)
        self.patch = nn.Linear(hidden_dim, image[0] * size**2)
        self.shape = (image[0], size, size)

    def forward(self, h: Tensor) -> Tensor:
        """What is added to the canvas."""
        window = self.attention.window(h)
        return write(self.patch(h).unflatten(-1, self.shape), window, self.attention.filters(window))


def window_of(part: nn.Module, h: Tensor) -> Window | None:
    """The window of a reader or a writer at the decoder's states ``h``; None if it has none."""
    attention = getattr(part, "attention", None)
    return None if attention is None else attention.window(h)
