"""Replaying pairs as strangers write them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import nn
from twins import Guide, Model, graphs, step_both, twins

from pplmodels.infer import SVI, adam


class PlainModule(nn.Module):
    """No PyroModule at all: pyro.sample inside a plain forward, a recurrent net, a sampler, a mask."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.out = nn.Linear(5, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > -1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            on = pyro.sample("on", dist.Bernoulli(torch.full((len(x),), 0.3)))
            states, _ = self.lstm(torch.stack([z, z * on[:, None]], 1))
            theta = torch.eye(2, 3).expand(len(x), 2, 3) + 0.01 * states[:, -1, :3, None].mean((1, 2))[:, None, None]
            grid = nn.functional.affine_grid(theta, [len(x), 1, 2, 2], align_corners=False)
            image = nn.functional.grid_sample(self.out(states[:, -1]).view(-1, 1, 2, 2), grid, align_corners=False)
            pyro.sample("x", dist.Normal(image.flatten(1), 1.0).to_event(1), obs=x)


class PlainGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.2))
        self.baseline = nn.Linear(4, 1)

    def forward(self, x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > -1):
            loc, raw, logits = self.net(x).split([4, 4, 1], -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            infer = {"baseline": {"baseline_value": self.baseline(x).squeeze(-1)}}
            pyro.sample("on", dist.Bernoulli(logits=logits.squeeze(-1)), infer=infer)


class ChannelsLastGuide(nn.Module):
    """Convolutions whose weights, and so whose results and gradients, have their channels last."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Linear(4, 48)
        conv = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 1, 1)
        self.conv = nn.Sequential(*conv).to(memory_format=torch.channels_last)
        self.out = nn.Linear(24, 6)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            image = self.shift(x).view(-1, 3, 4, 4)
            loc, raw = self.out(self.conv(image).flatten(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class TwoPlatesModel(PyroModule):
    """A global weight, two nested plates, a categorical site."""

    def __init__(self):
        super().__init__("two_plates")
        self.means = nn.Parameter(torch.randn(3))

    def forward(self, x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", x.shape[1], dim=-1):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x), dim=-2):
                k = pyro.sample("k", dist.Categorical(torch.ones(3)))
                pyro.sample("x", dist.Normal(w * self.means[k] + b, 1.0), obs=x)


class TwoPlatesGuide(PyroModule):
    def __init__(self):
        super().__init__("two_plates_guide")
        self.w = nn.Parameter(torch.tensor(0.1))
        self.b = nn.Parameter(torch.zeros(4))
        self.logits = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        pyro.sample("w", dist.Normal(self.w, 0.5))
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("b", dist.Normal(self.b, 0.5))
            with pyro.plate("rows", len(x), dim=-2):
                pyro.sample("k", dist.Categorical(logits=self.logits))


STRANGERS = {
    "batch norm and dropout": (Model, Guide, TraceGraph_ELBO),
    "under Trace_ELBO": (Model, Guide, Trace_ELBO),
    "under TraceMeanField_ELBO": (Model, Guide, TraceMeanField_ELBO),
    "three particles": (Model, Guide, lambda: TraceGraph_ELBO(num_particles=3)),
    "three particles under Trace_ELBO": (Model, Guide, lambda: Trace_ELBO(num_particles=3)),
    "plain modules, lstm, mask, grid_sample": (PlainModule, PlainGuide, TraceGraph_ELBO),
    "two plates and a categorical": (TwoPlatesModel, TwoPlatesGuide, TraceGraph_ELBO),
    "two plates under Trace_ELBO": (TwoPlatesModel, TwoPlatesGuide, Trace_ELBO),
    "vectorised particles": (
        TwoPlatesModel,
        TwoPlatesGuide,
        lambda: TraceGraph_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2),
    ),
}


@pytest.mark.parametrize("row", STRANGERS.values(), ids=STRANGERS)
def test_pairs_of_strangers_give_the_same_numbers(row, x):
    svis = twins(*row)
    for step in range(5):
        step_both(svis, x, seed=step, exact=row[0] is not PlainModule)  # whose LSTM is traced without oneDNN's kernel
    assert graphs(svis) == 1


def test_kernels_may_return_other_strides_than_when_they_were_traced():
    """From 16 images on, torch's own convolutions return channels first, but oneDNN's return them last."""
    svis = twins(Model, ChannelsLastGuide)
    for step in range(3):
        step_both(svis, torch.randn(16, 4), seed=step)


def test_functions_around_modules_are_looked_into(x):
    """Closures, handlers and partials hide modules: their mode and buffers count all the same."""
    results = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        model, guide = Model(), Guide()
        inner = poutine.scale(model, 0.5)

        def outer(x, inner=inner):
            return inner(x)

        svi = SVI(
            poutine.scale(outer, 2.0), lambda x, guide=guide: guide(x), adam(model, guide, 1e-2), compile=compiled
        )
        losses = [svi.step(x)]
        model.eval()
        model.temperature.fill_(0.5)
        results.append([*losses, svi.step(x), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
