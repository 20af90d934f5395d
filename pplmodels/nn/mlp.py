"""Fully connected networks."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm as normalise
from torch.nn.functional import softplus

from pplmodels import distributed

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "leaky-relu": partial(nn.LeakyReLU, 0.1)}
VARIANCE_FLOOR = 1e-5


def mlp(
    in_dim: int,
    hidden_dims: Sequence[int],
    out_dim: int | None = None,
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Linear layers with an activation after each hidden one: ``(..., in_dim) -> (..., out_dim)``.

    Without ``out_dim`` the network ends with the last hidden layer's activation, as a feature extractor. With
    ``batch_norm`` what goes into the activations is normalised over the batch.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [linear(in_dim, width, batch_norm), ACTIVATIONS[activation]()]
        in_dim = width
    if out_dim is not None:
        layers.append(nn.Linear(in_dim, out_dim))
    return nn.Sequential(*layers)


def linear(in_dim: int, out_dim: int, batch_norm: bool) -> nn.Module:
    """A linear layer, normalised over the batch or not; a normalised one has no bias but the normalisation's."""
    if not batch_norm:
        return nn.Linear(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, out_dim, bias=False), BatchNorm(out_dim))


class BatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` over all leading dimensions of ``(..., D)``.

    A batch of one image, which has no variance, is normalised by the running statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x, normalised."""
        rows = x.flatten(0, -2)
        if self.training and distributed.world_size() > 1:
            rows = self._over_ranks(rows)
        elif self.training and len(rows) == 1:
            rows = normalise(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        else:
            rows = super().forward(rows)
        return rows.view(x.shape)

    def _over_ranks(self, rows: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks' rows, of which each has as many."""
        length = len(rows) * distributed.world_size()
        mean = distributed.all_reduce(rows.sum(0)) / length
        variance = distributed.all_reduce((rows - mean).square().sum(0)) / length
        with torch.no_grad():
            self.num_batches_tracked += 1
            # as in torch: without a momentum the running statistics are plain means over the batches
            rate = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * (length / (length - 1)), rate)
        return (rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class NormalHead(nn.Module):
    """Mean and variance, both ``(..., out_dim)``, of a diagonal normal, from features ``(..., in_dim)``.

    The variance is a softplus above a floor of 1e-5: it can be anything positive.
    """

    def __init__(self, in_dim: int, out_dim: int, batch_norm: bool = False):
        super().__init__()
        self.linear = linear(in_dim, 2 * out_dim, batch_norm)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance)."""
        loc, raw = self.linear(features).chunk(2, -1)
        return loc, softplus(raw) + VARIANCE_FLOOR
