"""Replayed programs: never stale, never wrong in silence, and general."""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pplmodels.infer import SVI, CannotCompile, adam
from pplmodels.infer.replay import MANY, Replay


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


def twins(model=Model, guide=Guide, loss=TraceGraph_ELBO, lr=1e-2):
    """The same pair twice: SVI uncompiled and compiled."""
    halves = model(), guide()
    pairs = halves, copy.deepcopy(halves)
    return [SVI(*pair, adam(*pair, lr), loss(), compile=c) for pair, c in zip(pairs, (False, True), strict=True)]


def step_both(svis, *args, seed=0, exact=True, **kwargs):
    """One step of both from the same seed; all numbers must be equal, to the bit or up to float32's rounding."""
    outcomes = []
    for svi in svis:
        pyro.set_rng_seed(seed)
        loss = svi.step(*args, **kwargs)
        tensors = [t for half in (svi.model, svi.guide) for t in half.state_dict().values()]
        gradients = [p.grad for half in (svi.model, svi.guide) for p in half.parameters() if p.grad is not None]
        outcomes.append([t.clone() for t in (loss, *gradients, *tensors)])
    assert len(outcomes[0]) == len(outcomes[1])
    if exact:
        assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    else:
        torch.testing.assert_close(*outcomes)
    return outcomes[0][0]


def graphs(svis):
    return len(svis[1]._run.graphs)


@pytest.fixture
def x():
    return torch.randn(12, 4)


def test_each_change_makes_a_new_graph_and_the_right_numbers(x):
    """Every change alters what the step computes; replaying the old graph would give other numbers, or fail."""
    svis = twins(lr=0.0)
    both = [(svi.model, svi.guide) for svi in svis]
    seen = [float(step_both(svis, x))]
    assert graphs(svis) == 1

    def change(do, *args, **kwargs):
        for model, guide in both:
            do(model, guide)
        before = graphs(svis)
        seen.append(float(step_both(svis, *(args or (x,)), **kwargs)))
        assert graphs(svis) == before + 1

    change(lambda m, g: None, x[:5])
    change(lambda m, g: None, x, 0.5)
    change(lambda m, g: None, x, weight=0.25)
    change(lambda m, g: m.eval())
    change(lambda m, g: setattr(m, "power", 2))
    change(lambda m, g: m.net[0].weight.requires_grad_(False))
    change(lambda m, g: m.net.__setitem__(2, nn.Sigmoid()))
    change(lambda m, g: m.net[2].register_parameter("extra", nn.Parameter(torch.zeros(2))))
    # with a learning rate of 0 only the frozen parameter and the one that nothing uses leave the loss as it was
    assert len(set(seen)) == len(seen) - 2
    before = graphs(svis)
    step_both(svis, x)
    assert graphs(svis) == before


@pytest.mark.parametrize("which", [0, 1], ids=["uncompiled", "compiled"])
def test_a_frozen_parameter_stops_and_a_thawed_one_moves_again(x, which):
    svi = twins(lr=0.1)[which]
    weight = svi.guide.net.weight
    moved = []
    for trainable in (True, False, True):
        weight.requires_grad_(trainable)
        before = weight.detach().clone()
        svi.step(x)
        moved.append(not torch.equal(weight, before))
    assert moved == [True, False, True]


def test_another_dtype_makes_a_new_graph(x):
    svis = twins()
    step_both(svis, x)
    for svi in svis:
        for half in (svi.model, svi.guide):
            half.double()
        svi.optim = torch.optim.SGD([*svi.model.parameters(), *svi.guide.parameters()], lr=0.1)
        svi.failed = svi.failed.clone()
    assert step_both(svis, x.double()).dtype == torch.float64
    assert graphs(svis) == 2


def test_annealed_tensors_need_no_new_graph(x):
    svis = twins()
    losses = []
    for step, value in enumerate((1.0, 0.5, 2.0)):
        for svi in svis:
            svi.model.temperature.fill_(value)
            svi.optim.param_groups[0]["lr"].fill_(0.01 * value)
        losses.append(float(step_both(svis, x, seed=step)))
    assert graphs(svis) == 1 and len(set(losses)) == 3


def test_a_replaced_parameter_is_the_one_that_is_read(x):
    svis = twins()
    step_both(svis, x)
    for svi in svis:
        with torch.no_grad():
            svi.model.net[0].weight = nn.Parameter(torch.full((8, 3), 0.1))
    step_both(svis, x)


def test_one_is_told_why_tracing_keeps_happening():
    replay = Replay(lambda x: x + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(MANY):
            replay(torch.zeros(size))
    with pytest.warns(UserWarning, match=rf"traced {MANY + 1} times, now because of its arguments"):
        replay(torch.zeros(MANY))
    assert len(replay.graphs) == MANY  # bounded


class BranchingGuide(Guide):
    def forward(self, x, weight=1.0):
        z = super().forward(x)
        if z.sum() > 0:
            z = z + 1
        return z


class ReadingGuide(Guide):
    def forward(self, x, weight=1.0):
        return super().forward(x * self.net.weight.norm().item())


class SelectingGuide(Guide):
    def forward(self, x, weight=1.0):
        chosen = x[x[:, 0] > 0]
        return super().forward(x + chosen.mean())


class NumpyGuide(Guide):
    """Leaves torch, where no tracer can follow, and comes back."""

    def forward(self, x, weight=1.0):
        noise = float(torch.randn(3).numpy().sum())
        return super().forward(x + noise)


class SometimesGuide(Guide):
    """A random choice decides which operations there are, through a generator that is not torch's."""

    calls = 0

    def forward(self, x, weight=1.0):
        SometimesGuide.calls += 1
        return super().forward(x * SometimesGuide.calls)


REFUSED = {
    BranchingGuide: r"Python value is taken from a tensor.*test_replay\.py, line \d+ \(\"if z\.sum\(\) > 0:\"\)",
    ReadingGuide: r"Python value is taken from a tensor.*line \d+ \(\"return super",
    SelectingGuide: r"the shape of a result of aten::index.* depends on values.*line \d+ \(\"chosen = ",
    NumpyGuide: "differs from the program's own",
    SometimesGuide: "differs from the program's own",
}


@pytest.mark.parametrize("guide", REFUSED, ids=lambda guide: guide.__name__)
def test_what_cannot_be_traced_is_refused_with_the_line(x, guide):
    model, guide_ = Model(), guide()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotCompile, match=REFUSED[guide]):
        SVI(model, guide_, adam(model, guide_, 1e-2), compile=True).step(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("guide", [BranchingGuide, SelectingGuide, NumpyGuide])
def test_with_auto_it_runs_uncompiled_after_one_warning(x, guide):
    results = []
    for compiled in (False, "auto"):
        pyro.set_rng_seed(1)
        model, guide_ = Model(), guide()
        svi = SVI(model, guide_, adam(model, guide_, 1e-2), compile=compiled)
        pyro.set_rng_seed(2)
        if compiled:
            with pytest.warns(UserWarning, match="It runs uncompiled"):
                losses = [svi.step(x)]
        else:
            losses = [svi.step(x)]
        losses += [svi.step(x) for _ in range(3)]  # a second warning would be an error here
        results.append(losses)
    assert results[0] == results[1]


def test_branching_on_a_discrete_site_is_refused():
    class CountingGuide(Guide):
        def forward(self, x, weight=1.0):
            with pyro.plate("data", len(x)):
                n = pyro.sample("n", dist.Bernoulli(logits=self.net(x)[:, 0]))
            if n.sum() > 3:
                pass

    class CountingModel(Model):
        def forward(self, x, weight=1.0):
            with pyro.plate("data", len(x)):
                pyro.sample("n", dist.Bernoulli(0.5))

    model, guide = CountingModel(), CountingGuide()
    with pytest.raises(CannotCompile, match=r"if n\.sum\(\) > 3:"):
        SVI(model, guide, adam(model, guide, 1e-2), compile=True).step(torch.randn(5, 4))


def test_losses_that_read_values_back_are_refused_by_name(x):
    model, guide = Model(), Guide()
    with pytest.raises(ValueError, match="TraceEnum_ELBO cannot be compiled"):
        SVI(model, guide, adam(model, guide, 1e-2), TraceEnum_ELBO(), compile=True)
    with pytest.warns(UserWarning, match="TraceEnum_ELBO cannot be compiled.*uncompiled"):
        SVI(model, guide, adam(model, guide, 1e-2), TraceEnum_ELBO(), compile="auto")
    with pytest.raises(ValueError, match="compile is True, False"):
        SVI(model, guide, adam(model, guide, 1e-2), compile="always")


# Pairs as strangers write them.


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
