"""Apply networks that expect one batch dimension to tensors with several."""

from torch import Tensor, nn


class BatchApply(nn.Module):
    """Applies ``net`` to ``(..., *event)``: leading dimensions are flattened to one batch and restored afterward.

    Arguments:
        net: a module from ``(N, *event)`` to ``(N, ...)``.
        event_dims: number of dimensions of an event.
    """

    def __init__(self, net: nn.Module, event_dims: int):
        super().__init__()
        self.net, self.event_dims = net, event_dims

    def forward(self, x: Tensor) -> Tensor:
        """``(..., *event)`` to ``(..., *result)``."""
        lead = x.shape[: x.dim() - self.event_dims]
        return self.net(x.flatten(0, len(lead) - 1)).unflatten(0, lead)
