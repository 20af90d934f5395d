"""Importance-weighted bounds where log p(x) is known."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from pplmodels.errors import InputError
from pplmodels.metrics import elbo_terms, importance_weighted, log_probs


class Model(PyroModule):
    """z ~ N(0, 1), x ~ N(z, 0.5^2): log p(x) = log N(x; 0, 1.25)."""

    def __init__(self):
        super().__init__("bounds_model")

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


class Guide(PyroModule):
    """The exact posterior N(0.8 x, 0.2) with its variance multiplied by ``wider``."""

    def __init__(self, wider):
        super().__init__("bounds_guide")
        self.wider = wider

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, math.sqrt(0.2 * self.wider)))


def bound(wider, x, num_samples, batch=100):
    return importance_weighted(partial(log_probs, Model(), Guide(wider)), x.split(batch), num_samples).bound


def test_the_exact_posterior_gives_log_p_of_each_image(float64):
    x = torch.randn(30) * 1.1
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x)
    for num_samples in (1, 7):
        torch.testing.assert_close(bound(1.0, x, num_samples, batch=8), exact)


def test_more_samples_are_tighter_and_reach_log_p():
    """K = 1 is the ELBO; the mean over 4,000 images with K = 100 is within five standard errors of log p(x)."""
    x = torch.full((4000,), 0.3)
    exact = float(dist.Normal(0.0, math.sqrt(1.25)).log_prob(x[0]))
    bounds = [bound(1.6, x, num_samples) for num_samples in (1, 10, 100)]
    elbo = elbo_terms(partial(log_probs, Model(), Guide(1.6)), x.split(100))[0]["elbo"]
    assert elbo == pytest.approx(float(bounds[0].mean()), abs=5 * 2**0.5 * float(bounds[0].std()) / 4000**0.5)
    assert bounds[0].mean() < bounds[1].mean() < exact
    assert float(bounds[2].mean()) == pytest.approx(exact, abs=5 * float(bounds[2].std()) / 4000**0.5)


def test_samples_at_once_are_samples_one_by_one(float64):
    """The same noise, four at a time: the same bound and effective size; and the exact posterior's size is K."""
    x = torch.randn(16)  # torch draws normals in blocks of 16
    bounds = []
    for samples in (None, 4):
        pyro.set_rng_seed(1)
        bounds.append(importance_weighted(partial(log_probs, Model(), Guide(1.6), samples=samples), [x], 8))
    torch.testing.assert_close(bounds[0].bound, bounds[1].bound)
    torch.testing.assert_close(bounds[0].ess, bounds[1].ess)
    exact = importance_weighted(partial(log_probs, Model(), Guide(1.0), samples=3), [x], 7)
    torch.testing.assert_close(exact.ess, torch.full((16,), 7.0))


@pytest.mark.parametrize("num_samples", [0, -1])
def test_no_samples_are_refused(num_samples):
    with pytest.raises(InputError, match="at least one sample"):
        bound(1.0, torch.zeros(3), num_samples)
