"""How much of a code is used, where that is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from pplmodels.metrics import active_units, bits_per_dim, elbo_surgery, posterior_mean_variances


class Model(PyroModule):
    """z ~ N(0, I_3); x is not modelled."""

    def __init__(self):
        super().__init__("codes_model")

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


class Guide(PyroModule):
    """z = (x + noise of deviation s, 0.05 x + noise, noise): one coordinate that knows x well, one hardly, one not."""

    def __init__(self, scale):
        super().__init__("codes_guide")
        self.scale = scale

    def forward(self, x):
        loc = x[:, None] * torch.tensor([1.0, 0.05, 0.0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.tensor([self.scale, 1.0, 1.0])).to_event(1))


def test_variances_of_the_posterior_means_are_found_from_samples():
    variances = posterior_mean_variances(Guide(0.3), torch.randn(20_000).mul(0.9).split(3000))
    assert variances["z"].tolist() == pytest.approx([0.81, 0.002, 0.0], abs=0.04)
    assert active_units(Guide(0.3), torch.randn(200_000).mul(0.9).split(50_000)) == {"z": 1}


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_kl_is_information_and_the_aggregates_distance(chunk):
    """x ~ N(0, 0.91), z_1 | x ~ N(x, 0.09): q(z_1) is N(0, 1), and I = ln(1 / 0.3) up to the estimate's bias 1/N."""
    x = torch.randn(2000) * math.sqrt(0.91)
    found = elbo_surgery(Model(), Guide(0.3), x, chunk=chunk)
    small = 0.5 * math.log(1 + 0.05**2 * 0.91)  # of the second coordinate
    assert found["mutual_information"] == pytest.approx(math.log(1 / 0.3) + small, abs=0.08)
    assert found["aggregate_kl"] == pytest.approx(0.0, abs=0.08)


def test_the_estimate_of_information_is_at_most_log_n():
    assert elbo_surgery(Model(), Guide(1e-4), torch.randn(64))["mutual_information"] == pytest.approx(
        math.log(64), abs=0.2
    )


def test_bits_per_dim_of_even_levels_are_eight():
    """A distribution of 1/256 a level, and the density 1 on [0, 1], are the same."""
    shape = (3, 4, 5)
    assert bits_per_dim(-60 * math.log(256), shape, is_density=False) == pytest.approx(8)
    assert bits_per_dim(0.0, shape, is_density=True) == pytest.approx(8)
