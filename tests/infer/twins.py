"""A pair with all that makes replaying hard, once compiled and once not, and steps of both side by side."""

import copy

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pplmodels.infer import SVI, adam


class Model(PyroModule):
    """z ~ N(0, I_3), x ~ N(net(z), temperature); plus whatever a test asks for."""

    def __init__(self):
        super().__init__("model")
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.scale = PyroParam(torch.ones(4), dist.constraints.positive)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.power = 1

    def forward(self, x, weight=1.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            with poutine.scale(scale=weight):
                loc = self.net(z) ** self.power
                pyro.sample("x", dist.Normal(loc, self.scale * self.temperature).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("guide")
        self.net = nn.Linear(4, 6)

    def forward(self, x, weight=1.0):
        with pyro.plate("data", len(x)):
            loc, raw = self.net(x).chunk(2, -1)
            return pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def twins(model=Model, guide=Guide, loss=TraceGraph_ELBO, lr=1e-2, **options):
    """The same pair twice: SVI uncompiled and compiled."""
    modules = model(), guide()
    pairs = modules, copy.deepcopy(modules)
    return [
        SVI(*pair, adam(*pair, lr), loss(), compile=c, **options) for pair, c in zip(pairs, (False, True), strict=True)
    ]


def step_both(svis, *args, seed=0, exact=True, **kwargs):
    """One step of both from the same seed; all numbers must be equal, to the bit or up to float32's rounding."""
    outcomes = []
    for svi in svis:
        pyro.set_rng_seed(seed)
        loss = svi.step(*args, **kwargs)
        tensors = [t for module in (svi.model, svi.guide) for t in module.state_dict().values()]
        gradients = [p.grad for module in (svi.model, svi.guide) for p in module.parameters() if p.grad is not None]
        outcomes.append([t.clone() for t in (loss, *gradients, *tensors)])
    assert len(outcomes[0]) == len(outcomes[1])
    if exact:
        assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    else:
        torch.testing.assert_close(*outcomes)
    return outcomes[0][0]


def graphs(svis):
    return len(svis[1]._run.graphs)
