"""Measure-valued derivatives (Mohamed et al. 2020, "Monte Carlo gradient estimation in machine learning", JMLR 21
(132), section 6 and table 1).

The derivative of a density with respect to a parameter is a signed measure, which is a difference of two densities up
to a constant. So the derivative of an expectation is the difference of the function's means at values of the two:

.. code-block:: text

    d/d theta E_{q(z; theta)}[f(z)] = c (E[f(z+)] - E[f(z-)])

    ===========  =========  ==================  =================================  ===============================
    family       parameter  c                   z+                                 z-
    ===========  =========  ==================  =================================  ===============================
    Bernoulli    p          1                   1                                  0
    Categorical  p_k        1                   k                                  (sum over k, no negative value)
    Poisson      rate       1                   z + 1,  z ~ Poisson(rate)          z
    Normal       mu         1/(sigma sqrt(2 pi))  mu + sigma W                     mu - sigma W
    Normal       sigma      1/sigma             mu + sigma M                       mu + sigma M U
    ===========  =========  ==================  =================================  ===============================

W is Weibull with shape 2 and scale sqrt(2), M is double-sided Maxwell and U is uniform on (0, 1), so that M U is
standard normal. The positive and the negative value of each pair share their noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, Poisson


class Measures(NamedTuple):
    """The gradient of E[f] with respect to all parameters is that of ``sum_v weights[v] f(values[v])``.

    ``values (V, *shape)`` are the values at which the function is needed. ``weights (V, *shape)`` depend on the
    parameters. Only their gradients have a meaning.
    """

    values: Tensor
    weights: Tensor


def measures(function: TorchDistributionMixin, sample: Tensor) -> Measures:
    """The measures of a univariate distribution from a sample, both of the same shape."""
    family = family_of(function)
    if family is None:
        raise ValueError(f"there is no measure-valued derivative for {type(function).__name__}")
    return FAMILIES[family](function, sample)


def family_of(function: object) -> type | None:
    """The family of a distribution, or None if its derivatives are not implemented."""
    return next((family for family in FAMILIES if isinstance(function, family)), None)


def _bernoulli(function: Bernoulli, sample: Tensor) -> Measures:
    values = torch.stack([torch.ones_like(sample), torch.zeros_like(sample)])
    return Measures(values, torch.stack([function.probs, 1 - function.probs]))


def _categorical(function: Categorical, sample: Tensor) -> Measures:
    values = function.enumerate_support(expand=True).to(sample.dtype)
    return Measures(values, function.probs.movedim(-1, 0))


def _poisson(function: Poisson, sample: Tensor) -> Measures:
    return Measures(torch.stack([sample + 1, sample]), torch.stack([function.rate, -function.rate]))


def _normal(function: Normal, sample: Tensor) -> Measures:
    loc, scale = function.loc, function.scale
    with torch.no_grad():
        weibull = (2 * torch.empty_like(sample).exponential_()).sqrt()
        chi = torch.stack([torch.empty_like(sample).normal_() for _ in range(3)]).square().sum(0).sqrt()
        maxwell = torch.where(torch.empty_like(sample).uniform_() < 0.5, chi, -chi)
        normal = maxwell * torch.empty_like(sample).uniform_()
        values = loc + scale * torch.stack([weibull, -weibull, maxwell, normal])
    by_loc = loc / (scale.detach() * math.sqrt(2 * math.pi))
    by_scale = scale / scale.detach()
    return Measures(values, torch.stack([by_loc, -by_loc, by_scale, -by_scale]))


FAMILIES: dict[type, Callable[..., Measures]] = {
    Bernoulli: _bernoulli,
    Categorical: _categorical,
    Normal: _normal,
    Poisson: _poisson,
}
