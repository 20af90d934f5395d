"""Networks that know one batch dimension, on tensors that have several."""

from torch import Tensor, nn


class BatchApply(nn.Module):
    """``net`` on ``(..., *event)``: the leading dimensions become one batch, and come back on its result.

    Arguments:
        net: from ``(N, *event)`` to ``(N, ...)``.
        event_dims: how many dimensions an event has.
    """

    def __init__(self, net: nn.Module, event_dims: int):
        super().__init__()
        self.net, self.event_dims = net, event_dims

    def forward(self, x: Tensor) -> Tensor:
        """``(..., *event)`` to ``(..., *result)``."""
        lead = x.shape[: x.dim() - self.event_dims]
        return self.net(x.flatten(0, len(lead) - 1)).unflatten(0, lead)
