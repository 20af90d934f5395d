"""The wrapped normal: a density on the circle, the same by both sums, and samples that follow it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pplmodels.distributions import WrappedNormal
from pplmodels.distributions.wrapped_normal import EVEN, WIDE, wrapped

SCALES = (0.05, 0.7, WIDE - 1e-6, WIDE + 1e-6, 3.0)


def on_the_line(value, loc, scale):
    """The density as a long sum of normals."""
    turns = 2 * math.pi * torch.arange(-40, 41)
    return dist.Normal(loc, scale).log_prob(value[..., None] + turns).logsumexp(-1)


@pytest.mark.parametrize("scale", SCALES)
def test_the_density_is_the_wrapped_normals(scale, float64):
    value = torch.linspace(-math.pi, math.pi, 401)
    for loc in (0.3, -3.1, 9.0):
        torch.testing.assert_close(
            WrappedNormal(loc, scale).log_prob(value), on_the_line(value, loc, scale), rtol=1e-6, atol=1e-8
        )
        assert WrappedNormal(loc, scale).log_prob(value[:-1]).exp().mean() * 2 * math.pi == pytest.approx(1, abs=1e-6)


def test_from_a_certain_scale_on_it_is_even(float64):
    value = torch.linspace(-math.pi, math.pi, 100)
    for scale in (EVEN, 100.0):
        torch.testing.assert_close(
            WrappedNormal(1.0, scale).log_prob(value), torch.full((100,), -math.log(2 * math.pi))
        )


def test_it_is_periodic_in_its_mean(float64):
    value = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(
        WrappedNormal(0.4, 0.6).log_prob(value), WrappedNormal(0.4 + 6 * math.pi, 0.6).log_prob(value)
    )


@pytest.mark.parametrize("scale", SCALES)
def test_samples_follow_the_density(scale):
    """The first two trigonometric moments, exp(-n^2 scale^2 / 2) cos and sin of n loc, within 4.5 standard errors."""
    value = WrappedNormal(2.5, scale).sample((100_000,))
    assert value.abs().max() <= math.pi + 1e-6
    for order in (1, 2):
        length = math.exp(-((order * scale) ** 2) / 2)
        for function, moment in ((torch.cos, math.cos(2.5 * order)), (torch.sin, math.sin(2.5 * order))):
            drawn = function(order * value)
            assert abs(float(drawn.mean()) - length * moment) < 4.5 * float(drawn.std()) / 100_000**0.5 + 1e-6


def test_a_sample_moves_with_mean_and_scale(float64):
    loc, scale = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    value = WrappedNormal(loc, scale).rsample((1000,))
    slopes = torch.autograd.grad(value.sum(), [loc, scale])
    assert float(slopes[0]) == pytest.approx(1000)
    assert float(slopes[1]) == pytest.approx(float((wrapped(value.detach() - 3.0) / 0.5).sum()), rel=1e-6)


def test_pyro_takes_it(float64):
    with pyro.plate("data", 4):
        assert pyro.sample("a", WrappedNormal(torch.zeros(()), 1.0).mask(torch.tensor([True, False] * 2))).shape == (4,)
    assert WrappedNormal(torch.zeros(3), 1.0).expand((2, 3)).sample((5,)).shape == (5, 2, 3)
    with pytest.raises(ValueError):
        WrappedNormal(0.0, -1.0)
    with pytest.raises(ValueError):
        WrappedNormal(0.0, 1.0).log_prob(torch.tensor(4.0))
