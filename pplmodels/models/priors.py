"""Priors p(z): modules that return a distribution over latents, event shape (D)."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """N(0, I) over D dimensions."""

    loc: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim))

    def forward(self) -> TorchDistributionMixin:
        """p(z), event shape (D)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class AutoregressiveFlow(nn.Module):
    """A prior that one autoregressive step maps to N(0, I) (VLAE: Chen et al. 2017, arXiv 1611.02731, section 3.2).

    .. code-block:: text

        eps_i = exp(a_i(z_{<i})) z_i + m_i(z_{<i}) ~ N(0, 1),   log p(z) = log N(eps) + sum_i a_i

    m and a are the outputs of Pyro's MADE (Germain et al. 2015, arXiv 1502.03509). log p takes one pass through it, and
    a sample takes D passes. Its last layer is initialized to 0, so that an untrained flow is N(0, I).

    Arguments:
        dim: D.
        hidden_dims: widths of the MADE's hidden layers.
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int] = (512, 512)):
        super().__init__()
        self.base = StandardNormal(dim)
        self.network = identity_made(dim, hidden_dims)

    def forward(self) -> TorchDistributionMixin:
        """p(z), event shape (D)."""
        return dist.TransformedDistribution(self.base(), [AffineAutoregressive(self.network).inv])


def identity_made(dim: int, hidden_dims: Sequence[int]) -> AutoRegressiveNN:
    """The network of an :class:`AffineAutoregressive` step that is initially the identity.

    Create a new step for each use, because a step caches its last value, even if the network has changed since.
    """
    if min(hidden_dims) < dim:
        raise ValueError(
            f"the hidden layers of a MADE of {dim} dimensions need at least {dim} units, not {min(hidden_dims)}"
        )
    with torch.random.fork_rng(devices=[]):  # so the pair's other weights do not depend on it
        order = torch.arange(dim)  # Pyro's annotation, LongTensor, means any tensor of int64
        network = AutoRegressiveNN(dim, list(hidden_dims), permutation=order)  # type: ignore[arg-type]
    for parameter in network.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return network
