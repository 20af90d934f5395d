"""Fully connected networks."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm as normalise
from torch.nn.functional import softplus

from pplmodels import distributed

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky-relu": partial(nn.LeakyReLU, 0.1),
}
VARIANCE_FLOOR = 1e-5


def mlp(
    in_dim: int,
    hidden_dims: Sequence[int],
    out_dim: int | None = None,
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Linear layers with an activation after each hidden layer: ``(..., in_dim) -> (..., out_dim)``.

    Without ``out_dim``, the network is a feature extractor that ends with the activation of the last hidden layer. With
    ``batch_norm``, the inputs of activations are normalized over the batch.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [linear(in_dim, width, batch_norm), ACTIVATIONS[activation]()]
        in_dim = width
    if out_dim is not None:
        layers.append(nn.Linear(in_dim, out_dim))
    return nn.Sequential(*layers)


def linear(in_dim: int, out_dim: int, batch_norm: bool) -> nn.Module:
    """A linear layer, optionally with batch norm, whose bias then replaces the layer's."""
    if not batch_norm:
        return nn.Linear(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, out_dim, bias=False), BatchNorm(out_dim))


class BatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` over all leading dimensions of ``(..., D)``.

    A batch of one image has no variance, so it is normalized by the running statistics.
    """

    running_mean: Tensor  # torch's may be None, because it can be told to keep no statistics
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int):
        super().__init__(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x."""
        rows = x.flatten(0, -2)
        if self.training and distributed.world_size() > 1:
            rows = self._over_ranks(rows)
        elif self.training and len(rows) == 1:
            rows = normalise(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        else:
            rows = super().forward(rows)
        return rows.view(x.shape)

    def _over_ranks(self, rows: Tensor) -> Tensor:
        """Normalize by the statistics of the rows of all ranks, which have equally many."""
        length = len(rows) * distributed.world_size()
        mean = distributed.all_reduce(rows.sum(0)) / length
        variance = distributed.all_reduce((rows - mean).square().sum(0)) / length
        with torch.no_grad():
            self.num_batches_tracked += 1
            # as in torch, running statistics without a momentum are plain means over the batches
            rate = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * (length / (length - 1)), rate)
        return (rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class NormalHead(nn.Module):
    """Mean and variance, both ``(..., out_dim)``, of a diagonal normal, from features ``(..., in_dim)``.

    The variance is a softplus plus 1e-5.
    """

    def __init__(self, in_dim: int, out_dim: int, batch_norm: bool = False):
        super().__init__()
        self.linear = linear(in_dim, 2 * out_dim, batch_norm)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance)."""
        loc, raw = self.linear(features).chunk(2, -1)
        return loc, softplus(raw) + VARIANCE_FLOOR
