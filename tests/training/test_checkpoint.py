"""What a checkpoint holds comes back bit for bit, however the tensors lie in memory."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.optim.swa_utils import AveragedModel

from pplmodels.infer import SVI
from pplmodels.states import mapped
from pplmodels.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from pplmodels.training.state import TrainState

X = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4).sin()
SUM = torch.tensor(2.5, dtype=torch.float64)


class Model(PyroModule):
    def __init__(self):
        super().__init__("shared_model")
        self.maps = torch.nn.Conv2d(3, 5, 3, padding=1).to(memory_format=torch.channels_last)
        self.turned = torch.nn.Parameter(torch.randn(7, 5).t())

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 7), 1.0).to_event(1))
            loc = self.maps(x).mean((2, 3)) + z @ self.turned.t()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x.flatten(1)[:, :5])


class Guide(PyroModule):
    """It has the model's parameters too, and one of its own under two names."""

    def __init__(self, model):
        super().__init__("shared_guide")
        self.maps = model.maps
        self.first = torch.nn.Linear(5, 7)
        self.second = torch.nn.Linear(5, 7)
        self.second.weight = self.first.weight

    def forward(self, x):
        features = self.maps(x).mean((2, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.first(features), self.second(features).exp()).to_event(1))


def fused_adam(parameters):
    return torch.optim.Adam(parameters, lr=torch.tensor(1e-2), fused=True)


def training(seed, optimizer=fused_adam):
    pyro.set_rng_seed(seed)
    model = Model()
    guide = Guide(model)
    parameters = {id(p): p for module in (model, guide) for p in module.parameters()}.values()
    return SVI(model, guide, optimizer(list(parameters))), AveragedModel(torch.nn.ModuleList([model, guide]))


def steps(svi, averaged, number):
    for _ in range(number):
        svi.step(X)
        averaged.update_parameters(torch.nn.ModuleList([svi.model, svi.guide]))


def bits(svi, averaged):
    kept = [value for state in svi.optim.state.values() for value in state.values()]
    return [*svi.model.state_dict().values(), *svi.guide.state_dict().values(), *averaged.state_dict().values(), *kept]


def saved(folder, svi, averaged, step, seconds=0.0):
    """A checkpoint of this training."""
    state = TrainState(svi, averaged, step, seconds)
    state.summed_losses.copy_(SUM)
    save_checkpoint(folder, state)


def loaded(folder, svi, averaged):
    state = TrainState(svi, averaged)
    load_checkpoint(folder, state)
    return state.step, state.seconds, state.summed_losses


def of_two(tmp_path, optimizer):
    """A training of 5 steps, and another that goes on from its third."""
    straight, stopped = training(1, optimizer), training(2, optimizer)
    steps(*straight, 3)
    saved(tmp_path, *straight, step=3, seconds=1.5)
    steps(*straight, 2)
    assert loaded(tmp_path, *stopped) == (3, 1.5, SUM)
    steps(*stopped, 2)
    return straight, stopped


def test_shared_and_turned_tensors_go_on_as_if_never_stopped(tmp_path):
    straight, stopped = of_two(tmp_path, fused_adam)
    assert not straight[0].model.turned.is_contiguous() and not straight[0].model.maps.weight.is_contiguous()
    assert all(torch.equal(*pair) for pair in zip(bits(*straight), bits(*stopped), strict=True))
    strides = [[value.stride() for value in bits(*either)] for either in (straight, stopped)]
    assert strides[0] == strides[1]
    assert stopped[0].guide.second.weight is stopped[0].guide.first.weight


def test_schedules_hold_the_learning_rate_that_was_loaded(tmp_path):
    svi, averaged = training(1)
    svi.optim.param_groups[0]["lr"].fill_(0.5)
    saved(tmp_path, svi, averaged, step=0)
    again, averaged = training(2)
    rate = again.optim.param_groups[0]["lr"]
    loaded(tmp_path, again, averaged)
    assert again.optim.param_groups[0]["lr"] is rate and rate == 0.5


def test_the_best_weights_come_back(tmp_path):
    svi, averaged = training(1)
    steps(svi, averaged, 1)
    saved(tmp_path, svi, averaged, step=1)
    save_weights(tmp_path, TrainState(svi, averaged))
    before = [value.clone() for value in (*svi.model.parameters(), *averaged.parameters())]
    steps(svi, averaged, 2)
    load_weights(tmp_path, TrainState(svi, averaged))
    assert all(map(torch.equal, before, (*svi.model.parameters(), *averaged.parameters())))


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-2),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 1e-2, momentum=0.9),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 1e-2, centered=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_of_torch_s_goes_on(tmp_path, name):
    straight, stopped = of_two(tmp_path, OPTIMIZERS[name])
    assert all(torch.equal(*pair) for pair in zip(bits(*straight), bits(*stopped), strict=True))


@pytest.mark.parametrize("later", [2, 1, 0])
def test_the_states_of_as_many_gpus_are_restored(tmp_path, monkeypatch, later):
    """A file of two GPUs also loads where there are fewer; their generators then stay as they are."""
    restored = []

    def gpus(number, value):
        states = [torch.full((16,), value + index, dtype=torch.uint8) for index in range(number)]
        cuda = SimpleNamespace(
            is_available=lambda: number > 0,
            device_count=lambda: number,
            get_rng_state_all=lambda: states,
            set_rng_state_all=lambda states: restored.extend(int(state[0]) for state in states),
        )
        monkeypatch.setattr("pplmodels.rng.torch", SimpleNamespace(**{**vars(torch), "cuda": cuda}))

    before, after = training(1), training(2)
    gpus(2, 7)
    saved(tmp_path, *before, step=1)
    gpus(later, 40)
    loaded(tmp_path, *after)
    assert restored == {2: [7, 8], 1: [40], 0: []}[later]


def test_a_checkpoint_can_be_read_by_hand(tmp_path):
    svi, averaged = training(1)
    steps(svi, averaged, 1)
    saved(tmp_path, svi, averaged, step=1, seconds=0.5)
    leaves = mapped(tmp_path / "checkpoint.safetensors")
    assert (leaves["step"], leaves["seconds"], leaves["model_class"]) == (1, 0.5, "Model")
    for name in ("model/turned", "guide/first.weight", "averaged/n_averaged", "optim/state/0/exp_avg", "rng/0/torch"):
        assert isinstance(leaves[name], torch.Tensor)
