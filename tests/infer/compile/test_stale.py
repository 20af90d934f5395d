"""Whatever a step reads and somebody changes: the compiled step follows, or says what it cannot follow."""

import copy
import itertools
import os
import random
from argparse import Namespace
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import nn

from pplmodels.infer import SVI, CompileError, FreeBits_ELBO

GLOBAL = torch.ones(())
FACTOR = [1.0]
X = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 8)

    def forward(self, x, *_, **__):
        with pyro.plate("data", len(x)):
            loc, raw = self.net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class Model(nn.Module):
    """z ~ N(0, I), x ~ N(loc(model, z, x, ...), 1)."""

    scale_of_class = 1.0

    def __init__(self, loc):
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.register_buffer("ema", torch.zeros(4))
        self.__dict__["loc"] = loc

    def forward(self, x, *args, **options):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc(self, z, x, *args, **options), 1.0).to_event(1), obs=x)


class Holder:
    """An object that is no module and has one."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def apply(self, z):
        return self.net(z)


@dataclass
class Settings:
    factor: float = 1.0


def scaled(z):
    return scaled.factor * z


scaled.factor = 1.0


def run(compiled, loc, arguments=lambda i: (X[i],), before=None, setup=None, loss=TraceGraph_ELBO, steps=6):
    """Losses and final weights of some steps; ``before(i, svi)`` makes a change before step i."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator, which users draw from
    model, guide = Model(loc), Guide()
    if setup is not None:
        setup(model)
    learned = [p for module in (model, guide) for p in module.parameters()]
    svi = SVI(model, guide, torch.optim.SGD(learned, lr=1e-4), loss(), compile=compiled)
    losses = []
    for i in range(steps):
        if before is not None:
            before(i, svi)
        losses.append(svi.step(*arguments(i)))
    state = [*model.state_dict().values(), *guide.state_dict().values()]
    return torch.stack(losses), [t.clone() for t in state]


def attribute(name, value):
    return lambda i, svi: setattr(svi.model, name, value(i))


def at_two(change):
    """Makes a change before the third step."""
    return lambda i, svi: change(svi) if i == 2 else None


def slow_average(model, z, x):
    model.ema = 0.999 * model.ema + 0.001 * x.mean(0)
    return model.net(z) + model.ema


def written_slowly(model, z, x):
    with torch.no_grad():
        model.ema.mul_(0.99999).add_(1e-5 * x.mean(0))
    return model.net(z) + 1000 * model.ema


def hold(**things):
    def setup(model):
        for name, thing in things.items():
            model.__dict__[name] = thing() if callable(thing) else thing

    return setup


def global_tensor(i, svi):
    globals()["GLOBAL"] = torch.tensor(1.0 + i)


def closed_over():
    factor = torch.ones(())

    def loc(model, z, x):
        return model.net(z) * factor

    def before(i, svi):
        nonlocal factor
        factor = torch.tensor(1.0 + i)

    return {"loc": loc, "before": before}


def frozen_holder(model):
    """Is not learned: nobody would find its parameters."""
    holder = Holder()
    for parameter in holder.net.parameters():
        parameter.requires_grad_(False)
    model.__dict__["holder"] = holder


def other_weights(svi):
    svi.model.holder.net[0] = nn.Linear(4, 4).requires_grad_(False)


def reordered(svi):
    learned = [p for module in (svi.guide, svi.model) for p in module.parameters()]
    svi.optim = torch.optim.SGD(learned, lr=1e-4)


NET = {"loc": lambda m, z, x: m.net(z)}
HELD = {"loc": lambda m, z, x: m.holder.apply(z), "setup": frozen_holder}
FOLLOWED = {
    "one tensor as two arguments, then two": {
        "loc": lambda m, z, x, y: m.net(z) + y - x,
        "arguments": lambda i: (X[i], X[i] if i == 0 else X[i] + 1),
    },
    "an argument by another keyword": {
        "loc": lambda m, z, x, a=0.0, b=0.0: m.net(z) + a - b,
        "arguments": lambda i: (X[i],),
    },
    "an attribute of a tensor, rebound": {
        "loc": lambda m, z, x: m.net(z) * m.t,
        "before": attribute("t", lambda i: torch.tensor(1.0 + i)),
    },
    "an attribute of a tensor, written in place": {
        "loc": lambda m, z, x: m.net(z) * m.t.exp(),
        "setup": hold(t=lambda: torch.zeros(())),
        "before": lambda i, svi: svi.model.t.fill_(0.3 * i),
    },
    "a global tensor": {"loc": lambda m, z, x: m.net(z) * GLOBAL, "before": global_tensor},
    "a variable of an enclosing function": closed_over(),
    "a global list": {
        "loc": lambda m, z, x: m.net(z) * FACTOR[0],
        "before": lambda i, svi: FACTOR.__setitem__(0, 1.0 + i // 3),
    },
    "a dict": {
        "loc": lambda m, z, x: m.net(z) * m.options["factor"],
        "setup": hold(options=lambda: {"factor": 1.0}),
        "before": lambda i, svi: svi.model.options.__setitem__("factor", 1.0 + i // 3),
    },
    "an attribute of a function": {
        "loc": lambda m, z, x: scaled(m.net(z)),
        "before": lambda i, svi: setattr(scaled, "factor", 1.0 + i // 3),
    },
    "an attribute of a class": {
        "loc": lambda m, z, x: m.net(z) * m.scale_of_class,
        "before": lambda i, svi: setattr(Model, "scale_of_class", 1.0 + i // 3),
    },
    "1, then 1.0": {
        "loc": lambda m, z, x: m.net(z) + torch.full((), m.t).mean(dtype=torch.float64).float() * (type(m.t) is float),
        "before": attribute("t", lambda i: 1 if i < 3 else 1.0),
    },
    "a NumPy array, written in place": {
        "loc": lambda m, z, x: m.net(z) * torch.tensor(m.a),
        "setup": hold(a=lambda: np.ones(4, np.float32)),
        "before": lambda i, svi: svi.model.a.__setitem__(0, 1 + i // 3),
    },
    "a forward hook": {
        **NET,
        "before": at_two(lambda svi: svi.model.net.register_forward_hook(lambda module, given, out: 3 * out)),
    },
    "a hook of all modules": {
        **NET,
        "before": lambda i, svi: HOOKS.append(register()) if i == 2 else HOOKS.pop().remove() if i == 4 else None,
    },
    "another forward": {**NET, "before": at_two(lambda svi: setattr(svi.model.net, "forward", lambda z: 3 * z))},
    "another guide": {**NET, "before": at_two(lambda svi: setattr(svi, "guide", copy.deepcopy(svi.guide).eval()))},
    "more particles": {**NET, "before": at_two(lambda svi: setattr(svi.elbo, "num_particles", 3))},
    "other free bits": {
        **NET,
        "loss": lambda: FreeBits_ELBO(0.0),
        "before": at_two(lambda svi: setattr(svi.elbo, "free", 5.0)),
    },
    "the mode of a module in a plain object": {**HELD, "before": at_two(lambda svi: svi.model.holder.net.eval())},
    "the weights of a module in a plain object": {**HELD, "before": at_two(other_weights)},
    "the mode of a module in a list in a dict": {
        **HELD,
        "loc": lambda m, z, x: m.options["nets"][0](z),
        "setup": lambda m: (frozen_holder(m), hold(options={"nets": [m.holder.net]})(m)),
        "before": at_two(lambda svi: svi.model.options["nets"][0].eval()),
    },
    "the mode of a module that is an argument": {
        "loc": lambda m, z, x, net: net(z),
        "setup": lambda m: (frozen_holder(m), NETS.append(m.holder.net)),
        "arguments": lambda i: (X[i], NETS[-1].train(i < 3)),
    },
    "a bound method": {
        **HELD,
        "loc": lambda m, z, x: m.method(z),
        "setup": lambda m: (frozen_holder(m), hold(method=lambda: m.holder.apply)(m)),
        "before": at_two(lambda svi: svi.model.holder.net.eval()),
    },
    "an optimizer with the parameters in another order": {**NET, "before": at_two(reordered)},
    "a buffer that is rebound and moves slowly": {"loc": slow_average},
    "a buffer that is written to and moves slowly": {"loc": written_slowly},
    "a set": {
        "loc": lambda m, z, x, chosen: m.net(z) * len(chosen),
        "arguments": lambda i: (X[i], {"a"} if i < 3 else {"a", "b"}),
    },
    "a slice": {
        "loc": lambda m, z, x, part: m.net(z) + x[:, part].mean(),
        "arguments": lambda i: (X[i], slice(0, 1 + i // 3)),
    },
    "a dataclass": {
        "loc": lambda m, z, x, settings: m.net(z) * settings.factor,
        "arguments": lambda i: (X[i], Settings(1.0 + i // 3)),
    },
    "a namespace": {
        "loc": lambda m, z, x, settings: m.net(z) * settings.factor,
        "arguments": lambda i: (X[i], Namespace(factor=1.0 + i // 3)),
    },
    "an argument that the program writes to": {
        "loc": lambda m, z, x, y: m.net(z) + y.mul_(2).mean(),
        "arguments": lambda i: (X[i], X[i].clone()),
    },
}
NETS, HOOKS = [], []


def register():
    return nn.modules.module.register_module_forward_hook(
        lambda module, given, out: 2 * out if isinstance(module, nn.Linear) else out
    )


@pytest.fixture(autouse=True)
def _as_before():
    yield
    globals()["GLOBAL"], FACTOR[0], scaled.factor, Model.scale_of_class = torch.ones(()), 1.0, 1.0, 1.0


@pytest.mark.filterwarnings("ignore:the program is traced again because a number changed")
@pytest.mark.parametrize("name", FOLLOWED)
def test_what_changes_is_followed(name):
    (losses, state), (compiled_losses, compiled_state) = (run(c, **FOLLOWED[name]) for c in (False, True))
    assert torch.equal(losses, compiled_losses)
    assert all(torch.equal(a, b) for a, b in zip(state, compiled_state, strict=True))


def test_what_a_step_leaves_in_attributes_is_that_steps():
    def loc(model, z, x):
        model.last = z
        model.pair = (z.mean(), [x.mean()])
        return model.net(z)

    kept = []
    for compiled in (False, True):
        seen = []
        run(compiled, loc, before=lambda i, svi, seen=seen: i and seen.append((svi.model.last, *svi.model.pair[:1])))
        kept.append([t.detach().clone() for things in seen for t in things])
    assert len(set(map(float, (t.sum() for t in kept[1])))) == len(kept[1])  # a tensor of its own a step
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_a_keyword_is_part_of_the_signature():
    losses = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        model, guide = Model(lambda m, z, x, a=0.0, b=0.0: m.net(z) + a - b), Guide()
        svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), compile=compiled)
        losses.append([float(svi.step(X[0], **{name: torch.tensor(2.0)})) for name in "aabba"])
    assert losses[0] == losses[1]


def generator_of_numbers(model, z, x):
    return model.net(z) * float(model.generator.normal())


class Growing:
    """A list that grows by each step."""

    def __call__(self, model, z, x):
        model.history.append(1)
        return model.net(z)


REFUSED = {
    "host reads": (
        {"loc": lambda m, z, x: m.net(z) + torch.from_numpy(x.numpy() ** 2)},
        r"\.numpy\(\).*test_stale\.py",
    ),
    "lists of values": ({"loc": lambda m, z, x: m.net(z) + sum(v > 0 for v in x[:, 0].tolist())}, r"\.tolist\(\)"),
    "copies of values": ({"loc": lambda m, z, x: m.net(z) + torch.tensor(x)}, r"torch\.tensor\(\) copies"),
    "comparisons": (
        {"loc": lambda m, z, x: m.net(z) * (1 + torch.equal(z, x))},
        "a tensor is converted to a Python value",
    ),
    "Python's random numbers": (
        {"loc": lambda m, z, x: m.net(z) * (1 + random.random())},
        r"Python's or NumPy's generator in .*test_stale\.py, line \d+",
    ),
    "NumPy's random numbers": (
        {"loc": lambda m, z, x: m.net(z) * np.random.randn()},  # noqa: NPY002 - as above
        r"Python's or NumPy's generator in .*test_stale\.py, line \d+",
    ),
    "a generator of one's own": (
        {"loc": generator_of_numbers, "setup": hold(generator=lambda: np.random.default_rng(0))},
        r"NumPy's generator in .*test_stale\.py, line \d+ \(\"return model\.net\(z\) \* float",
    ),
    "a counter": (
        {"loc": lambda m, z, x: (setattr(m, "calls", m.calls + 1), m.net(z))[1], "setup": hold(calls=0)},
        r"each run of the program changes model\.calls \(1, then 2\)",
    ),
    "a list that grows": (
        {"loc": Growing(), "setup": hold(history=list)},
        r"each run of the program changes model\.history",
    ),
    "the next of an iterator": (
        {"loc": lambda m, z, x: m.net(z) * next(m.numbers), "setup": hold(numbers=lambda: itertools.count(1))},
        r"model\.numbers is an iterator",
    ),
    "an array as an argument": (
        {
            "loc": lambda m, z, x, a: m.net(z) + torch.from_numpy(a).float().mean(),
            "arguments": lambda i: (X[i], np.ones(100)),
        },
        r"argument 2 is a NumPy array.*pass torch\.from_numpy",
    ),
    "anomaly detection": ({**NET, "before": lambda i, svi: torch.autograd.set_detect_anomaly(True)}, "anomaly"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:To copy construct from a tensor")
def test_what_cannot_be_followed_is_refused_by_name(name):
    case, sentence = REFUSED[name]
    try:
        with pytest.raises(CompileError, match=sentence):
            run(True, **case)
        plain = run(False, **case)
        with pytest.warns(UserWarning, match="It runs uncompiled"):
            automatic = run("auto", **case)
    finally:
        torch.autograd.set_detect_anomaly(False)
    assert torch.equal(plain[0], automatic[0])


def test_handlers_around_a_step_are_refused():
    def scaled(compiled):
        pyro.set_rng_seed(0)
        model, guide = Model(**NET), Guide()
        svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), compile=compiled)
        losses = [svi.step(X[0])]
        with poutine.scale(scale=0.5):
            losses.append(svi.step(X[0]))
        return [*losses, svi.step(X[0])]

    with pytest.raises(CompileError, match=r"inside Pyro's handlers \(ScaleMessenger\)"):
        scaled(True)
    with pytest.warns(UserWarning, match="handlers"):
        assert scaled("auto") == scaled(False)


def hidden_switch(runs):
    """A program that is another one after so many runs, by a count that no walk can reach."""
    os.environ["RUNS"] = "0"

    def loc(model, z, x):
        os.environ["RUNS"] = str(int(os.environ["RUNS"]) + 1)
        return model.net(z) * (1.0 if int(os.environ["RUNS"]) <= runs else 3.0)

    return loc


def test_what_changes_out_of_sight_is_found_at_a_doubling_distance():
    """The program runs in the first step, twice to make its graph, and at calls 2, 4 and 8."""
    with pytest.raises(CompileError, match=r"found at call 8, last compared at call 4; calls 5 to 7 may have used"):
        run(True, hidden_switch(5), steps=8)
    with pytest.warns(UserWarning, match=r"calls 5 to 7 may have used stale values\)\. It runs uncompiled"):
        losses, _ = run("auto", hidden_switch(5), steps=8)
    switched, _ = run(False, lambda m, z, x: m.net(z) * 3.0, steps=8)
    assert len(losses) == len(switched) == 8


def test_a_refusal_leaves_everything_as_it_was():
    def loc(model, z, x):
        model.ema += 1
        return model.net(z) * z.sum().item()

    pyro.set_rng_seed(0)
    model, guide = Model(loc), Guide()
    svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.1), compile=True)
    state = torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompileError, match="a tensor is converted to a Python value"):
        svi.step(X[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("compiled", [False, True, "auto"])
@pytest.mark.parametrize("error", [KeyError("mine"), RuntimeError("mine"), ValueError("mine")], ids=repr)
def test_a_users_own_error_comes_through(compiled, error):
    def loc(model, z, x):
        raise error

    with pytest.raises(type(error), match="mine"):
        run(compiled, loc)


def normalised(model):
    model.norm = nn.BatchNorm1d(4)


def test_two_batch_norm_updates_are_two():
    def loc(model, z, x):
        return model.norm(model.net(z)) + model.norm(x)

    norms = []
    for compiled in (False, True):
        run(
            compiled,
            loc,
            setup=lambda m: m.add_module("norm", nn.BatchNorm1d(4)),
            before=lambda i, svi: norms.append(svi.model.norm),
        )
    assert norms[0].num_batches_tracked == norms[-1].num_batches_tracked == 12
    torch.testing.assert_close(norms[0].running_mean, norms[-1].running_mean, rtol=0, atol=0)


def test_autocast_of_the_users_own_is_followed():
    losses = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        model, guide = Model(**NET), Guide()
        svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), compile=compiled)
        for enabled in (False, True, True, False, True):
            pyro.set_rng_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses.append(float(svi.step(X[0])))
    assert losses[:5] == losses[5:] and losses[0] == losses[3] != losses[1] == losses[4]


def test_a_lazy_module_is_made_in_the_first_step():
    losses = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        model, guide = Model(lambda m, z, x: m.net(z) + m.cached(x)), Guide()
        model.__dict__["cache"] = {}
        model.__dict__["cached"] = lambda x, m=model: m.cache.setdefault("mean", x.mean().detach())
        svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=1e-2), compile=compiled)
        losses.append([float(svi.step(x)) for x in X])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceGraph_ELBO])
def test_a_number_that_varies_is_named(loss):
    arguments = {"arguments": lambda i: (X[i], 0.1 * i), "loss": loss}
    with pytest.warns(UserWarning, match=r"a number changed: argument 2 \(0\.0, then 0\.1\).*as tensors"):
        run(True, lambda m, z, x, beta: m.net(z) * beta, **arguments)


def test_an_error_of_a_kernel_is_raised_by_the_replay_too():
    def loc(model, z, x, covariance):
        return model.net(z) @ torch.linalg.cholesky(covariance)

    good, bad = torch.eye(4), torch.eye(4).index_fill(0, torch.tensor([2]), -1.0)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        run(True, loc, arguments=lambda i: (X[i], good if i < 3 else bad))


def test_a_copy_of_a_trained_svi_goes_on_alike():
    pyro.set_rng_seed(0)
    model, guide = Model(**NET), Guide()
    optim = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=1e-4)
    svi = SVI(model, guide, optim, compile=True)
    for x in X[:3]:
        svi.step(x)
    losses = []
    for each in (copy.deepcopy(svi), svi):
        pyro.set_rng_seed(1)
        losses.append([float(each.step(x)) for x in X])
    assert losses[0] == losses[1]
