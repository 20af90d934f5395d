"""Recurrent cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LSTMCell(nn.Module):
    """:class:`torch.nn.LSTMCell` for any leading dimensions, with an initially open forget gate.

    (Hochreiter & Schmidhuber 1997; gates in torch's order: input, forget, cell, output.)
    """

    def __init__(self, input_dim: int, hidden_dim: int):
        super().__init__()
        self.linear = nn.Linear(input_dim + hidden_dim, 4 * hidden_dim)
        _open_forget_gate(self.linear.bias, hidden_dim)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step: ``input (..., input_dim)``, ``state`` = (h, c), each ``(..., hidden_dim)``."""
        return _update(self.linear(_joined(input, state[0])), state[1])


class ContextLSTMCell(nn.Module):
    """An LSTM cell with input [context, input], where the context is the same in all steps.

    The context's term in the gates, usually by far the larger matrix product, is computed once by :meth:`gates` and
    added in each step. The result equals that of :class:`LSTMCell` on the concatenation.
    """

    def __init__(self, context_dim: int, input_dim: int, hidden_dim: int):
        super().__init__()
        self.context = nn.Linear(context_dim, 4 * hidden_dim)
        self.recurrent = nn.Linear(input_dim + hidden_dim, 4 * hidden_dim, bias=False)
        _open_forget_gate(self.context.bias, hidden_dim)

    def gates(self, context: Tensor) -> Tensor:
        """The context's term in the gates, ``(..., context_dim) -> (..., 4 * hidden_dim)``."""
        return self.context(context)

    def forward(self, gates: Tensor, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step: ``gates`` from :meth:`gates`, ``input (..., input_dim)``, ``state`` = (h, c)."""
        return _update(gates + self.recurrent(_joined(input, state[0])), state[1])


def _joined(input: Tensor, h: Tensor) -> Tensor:
    return torch.cat([input, h.expand(*input.shape[:-1], -1)], -1)  # the first h may lack leading dimensions


def _update(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@torch.no_grad()
def _open_forget_gate(bias: Tensor, hidden_dim: int) -> None:
    """Initialize the forget gate's bias so that the cell remembers by default."""
    bias[hidden_dim : 2 * hidden_dim] += 1.0


class ImageRowEncoder(nn.Module):
    """An LSTM over the rows of an image, top to bottom, followed by a linear layer on its last state.

    ``(..., C, H, W) -> (..., out_dim)``.
    """

    def __init__(self, image: Sequence[int], hidden_dim: int, out_dim: int):
        super().__init__()
        channels, _, width = image
        self.lstm = nn.LSTM(channels * width, hidden_dim, batch_first=True)
        self.out = nn.Linear(hidden_dim, out_dim)
        _open_forget_gate(self.lstm.get_parameter("bias_ih_l0"), hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """The features of each image."""
        rows = x.movedim(-2, -3).flatten(-2)  # (..., H, C W)
        lead = rows.shape[:-2]
        states, _ = self.lstm(rows.flatten(0, -3))
        return self.out(states[:, -1]).unflatten(0, lead)
