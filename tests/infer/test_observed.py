"""What is observed in another shape than its distribution's is noticed before it is scored."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from guides import LadderGuide, MLPGuide
from pplmodels import MLPVAE, LadderVAE, inspect
from pplmodels.infer import SVI, adam
from pplmodels.metrics import log_probs


def vae(image=(1, 4, 4)):
    return MLPVAE(image, z_dim=3, hidden_dims=(8,)), MLPGuide(image, z_dim=3, hidden_dims=(8,))


def ladder():
    model = LadderVAE(image=(1, 4, 4), z_dims=(4, 3), hidden_dims=(8, 7))
    return model, LadderGuide(model)


def bits(*shape):
    return torch.rand(shape).round()


GREY = (
    r"the observed x has shape \(5, 4, 4, 1\), but its distribution has shape \(5, 1, 4, 4\); if its channels are "
    r"last, pass x\.movedim\(-1, 1\)\."
)
COLOUR = (
    r"the observed x has shape \(5, 4, 4, 3\), .* \(5, 3, 4, 4\); if its channels are last, pass x\.movedim\(-1, 1\)\."
)
LOOKS = {
    "step": lambda model, guide, x: svi(model, guide).step(x),
    "compiled step": lambda model, guide, x: svi(model, guide, compile=True).step(x),
    "rough step": lambda model, guide, x: svi(model, guide, precision=torch.bfloat16).step(x),
    "evaluate_loss": lambda model, guide, x: svi(model, guide).evaluate_loss(x),
    "log_probs": log_probs,
    "reconstruct": inspect.reconstruct,
}


def svi(model, guide, loss=None, **options):
    return SVI(model, guide, adam(model, guide, 1e-3), loss, **options)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("pair", "x", "sentence"),
    [(vae, (5, 4, 4, 1), GREY), (ladder, (5, 4, 4, 1), GREY), (lambda: vae((3, 4, 4)), (5, 4, 4, 3), COLOUR)],
    ids=["grey", "grey, ladder", "colour"],
)
def test_channels_last_are_refused(pair, x, sentence, look):
    model, guide = pair()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=sentence):
        LOOKS[look](model, guide, bits(*x))
    assert all(map(torch.equal, model.parameters(), before))


def test_a_refused_first_step_is_checked_again():
    stepper = svi(*vae())
    for _ in range(2):
        with pytest.raises(ValueError, match="if its channels are last"):
            stepper.step(bits(5, 4, 4, 1))
    assert stepper.step(bits(5, 4, 4, 1).movedim(-1, 1)).isfinite()


class Model(PyroModule):
    """x ~ N(loc, 1) in whatever shape and plate a test asks for; loc is a parameter."""

    def __init__(self, shape, events, plate):
        super().__init__("model")
        self.loc, self.events, self.plate = nn.Parameter(torch.zeros(shape)), events, plate

    def forward(self, x):
        if self.plate is None:
            return pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(self.events), obs=x)
        with pyro.plate("data", *self.plate):
            return pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(self.events), obs=x)


class Guide(PyroModule):
    def forward(self, x):
        """No latent variables."""


def simple(model, guide, x):
    trace = pyro.poutine.trace(model).get_trace(x)
    return -trace.log_prob_sum()


@pytest.mark.parametrize(
    ("shape", "events", "plate", "x"),
    [
        ((5, 3), 1, (5,), (5, 3)),
        ((3,), 1, (5,), (5, 3)),  # the plate expands the distribution
        ((5, 3), 1, (5,), (3,)),  # one value for all
        ((5, 3), 1, (5,), (1, 3)),
        ((5, 3), 1, (5,), (5, 1)),  # one number for three, which a step lets pass
        ((), 0, (), (5,)),  # a plate without a size
        ((3,), 1, (), (5, 3)),
    ],
)
def test_what_pyro_broadcasts_is_let_pass(shape, events, plate, x):
    assert svi(Model(shape, events, plate), Guide(), Trace_ELBO()).step(torch.randn(x)).isfinite()


def test_without_plates_a_loss_of_your_own_says_what_counts():
    assert svi(Model((3,), 1, None), Guide(), simple).step(torch.randn(5, 3)).isfinite()


@pytest.mark.parametrize(
    ("shape", "events", "plate", "x"),
    [((5, 1), 1, (5,), (5, 3)), ((5,), 0, (5,), (5, 1)), ((1, 4, 4), 3, (), (5, 4, 4, 1))],
)
def test_what_is_larger_is_refused_under_any_loss(shape, events, plate, x):
    with pytest.raises(ValueError, match="the observed x has shape"):
        svi(Model(shape, events, plate), Guide(), simple).step(torch.randn(x))


def test_without_validation_nothing_is_checked():
    with pyro.validation_enabled(False):
        assert svi(*vae()).step(bits(5, 4, 4, 1)).isfinite()


def test_events_that_say_how_long_they_are_themselves_are_let_pass():
    def model(x):
        with pyro.plate("data", 5):
            step = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            walk = dist.GaussianHMM(step, torch.eye(2), step, torch.eye(2), step)
            pyro.sample("x", walk, obs=x)

    log_p, _, _ = log_probs(model, Guide(), torch.randn(5, 7, 2))
    assert log_p["x"].shape == (5,)


@pytest.mark.parametrize(
    ("image", "x", "sentence"),
    [
        ((1, 4, 4), (5, 4, 4, 1), GREY),
        ((3, 4, 4), (5, 4, 4, 3), COLOUR),
        ((1, 4, 4), (5, 2, 8, 1), r"the observed x has shape \(5, 2, 8, 1\), but its distribution has shape [^;]*$"),
    ],
)
def test_check_pair_finds_it(image, x, sentence):
    (finding,) = inspect.check_pair(*vae(image), bits(*x))
    assert re.match(sentence, finding)


def test_check_pair_finds_events_that_would_count_several_times():
    model, guide = vae((3, 4, 4))
    guide.encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(16, 6))
    (finding,) = inspect.check_pair(model, guide, bits(5, 1, 4, 4))
    assert finding.startswith(
        "the observed x has event shape (1, 4, 4), but its distribution has event shape (3, 4, 4)"
    )
    assert svi(model, guide).step(bits(5, 1, 4, 4)).isfinite()
