"""Replayed programs: never stale, never wrong in silence, and general."""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn
from twins import Guide, Model, graphs, step_both, twins

from pplmodels.infer import SVI, CompileError, adam
from pplmodels.infer.compile.program import MANY, CompiledProgram


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
    with pytest.warns(UserWarning, match=r"a number changed: argument 2 \(0\.5, then 0\.25\)"):
        change(lambda m, g: None, x, 0.25)
    change(lambda m, g: None, x, weight=0.25)
    change(lambda m, g: m.eval())
    change(lambda m, g: setattr(m, "power", 2))
    change(lambda m, g: m.net[0].weight.requires_grad_(False))
    change(lambda m, g: m.net.__setitem__(2, nn.Sigmoid()))
    change(lambda m, g: m.net[2].register_parameter("extra", nn.Parameter(torch.zeros(2))))
    # with a learning rate of 0 only the frozen parameter, the one that nothing uses and the same weight by another name
    # leave the loss as it was
    assert len(set(seen)) == len(seen) - 3
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
        for module in (svi.model, svi.guide):
            module.double()
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
    replay = CompiledProgram(lambda x: x + 1, dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(MANY):
            replay(torch.zeros(size))
    with pytest.warns(UserWarning, match=rf"traced {MANY + 1} times, now because of a change in argument 1"):
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
    BranchingGuide: r"a tensor is converted to a Python value.*test_program\.py, line \d+ \(\"if z\.sum\(\) > 0:\"\)",
    ReadingGuide: r"a tensor is converted to a Python value.*line \d+ \(\"return super",
    SelectingGuide: r"the shape of a result of aten::index.* depends on the values.*line \d+ \(\"chosen = ",
    NumpyGuide: r"\.numpy\(\) reads the values.*line \d+ \(\"noise = ",
    SometimesGuide: r"each run of the program changes SometimesGuide\.calls \(\d+, then \d+\)",
}


@pytest.mark.parametrize("guide", REFUSED, ids=lambda guide: guide.__name__)
def test_what_cannot_be_traced_is_refused_with_the_line(x, guide):
    model, guide_ = Model(), guide()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompileError, match=REFUSED[guide]):
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
    with pytest.raises(CompileError, match=r"if n\.sum\(\) > 3:"):
        SVI(model, guide, adam(model, guide, 1e-2), compile=True).step(torch.randn(5, 4))


def test_losses_that_read_values_back_are_refused_by_name(x):
    model, guide = Model(), Guide()
    with pytest.raises(ValueError, match="TraceEnum_ELBO cannot be compiled"):
        SVI(model, guide, adam(model, guide, 1e-2), TraceEnum_ELBO(), compile=True)
    with pytest.warns(UserWarning, match="TraceEnum_ELBO cannot be compiled.*uncompiled"):
        SVI(model, guide, adam(model, guide, 1e-2), TraceEnum_ELBO(), compile="auto")
    with pytest.raises(ValueError, match="compile must be True, False"):
        SVI(model, guide, adam(model, guide, 1e-2), compile="always")
