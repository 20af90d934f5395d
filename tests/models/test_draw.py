"""DRAW where the answer is known."""

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from guides import DRAWGuide, VAEGuide
from pplmodels import DRAW, VAE, inspect
from pplmodels.infer import SVI, adam
from pplmodels.metrics import log_probs
from pplmodels.models.likelihoods import Bernoulli
from pplmodels.testing import Pair

PAIRS = {
    "draw": Pair(
        model=lambda: DRAW(image=(1, 5, 4), num_steps=3, z_dim=2, hidden_dim=6),
        guide=lambda model: DRAWGuide(model, hidden_dim=7),
        batch=lambda n: torch.rand(n, 1, 5, 4).round(),
    ),
    "draw, windows, three channels": Pair(
        model=lambda: DRAW(
            (3, 6, 8), num_steps=2, z_dim=2, hidden_dim=6, write_window=3, likelihood="logit-normal-learned"
        ),
        guide=lambda model: DRAWGuide(model, hidden_dim=7, read_window=2),
        batch=lambda n: torch.rand(n, 3, 6, 8),
    ),
}
SIZES = {"image": (1, 5, 4), "z_dim": 3, "hidden_dim": 6}
WINDOWS = {"whole": (None, None), "windows": (2, 3)}


def pair(num_steps, windows="whole", **sizes):
    read, write = WINDOWS[windows]
    model = DRAW(**{**SIZES, **sizes}, num_steps=num_steps, write_window=write)
    for parameter in (model.h, model.c, model.canvas):  # as if they had been learned
        nn.init.normal_(parameter)
    return model, DRAWGuide(model, 7, read)


class FirstStep(nn.Module):
    """What DRAW's guide makes of an image at its first step, for a guide whose scale is a softplus."""

    def __init__(self, model, guide):
        super().__init__()
        self.model, self.guide = model, guide

    def forward(self, x):
        missing = x - self.model.canvas.sigmoid()
        h = self.model.h.expand(len(x), -1)
        gates = self.guide.reader.lstm.gates(x.flatten(-3))
        start = (self.guide.h, self.guide.c)
        state, _ = self.guide.reader.lstm(gates, torch.cat([missing.flatten(-3), h], -1), start)
        loc, log_scale = self.guide.code(state).chunk(2, -1)
        return torch.cat([loc, log_scale.exp().expm1().log()], -1)


class FirstPainting(nn.Module):
    """The canvas after one step."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z):
        h, _ = self.model.lstm(z, (self.model.h, self.model.c))
        return self.model.canvas + self.model.writer.patch(h).unflatten(-1, self.model.image)


def test_one_step_without_attention_is_a_vae(float64):
    """Its encoder sees [x, x - sigmoid(c_0)], its decoder is the LSTM's first step."""
    model, guide = pair(1)
    x = torch.rand(6, 1, 5, 4).round()
    vae = VAE(model.prior, FirstPainting(model), Bernoulli()), VAEGuide(FirstStep(model, guide), 3)
    terms = []
    for modules in ((model, guide), vae):
        pyro.set_rng_seed(3)
        log_p, log_q, _ = log_probs(*modules, x)
        terms.append([log_p.get("z", log_p.get("z_1")), log_p["x"], *log_q.values()])
    torch.testing.assert_close(*terms)


@pytest.mark.parametrize("windows", WINDOWS)
def test_the_codes_cost_what_the_paper_says(float64, windows):
    """Equation 11: the mean of log q - log p is half the sum of mu^2 + sigma^2 - log sigma^2 - 1 over all steps."""
    model, guide = pair(3, windows)
    x = torch.rand(1, 1, 5, 4).round().expand(5000, -1, -1, -1)
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
        log_p, log_q, _ = log_probs(model, guide, x)
        closed = sum(
            (q.mean**2 + q.variance - q.variance.log() - 1).sum(-1) / 2
            for q in (trace.nodes[f"z_{t}"]["fn"] for t in (1, 2, 3))
        )
    sampled = sum(log_q[f"z_{t}"] - log_p[f"z_{t}"] for t in (1, 2, 3))
    error = (closed.var() + sampled.var()).div(5000).sqrt()
    assert float(closed.mean()) == pytest.approx(float(sampled.mean()), abs=4 * float(error))


@pytest.mark.parametrize("windows", WINDOWS)
def test_an_image_is_painted_from_all_its_codes_and_each_is_drawn_anew(windows):
    model, _ = pair(4, windows)
    trace = poutine.trace(model).get_trace(n=3)
    codes = torch.stack([trace.nodes[f"z_{t}"]["value"] for t in range(1, 5)])
    assert codes.unique().numel() == codes.numel()
    for t in range(1, 5):
        other = {f"z_{s}": codes[s - 1] + (s == t) for s in range(1, 5)}
        before, after = (
            poutine.trace(poutine.condition(model, data=data)).get_trace(n=3).nodes["x"]["fn"].mean
            for data in ({f"z_{s}": codes[s - 1] for s in range(1, 5)}, other)
        )
        assert not torch.allclose(before, after)


@pytest.mark.parametrize("windows", WINDOWS)
def test_the_guide_paints_what_the_model_paints(float64, windows):
    """Under stock Pyro, where nothing is shared, the guide's canvases are the model's."""
    model, guide = pair(3, windows)
    x = torch.rand(2, 1, 5, 4).round()
    seen = []
    model.lstm.register_forward_hook(lambda module, inputs, state: seen.append(state[0]))
    trace = poutine.trace(guide).get_trace(x)
    poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    assert len(seen) == 2 + 3
    torch.testing.assert_close(seen[:2], seen[2:4])


def test_a_step_paints_once(float64):
    """What guide and model share is computed once in our step, and the gradients are those of computing it twice."""
    model, guide = pair(3, "windows")
    x = torch.rand(4, 1, 5, 4).round()
    painted = []
    model.lstm.register_forward_hook(lambda *call: painted.append(call))
    svi = SVI(model, guide, adam(model, guide, 1e-3))
    with pyro.validation_enabled(False):
        svi.step(x)
    assert len(painted) == 3


def test_each_step_depends_on_the_last_one_only():
    """The steps run under pyro.markov: of the sites before a step its own scope knows one."""
    model, guide = pair(4)
    for module in (model, guide):
        scopes = [
            node["infer"]["_markov_scope"]
            for name, node in poutine.trace(module).get_trace(torch.rand(2, 1, 5, 4).round()).nodes.items()
            if name.startswith("z_")
        ]
        assert len(scopes) == 4
        assert [sum(name.startswith("z_") for name in scope) for scope in scopes] == [0, 1, 1, 1]


@pytest.mark.parametrize("windows", WINDOWS)
def test_a_painting_is_watched_as_it_is_painted(windows):
    model, guide = pair(3, windows)
    x = torch.rand(2, 1, 5, 4).round()
    pyro.set_rng_seed(1)
    seen = inspect.reconstruction_steps(model, guide, x)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(seen.canvases[-1], inspect.reconstruct(model, guide, x))
    torch.testing.assert_close(seen.canvases[0], model.canvas.sigmoid().expand(2, -1, -1, -1))
    pyro.set_rng_seed(1)
    dreamt = inspect.generation_steps(model, 2)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(dreamt.canvases[-1], inspect.sample_means(model, 2))
    assert seen.canvases.shape == dreamt.canvases.shape == (4, 2, 1, 5, 4) and dreamt.reading is None
    if windows == "whole":
        assert seen.reading is None and seen.writing is None and dreamt.writing is None
    else:
        assert seen.reading.shape == seen.writing.shape == dreamt.writing.shape == (3, 2, 3)
        first = guide.reader.attention.window(model.h)
        expected = torch.stack([first.x, first.y, 2 * first.stride]).detach()
        torch.testing.assert_close(seen.reading[0, 0], expected)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"num_steps": 0}, "at least one step"),
        ({"num_steps": 2, "write_window": 5}, "5 x 5 does not fit images of 5 x 4"),
        ({"num_steps": 2, "likelihood": "mixture"}, "needs more"),
    ],
)
def test_sizes_that_cannot_be(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        DRAW(**SIZES, **wrong)


def test_a_guide_looks_through_no_more_than_the_image():
    with pytest.raises(ValueError, match="6 x 6 does not fit"):
        DRAWGuide(DRAW(**SIZES, num_steps=2), 7, read_window=6)
