"""The state of a training: a step moves all of it, and what is loaded goes on bit for bit."""

import copy
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.optim.swa_utils import AveragedModel

from pplmodels.infer import SVI, Annealed, adam, linear
from pplmodels.training import state as module
from pplmodels.training.state import TrainState

BATCHES = torch.arange(5 * 4.0).view(5, 4).sin()


class Model(PyroModule):
    def __init__(self):
        super().__init__("state_model")
        self.weight = torch.nn.Parameter(torch.randn(()))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.weight * z, 1.0), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("state_guide")
        self.loc = torch.nn.Parameter(torch.randn(()))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc * x, 1.0))


def training(seed):
    """A state of its own weights, and the schedule of its learning rate."""
    pyro.set_rng_seed(seed)
    model, guide = Model(), Guide()
    svi = SVI(model, guide, adam(model, guide, 1e-2))
    state = TrainState(svi, AveragedModel(torch.nn.ModuleList([model, guide])))
    return state, [Annealed(svi.optim.param_groups[0]["lr"], linear(0.1, 0.0, 0, 5))]


def steps(state, annealed):
    """The losses of the remaining batches, each with noise of its own."""
    losses = []
    for batch in BATCHES[state.step :]:
        pyro.set_rng_seed(state.step)
        losses.append(state.take_step(batch, annealed))
    return losses


def tensors(state):
    moments = [value for kept in state.svi.optim.state.values() for value in kept.values()]
    return [*state.pair.state_dict().values(), *state.averaged.state_dict().values(), *moments, state.summed_losses]


@pytest.mark.parametrize("stop", [0, 3])
def test_a_loaded_state_goes_on_as_if_never_stopped(stop):
    (straight, schedule), (resumed, other) = training(1), training(2)
    for batch in BATCHES[:stop]:
        straight.take_step(batch, schedule)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))  # torch's optimizers keep the tensors that they load
    for mine, theirs in zip(steps(straight, schedule), steps(resumed, other), strict=True):
        assert torch.equal(mine, theirs)
    assert straight.step == resumed.step == 5
    assert all(map(torch.equal, tensors(straight), tensors(resumed)))


def test_tensors_that_others_hold_are_loaded_in_place():
    (saved, _), (state, schedule) = training(1), training(2)
    held = [*state.pair.parameters(), *state.averaged.buffers(), schedule[0].tensor, state.summed_losses]
    state.load_state_dict(saved.state_dict())
    now = [*state.pair.parameters(), *state.averaged.buffers(), state.svi.optim.param_groups[0]["lr"]]
    assert all(one is other for one, other in zip(held, [*now, state.summed_losses], strict=True))


def test_a_step_moves_counter_sum_average_and_schedules():
    state, schedule = training(1)
    losses = steps(state, schedule)
    assert state.step == 5 and state.averaged.n_averaged == 5
    assert schedule[0].tensor == pytest.approx(0.02)  # that of the last step, number 4 from 0
    assert state.summed_losses == sum(loss.double() for loss in losses)
    means = state.averaged.module
    assert means[0].weight != state.svi.model.weight and means[1].loc != state.svi.guide.loc


def test_a_step_that_raises_is_not_counted():
    state, schedule = training(1)
    with pytest.raises(TypeError):
        state.take_step(None, schedule)
    assert state.step == 0 and state.summed_losses == 0 and state.averaged.n_averaged == 0


def test_weights_come_back_without_the_rest():
    state, schedule = training(1)
    state.take_step(BATCHES[0], schedule)
    (other, _), summed = training(2), state.summed_losses.clone()
    state.load_weights(other.weights())
    assert torch.equal(state.svi.model.weight, other.svi.model.weight)
    assert torch.equal(state.averaged.module[1].loc, other.svi.guide.loc)
    assert state.step == 1 and state.summed_losses == summed


def test_the_clock_goes_on_from_the_seconds_that_were_loaded(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    state, _ = training(1)
    now += 1
    assert state.seconds == 0  # building and loading do not count
    state.start_clock()
    now += 2
    assert state.seconds == state.state_dict()["seconds"] == 2
    resumed, _ = training(2)
    resumed.load_state_dict(state.state_dict())
    now += 4
    assert resumed.seconds == 2
    resumed.start_clock()
    now += 8
    assert resumed.seconds == 10
