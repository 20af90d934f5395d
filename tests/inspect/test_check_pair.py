"""check_pair finds what is wrong with a pair, and nothing where nothing is."""

import copy
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import PAIRS
from pyro.nn import PyroModule
from torch import nn

from pplmodels import inspect


class Model(PyroModule):
    """A chain: k is discrete, z continuous and positive."""

    def __init__(self, **changes):
        super().__init__("model")
        self.linear = nn.Linear(2, 3)
        self.changes = changes

    def forward(self, x=None, n=None):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            if self.changes.get("lost"):
                k = Opaque.apply(k)
            z = pyro.sample("z", dist.LogNormal(k, 1.0))
            if self.changes.get("more"):
                pyro.sample("w", dist.Normal(0.0, 1.0))
            loc = self.linear(torch.stack([z, k], -1))
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self, name="guide", **changes):
        super().__init__(name)
        self.linear = nn.Linear(3, 2)
        self.changes = changes
        if changes.get("unused"):
            self.spare = nn.Linear(3, 3)

    def forward(self, x=None, n=None):
        change = self.changes.get
        out = self.linear(x)
        with pyro.plate("images" if change("plate") else "data", len(x), dim=-1):
            q_k = dist.Bernoulli(logits=out[:, 0])
            pyro.sample("k", q_k.mask(x[:, 0] > 0) if change("masked") else q_k)
            if change("event"):
                pyro.sample("z", dist.LogNormal(out[:, 1:], 1.0).to_event(1))
            elif change("support"):
                pyro.sample("z", dist.Normal(out[:, 1] - 10, 1.0))
            elif change("wide"):
                pyro.sample("z", dist.LogNormal(out[:, 1:].expand(-1, len(x)), 1.0))
            else:
                pyro.sample("z", dist.LogNormal(out[:, 1], 1.0))
            if change("extra"):
                pyro.sample("y", dist.Normal(0.0, 1.0))
            if change("raises"):
                self.missing(x)


class Opaque(torch.autograd.Function):
    """The identity, behind Pyro's back."""

    @staticmethod
    def forward(ctx, value):
        return torch.from_numpy(value.numpy().copy())

    @staticmethod
    def backward(ctx, grad):
        return grad


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_sound_pair_has_no_findings():
    assert inspect.check_pair(Model(), Guide(), X) == []


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_that_is_checked_stays_as_it_is(name):
    model, guide = pair = PAIRS[name].build()
    before = copy.deepcopy(nn.ModuleList(pair).state_dict())
    x = PAIRS[name].batch(12)
    random = torch.get_rng_state()
    inspect.check_pair(model, guide, x)
    assert torch.equal(torch.get_rng_state(), random)
    after = nn.ModuleList(pair).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("model", "guide", "finding"),
    [
        ({}, {"name": "model"}, "Model and guide are both named 'model'"),
        ({}, {"extra": True}, "y is only a site of the guide"),
        ({"more": True}, {}, "w is only a site of the model"),
        (
            {},
            {"plate": True},
            r"k is in the plates \['images'\] in the guide and in .* \['data'\] in the model",
        ),
        ({}, {"event": True}, r"z has event shape \(1,\) in the guide and \(\) in the model"),
        ({}, {"support": True}, "z of the guide has values outside of the support"),
        ({}, {"wide": True}, r"z of the guide has batch shape \(4, 4\) for 4 images"),
        ({}, {"masked": True}, "k of the guide is masked, but its score function is not"),
        ({}, {"unused": True}, "Training would not change guide.spare.weight"),
        ({}, {"raises": True}, "Running the guide fails with AttributeError"),
        ({"lost": True}, {}, "z of the model depends on k, but Pyro does not track this"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide", "ignore:Found non-auxiliary vars in guide")
def test_each_fault_is_found(model, guide, finding):
    findings = inspect.check_pair(Model(**model), Guide(**guide), X)
    assert any(re.search(finding, sentence) for sentence in findings), findings


def test_weights_that_are_not_finite_are_found():
    guide = Guide()
    with torch.no_grad():
        guide.linear.weight.fill_(torch.nan)
    (finding,) = inspect.check_pair(Model(), guide, X)
    assert finding.startswith("Running the guide fails with ValueError: Expected parameter")


def test_the_table_and_the_graph_say_what_is_there():
    model, guide = Model(), Guide()
    table = inspect.site_table(model, guide, X)
    assert list(table.index) == ["k", "z", "x"]
    assert list(table["kind"]) == ["latent", "latent", "observed"]
    assert list(table["model"]) == ["Bernoulli", "LogNormal", "Normal"]
    assert list(table["guide"]) == ["Bernoulli", "LogNormal", ""]
    assert table.loc["x", "event shape"] == (3,) and table.loc["z", "support"] == "GreaterThan(lower_bound=0.0)"
    found = inspect.graph(model, guide, X)
    assert found.model == {"k": [], "z": ["k"], "x": ["k", "z"]}
    assert found.guide == {"k": [], "z": []}
