"""Pairs in the style of Pyro's examples: our SVI, compiled or not, takes the steps of Pyro's, or says why it cannot."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO
from pyro_examples import EXAMPLES

from pplmodels.infer import SVI, CompileError, PerSite_ELBO


def parameters(*programs):
    """The parameters of the modules that programs are, or are methods of, each once."""
    modules = [getattr(program, "__self__", program) for program in programs]
    found = {id(p): p for m in modules if isinstance(m, torch.nn.Module) for p in m.parameters() if p.requires_grad}
    return list(found.values())


def losses(example, engine, loss=None):
    """Five losses an image, of the same pair under the same seeds."""
    build = loss or example.loss
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = example.build()
    if engine == "stock":
        svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), build())
    else:
        optim = torch.optim.SGD(parameters(model, guide), lr=1e-3)
        svi = SVI(model, guide, optim, build(), compile={"uncompiled": False, "compiled": True}.get(engine, engine))
    found = []
    for step in range(5):
        if example.before is not None:
            example.before(model, step)
        pyro.set_rng_seed(100 + step)
        loss = float(svi.step(*example.arguments(step)))
        found.append(loss / example.images if engine == "stock" else loss)
    return found


@pytest.mark.kernels
@pytest.mark.filterwarnings("ignore")  # of Pyro's own, about the pairs
@pytest.mark.parametrize("name", EXAMPLES)
def test_steps_are_stock_pyros(name):
    example = EXAMPLES[name]
    expected = pytest.approx(losses(example, "stock"), rel=1e-5)
    assert losses(example, "uncompiled") == expected
    if example.refused:
        with pytest.raises(CompileError, match=example.refused):
            losses(example, "compiled")
        assert losses(example, "auto") == expected
    else:
        assert losses(example, "compiled") == expected


GRAPHS = [name for name, example in EXAMPLES.items() if example.loss is not TraceMeanField_ELBO]


@pytest.mark.kernels
@pytest.mark.filterwarnings("ignore")  # of Pyro's own, about the pairs
@pytest.mark.parametrize("name", GRAPHS)
def test_per_site_steps_are_those_of_tracegraph(name):
    example = EXAMPLES[name]
    expected = pytest.approx(losses(example, "uncompiled", TraceGraph_ELBO), rel=1e-5)
    assert losses(example, "uncompiled", PerSite_ELBO) == expected


@pytest.mark.parametrize("estimators", [{"k": "enum"}, {"k": "mvd", "n": "mvd"}, {"k": "rloo", "n": "rloo"}], ids=str)
def test_other_estimators_train_the_score_functions(estimators):
    """The discrete sites of an example: compiled steps are the uncompiled ones."""
    particles = 2 if "rloo" in estimators.values() else 1
    build = partial(PerSite_ELBO, estimators=estimators, num_particles=particles, max_plate_nesting=1)
    uncompiled = losses(EXAMPLES["score functions"], "uncompiled", build)
    assert all(map(math.isfinite, uncompiled))
    assert losses(EXAMPLES["score functions"], "compiled", build) == pytest.approx(uncompiled, rel=1e-5)


def test_a_parameter_that_only_pyros_store_has_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)

    unused = torch.nn.Parameter(torch.zeros(()))
    svi = SVI(model, lambda x: None, torch.optim.SGD([unused], lr=0.1))
    with pytest.raises(ValueError, match=r'the optimizer does not have pyro\.param\("loc"\)'):
        svi.step(torch.randn(3))
