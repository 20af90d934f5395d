"""A sound pair keeps the contract, and each check refuses a pair that breaks it, with a sentence that says why."""

import copy
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pplmodels import testing
from pplmodels.infer import SVI
from pplmodels.infer.compile.program import CompiledProgram
from pplmodels.metrics import log_probs
from pplmodels.module import PairModule, data_plate
from pplmodels.testing import CONTRACT, Pair, check_contract

CHECKS = {check.name: check for check in CONTRACT}


class Model(PairModule):
    """z ~ N(0, I_2) and x ~ N(W z + b, I_3)."""

    role = "model"
    plate = staticmethod(data_plate)

    def __init__(self):
        super().__init__("toy_model")
        self.linear = nn.Linear(2, 3)

    def p_x(self, z):
        return dist.Normal(self.linear(z), 1.0).to_event(1)

    def forward(self, x=None, n=None):
        with self.plate(n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", self.p_x(z), obs=x)


class Guide(PairModule):
    """q(z | x), a normal distribution whose mean is linear in x."""

    role = "guide"
    plate = staticmethod(data_plate)

    def __init__(self, name="toy_guide"):
        super().__init__(name)
        self.linear = nn.Linear(3, 2)

    def loc(self, x):
        return self.linear(x)

    def forward(self, x=None, n=None):
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 0.5).to_event(1))


class Spare(Guide):
    """A guide with a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)


class Undescribed(Guide):
    """A guide with a number that is neither a constructor argument nor a buffer."""

    def __init__(self):
        super().__init__()
        self.factor = torch.rand(())

    def loc(self, x):
        return self.factor * self.linear(x)


class Plain(nn.Module):
    """A guide that is no PyroModule, so that Pyro does not see its parameters."""

    plate, loc, forward = staticmethod(data_plate), Guide.loc, Guide.forward

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)


def changed(base, **methods):
    """A subclass with other methods."""
    return type(f"Changed{base.__name__}", (base,), methods)


def with_loc(loc):
    return changed(Guide, loc=loc)


def with_likelihood_of(latents):
    return changed(Model, p_x=lambda self, z: Model.p_x(self, latents(z)))


def in_plate(name):
    plate = staticmethod(lambda number: pyro.plate(name, number, dim=-1))
    return changed(Model, plate=plate), changed(Guide, plate=plate)


def with_y_before(base, method, shape):
    """A subclass that samples y before it calls the method."""
    original = getattr(base, method)

    def both(self, *args, **kwargs):
        pyro.sample("y", dist.Normal(torch.zeros(shape), 1.0))
        return original(self, *args, **kwargs)

    return changed(base, **{method: both})


def with_one_network():
    """A guide whose later instances use the network of the first."""
    networks = []

    def loc(self, x):
        networks.append(self.linear)
        return networks[0](x)

    return with_loc(loc)


def standardized(x):
    return (x - x.mean(0)) / ((x - x.mean(0)).square().sum(0) / (len(x) - 1)).sqrt()


def first_image(self, x=None, n=None):
    drawn = Model.forward(self, x, n)
    return drawn[:1] if x is None else drawn


def pair(model=Model, guide=Guide, **flags):
    return Pair(model, lambda model: guide(), lambda n: torch.randn(n, 3), **flags)


# fault -> the name of a check, a pair that it refuses, and a part of its sentence
BROKEN = {
    "a forward without n": (
        "signatures_agree_and_names_differ",
        pair(guide=changed(Guide, forward=lambda self, x=None: Guide.forward(self, x))),
        r"forward of the guide takes \(x=None\), not \(x=None, n=None\)",
    ),
    "a forward that needs x": (
        "signatures_agree_and_names_differ",
        pair(model=changed(Model, forward=lambda self, x, n=None: Model.forward(self, x, n))),
        r"forward of the model takes \(x, n=None\), not \(x=None, n=None\)",
    ),
    "an argument of the guide alone": (
        "signatures_agree_and_names_differ",
        pair(guide=changed(Guide, forward=lambda self, x=None, n=None, y=None: Guide.forward(self, x))),
        r"forward takes \(x, n\) in the model and \(x, n, y\) in the guide",
    ),
    "no name": ("signatures_agree_and_names_differ", pair(guide=Plain), "The guide has no root name"),
    "the same name": (
        "signatures_agree_and_names_differ",
        pair(guide=partial(Guide, "toy_model")),
        "Model and guide have the same root name 'toy_model'",
    ),
    "a missing site": (
        "check_pair_finds_no_problem",
        pair(guide=changed(Guide, forward=lambda self, x=None, n=None: self.linear(x))),
        "z is only a site of the model",
    ),
    "a site outside of the plate": (
        "sites_are_independent_over_images",
        pair(with_y_before(Model, "forward", ()), with_y_before(Guide, "forward", ())),
        r"y of the model is in the plates \[\], not in 'data' alone",
    ),
    "a dimension that is no event": (
        "sites_are_independent_over_images",
        pair(with_y_before(Model, "p_x", (2, 1)), with_y_before(Guide, "loc", (2, 1))),
        r"y of the model has log-probabilities of shape \(2, 3\) for 3 images",
    ),
    "one image, whatever n is": (
        "the_model_draws_as_many_images_as_asked_for",
        pair(model=changed(Model, forward=first_image)),
        r"model\(n=4\) returns a tensor of shape \(1, 3\) instead of \(4, 3\)",
    ),
    "no image": (
        "the_model_draws_as_many_images_as_asked_for",
        pair(model=changed(Model, forward=lambda self, x=None, n=None: None)),
        r"model\(n=4\) returns None instead of images",
    ),
    "a layer that is not used": (
        "every_parameter_moves_in_one_step-tracegraph",
        pair(guide=Spare),
        "A step with TraceGraph_ELBO does not move guide.spare.weight, guide.spare.bias",
    ),
    "a tensor in the parameter store": (
        "every_parameter_moves_in_one_step-trace",
        pair(guide=changed(Plain, loc=lambda self, x: self.linear(x) + pyro.param("w", torch.zeros(2)).detach())),
        r"A step adds \['w'\] to Pyro's parameter store",
    ),
    "parameters that Pyro does not see": (
        "trains_under_stock_svi",
        pair(guide=Plain),
        "A step of pyro.infer.SVI does not move guide.linear.weight, guide.linear.bias",
    ),
    "a plate of another name": (
        "stock_svi_gives_the_same_loss_and_gradients",
        pair(*in_plate("images")),
        "The loss of 6 images is .* per image with our SVI, and .* in total with pyro.infer.SVI",
    ),
    "a mean over the batch": (
        "a_batch_is_its_images_one_by_one",
        pair(guide=with_loc(lambda self, x: self.linear(x - x.mean(0)))),
        "The log-probability of z in the guide depends on the other images of the batch",
    ),
    "latents without a leading dimension": (
        "many_particles_at_once_give_the_bound_of_single_ones",
        pair(model=with_likelihood_of(lambda z: z.flatten(1))),
        "The pair fails in the check many_particles_at_once_.*: RuntimeError: mat1 and mat2 shapes",
    ),
    "a number of images that is the length of the latents": (
        "many_particles_at_once_give_the_bound_of_single_ones",
        pair(model=with_likelihood_of(lambda z: 40 * z / len(z))),
        "The bound of 600 particles at once is .*, that of 60 single ones",
    ),
    "one network for all guides": (
        "two_pairs_in_one_process_both_train",
        pair(guide=with_one_network()),
        "The pair fails in the check two_pairs_in_one_process_both_train: ValueError: the optimizer does not have",
    ),
    "a standard deviation over the batch": (
        "a_smaller_last_batch_trains",
        pair(guide=with_loc(lambda self, x: self.linear(standardized(x)))),
        "The loss of a batch of size 1 is nan",
    ),
    "a number that is not saved": (
        "saved_and_loaded_gives_the_same_loss",
        pair(guide=Undescribed),
        "The loss of a batch is .*, and .* with the loaded pair",
    ),
    "a module that cannot be saved": (
        "saved_and_loaded_gives_the_same_loss",
        pair(guide=Plain),
        "The guide is no PairModule and cannot be saved, although saved=True",
    ),
    "Python's random numbers": (
        "compiled_and_uncompiled_steps_are_the_same-trace",
        pair(guide=with_loc(lambda self, x: random.random() * self.linear(x))),
        "CompileError: this step cannot be compiled: the program draws random numbers from Python's",
    ),
    "batches of random sizes": (
        "compiled_and_uncompiled_steps_are_the_same-trace",
        Pair(Model, lambda model: Guide(), lambda n: torch.randn(n + random.randrange(3), 3)),
        "Steps with two sizes of batches were traced [3-9] times",
    ),
    "NumPy's random numbers": (
        "compiled_bounds_are_the_same",
        pair(guide=with_loc(lambda self, x: float(np.random.rand()) * self.linear(x))),  # noqa: NPY002
        "CompileError: this step cannot be compiled: the program draws random numbers from Python's or NumPy's",
    ),
    "a value that is read": (
        "eager_steps_on_cuda_do_not_wait_for_the_device",
        pair(guide=with_loc(lambda self, x: float(x.new_ones(())) * self.linear(x))),
        "RuntimeError: called a synchronizing CUDA operation",
    ),
    "a value that is read, compiled": (
        "compiled_steps_on_cuda_do_not_wait_for_the_device",
        pair(guide=with_loc(lambda self, x: float(x.new_ones(())) * self.linear(x))),
        "CompileError: this step cannot be compiled",
    ),
    "Python's random numbers, on CUDA": (
        "compiled_on_cuda_is_the_uncompiled_step",
        pair(guide=with_loc(lambda self, x: random.random() * self.linear(x))),
        "CompileError: this step cannot be compiled: the program draws random numbers from Python's",
    ),
}
CASES = [
    pytest.param(*case, id=fault, marks=[pytest.mark.gpu] if CHECKS[case[0]].cuda else [])
    for fault, case in BROKEN.items()
]


def test_a_sound_pair_keeps_the_contract():
    check_contract(pair())


@pytest.mark.parametrize("name, broken, sentence", CASES)
def test_a_broken_pair_is_refused(name, broken, sentence):
    assert CHECKS[name].applies_to(broken)
    with pytest.raises(AssertionError, match=sentence):
        CHECKS[name](broken)


def test_every_check_refuses_one_of_them():
    without_estimator = {name.partition("-")[0] for name in CHECKS}
    assert {name.partition("-")[0] for name, *_ in BROKEN.values()} == without_estimator


def test_the_contract_is_broken_by_the_first_check_that_fails():
    with pytest.raises(AssertionError, match=r"Training would not change guide.spare.weight"):
        check_contract(pair(guide=Spare))


class Inaccurate(SVI):
    """Gradients of compiled steps are 1% too large."""

    def step(self, x):
        loss = super().step(x)
        for p in self.parameters() if isinstance(self._run, CompiledProgram) else ():
            p.grad.mul_(1.01)
        return loss


@pytest.mark.parametrize("exact", [True, False])
def test_a_compiled_step_with_other_numbers_is_refused(exact, monkeypatch):
    monkeypatch.setattr(testing, "SVI", Inaccurate)
    with pytest.raises(AssertionError, match="Step 0 differs between compiled and uncompiled"):
        CHECKS["compiled_and_uncompiled_steps_are_the_same-trace"](pair(exact=exact))


@pytest.mark.parametrize("exact", [True, False])
def test_a_compiled_bound_with_other_numbers_is_refused(exact, monkeypatch):
    def inaccurate(model, guide):
        other = copy.deepcopy(model)
        other.linear.weight.data.mul_(1.01)
        return partial(log_probs, other, guide)

    monkeypatch.setattr(testing, "compiled_log_probs", inaccurate)
    with pytest.raises(AssertionError, match=r"of the bound is .*, and .* when it is compiled"):
        CHECKS["compiled_bounds_are_the_same"](pair(exact=exact))


def test_the_random_state_and_the_parameter_store_stay_as_they_are():
    parameter = pyro.param("w", torch.ones(2))
    random_states = torch.get_rng_state(), random.getstate()
    CHECKS["trains_under_stock_svi"](pair())
    assert torch.equal(torch.get_rng_state(), random_states[0]) and random.getstate() == random_states[1]
    assert list(pyro.get_param_store()) == ["w"] and pyro.param("w") is parameter
