"""Posteriors with named dimensions: the guide's own samples, rightly labelled and weighed."""

import warnings

import arviz
import numpy as np
import pytest
import torch
from pairs import PAIRS
from pyro import poutine

from pplmodels import inspect
from pplmodels.inspect import posteriors
from pplmodels.metrics import importance_weighted, log_probs

LEADING = ("chain", "draw", "image")


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def modules(name):
    return tuple(module.eval() for module in PAIRS[name].build())


def test_every_pair_names_its_dimensions(pair):
    model, guide = (module.eval() for module in pair.build())
    x = pair.batch(3)
    found = inspect.posterior(model, guide, x, num_samples=7, max_batch=5)
    assert found.observed_data["x"].shape == x.shape and found.observed_data["x"].dims[0] == "image"
    for name in ("lp", "log_weight"):
        assert found.sample_stats[name].dims == LEADING and found.sample_stats[name].shape == (1, 7, 3)
    assert found.log_likelihood["x"].shape == (1, 7, 3)
    trace = poutine.trace(guide).get_trace(x)
    sites = {name for name in trace.stochastic_nodes if name != "data"}
    variables = dict(found.posterior.data_vars) if sites else {}
    assert {posteriors.base_site_name(site) for site in sites} == set(variables)
    for name, variable in variables.items():
        steps = inspect.steps(trace.nodes, name)
        step = () if name in sites else ("step",)
        assert variable.dims[: 3 + len(step)] == LEADING + step
        assert not step or list(variable["step"].values) == list(range(1, len(steps) + 1))
        assert variable.shape[3 + len(step) :] == trace.nodes[name if name in sites else f"{name}_1"]["fn"].event_shape
        assert "dim_" not in "".join(variable.dims)
    drawn = inspect.prior(model, num_samples=4, max_batch=3)
    assert drawn.prior_predictive["x"].shape == (1, 4, *x.shape[1:])
    assert not sites or set(drawn.prior.data_vars) == set(variables)
    again = inspect.predictive(model, guide, x, num_samples=4, max_batch=5)
    assert again.posterior_predictive["x"].shape == (1, 4, *x.shape)


def test_samples_are_the_guides(float64):
    model, guide = modules("air")
    x = PAIRS["air"].batch(3)
    torch.manual_seed(1)
    found = inspect.posterior(model, guide, x, num_samples=6)
    torch.manual_seed(1)
    with torch.no_grad():
        log_p, log_q, values = log_probs(model, guide, x, 6)
    for t in (1, 2):
        kept = found.posterior["z_where"].sel(step=t, where=["log_size", "x", "y"])
        assert np.array_equal(kept[0], values[f"z_where_{t}"])
    weight = sum(log_p.values()) - sum(log_q.values())
    np.testing.assert_allclose(found.sample_stats["log_weight"][0], weight)
    np.testing.assert_allclose(found.sample_stats["lp"][0], sum(log_p.values()))
    np.testing.assert_allclose(found.log_likelihood["x"][0], log_p["x"])


def test_the_weights_give_the_importance_weighted_bound(float64):
    model, guide = modules("ladder vae")
    x = PAIRS["ladder vae"].batch(4)
    torch.manual_seed(2)
    weights = inspect.posterior(model, guide, x, num_samples=50, sites=["z1"])
    assert list(weights.posterior.data_vars) == ["z1"]
    torch.manual_seed(2)
    bound = importance_weighted(lambda part: log_probs(model, guide, part, 50), [x], 50).bound
    np.testing.assert_allclose(np.logaddexp.reduce(weights.sample_stats["log_weight"].values[0]) - np.log(50), bound)


def test_memory_is_bounded(monkeypatch):
    model, guide = modules("draw")
    sizes = []

    def watched(model, guide, x, samples):
        sizes.append(len(x) * samples)
        return log_probs(model, guide, x, samples)

    monkeypatch.setattr(posteriors, "log_probs", watched)
    found = inspect.posterior(model, guide, PAIRS["draw"].batch(7), num_samples=9, max_batch=4)
    assert max(sizes) <= 4 and sum(sizes) == 7 * 9
    z = found.posterior["z"].values
    assert z.shape == (1, 9, 7, 3, 2)
    assert len(np.unique(z)) == z.size  # every draw is one of its own


def test_arviz_summarises_them():
    model, guide = modules("air")
    found = inspect.posterior(model, guide, PAIRS["air"].batch(2), num_samples=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one chain has no R-hat; untrained weights vary
        table = arviz.summary(found, var_names=["z_where"], kind="stats")
        loo = arviz.loo(found, pointwise=True)
    assert "z_where[0, 1, log_size]" in table.index and len(table) == 2 * 2 * 3
    expected = found.posterior["z_where"].sel(image=0, step=1, where="x").mean()
    assert table.loc["z_where[0, 1, x]", "mean"] == pytest.approx(float(expected), abs=1e-3)
    each = loo.elpd_i if hasattr(loo, "elpd_i") else loo.loo_i  # ArviZ 1 renames it
    assert each.dims == ("image",)


def test_names_that_do_not_fit_are_refused():
    model, guide = modules("vae, fully connected")
    model.dims = {"z": ("one", "two")}
    with pytest.raises(ValueError, match=r"MLPVAE\.dims names 2 dimensions of z, but it has 1"):
        inspect.posterior(model, guide, PAIRS["vae, fully connected"].batch(2))


def test_a_pair_that_names_nothing_gets_arvizs_names():
    model, guide = modules("vae, fully connected")
    model.dims = {}
    found = inspect.posterior(model, guide, PAIRS["vae, fully connected"].batch(2))
    assert found.posterior["z"].dims == (*LEADING, "z_dim_0")
