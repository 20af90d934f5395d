"""Objectives of a user's own: the example of docs/engine.md, objectives with state, and results that are refused."""

import re
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.nn import PyroModule
from torch import nn
from twins import graphs, step_both, twins

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.infer import SVI, adam
from pplmodels.infer.traces import pair_traces
from pplmodels.metrics import gradient_variance

PAGE = (Path(__file__).parents[3] / "docs" / "engine.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
IMPORTS, OBJECTIVE, TRAINING = EXAMPLE.split("\n\n\n")
NAMES = {"__name__": "example"}  # without a name its functions would count as Python's own
exec(f"{IMPORTS}\n{OBJECTIVE}", NAMES)
importance_weighted = NAMES["importance_weighted"]
SIZES = {"image": (1, 4, 4), "z_dim": 3, "hidden_dims": (8,)}


class CoinModel(PyroModule):
    """z ~ Bernoulli(0.3), x ~ N(z, scale)."""

    def __init__(self):
        super().__init__("coin_model")
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.3)))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)


class CoinGuide(PyroModule):
    def __init__(self):
        super().__init__("coin_guide")
        self.logit = nn.Parameter(torch.tensor(0.4))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logit.expand(len(x))))


PAIRS = {
    "vae": (lambda: MLPVAE(**SIZES), lambda: MLPGuide(**SIZES), lambda n: torch.rand(n, 1, 4, 4).round()),
    "coins": (CoinModel, CoinGuide, lambda n: torch.randn(n)),
}


def svi(loss, **options):
    model, guide = CoinModel(), CoinGuide()
    return SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), loss, **options)


def test_the_example_of_the_page_is_short_and_trains():
    assert len(OBJECTIVE.splitlines()) <= 12
    exec(TRAINING, NAMES)
    losses = NAMES["losses"]
    assert len(losses) == 100 and sum(losses[-20:]) < sum(losses[:20])


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.01}, {"precision": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_compiled_steps_are_the_uncompiled_ones_to_the_bit(pair, options):
    model, guide, batch = PAIRS[pair]
    both = twins(model, guide, lambda: partial(importance_weighted, particles=3), **options)
    x = batch(7)
    losses = [float(step_both(both, x, seed=step)) for step in range(4)]
    assert graphs(both) == 1 and len(set(losses)) == 4


def test_with_one_particle_loss_and_gradients_are_those_of_the_elbo(float64):
    """The same noise, so they differ by the order of sums only."""
    model, guide, x = MLPVAE(**SIZES), MLPGuide(**SIZES), torch.rand(7, 1, 4, 4).round()
    found = []
    for loss in (partial(importance_weighted, particles=1), TraceGraph_ELBO()):
        engine = SVI(model, guide, adam(model, guide, 0.0), loss)
        pyro.set_rng_seed(1)
        value, images, gradients = engine.gradients(x)
        pyro.set_rng_seed(1)
        assert engine.evaluate_loss(x) == value
        assert images == 7
        found.append([value, *gradients])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_bound_and_gradient_of_discrete_sites_agree_with_enumeration(float64):
    """Two particles of a coin, 40 x 5,000 images: within 4.5 standard errors of the sum over the four outcomes."""
    engine = svi(partial(importance_weighted, particles=2))
    observed, z = torch.tensor(0.8), torch.tensor([0.0, 1.0])
    q = dist.Bernoulli(logits=engine.guide.logit)
    log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(z, engine.model.scale).log_prob(observed)
    weights, probs = (log_p - q.log_prob(z)).exp(), q.log_prob(z).exp()
    exact = -(probs[:, None] * probs * ((weights[:, None] + weights) / 2).log()).sum()
    wanted = torch.stack([exact, *torch.autograd.grad(exact, engine.parameters())]).detach()
    found = []
    for _ in range(40):
        loss, images, gradients = engine.gradients(observed.expand(5000))
        found.append(torch.stack([loss, *(gradient / images for gradient in gradients)]))
    found = torch.stack(found)
    error = found.std(0) / 40**0.5
    assert ((found.mean(0) - wanted).abs() < 4.5 * error).all()
    assert (wanted.abs() > 9 * error).all()


def test_the_gradient_of_the_surrogate_is_clipped_per_image():
    def steep(model, guide, x):
        loss, surrogate = importance_weighted(model, guide, x)
        return loss, 1000 * surrogate

    x, engine = torch.randn(50), svi(steep, clip_norm=0.25)
    pyro.set_rng_seed(1)
    loss = engine.step(x)
    pyro.set_rng_seed(1)
    assert loss == svi(importance_weighted).step(x)
    gradients = torch.stack([p.grad for p in engine.parameters()])
    assert float(gradients.norm()) / 50 == pytest.approx(0.25, rel=1e-4)


class Tempered:
    """The negative bound with a weight of the KL, a tensor."""

    def __init__(self):
        self.weight = torch.tensor(1.0)

    def __call__(self, model, guide, x):
        q, p = pair_traces(model, guide, x)
        p.compute_log_prob()
        q.compute_log_prob()
        kl = (q.nodes["z"]["log_prob"] - p.nodes["z"]["log_prob"]).sum()
        loss = self.weight * kl - p.nodes["x"]["log_prob"].sum()
        return loss, loss


def test_a_compiled_step_reads_the_tensors_of_an_objective():
    model, guide, batch = PAIRS["vae"]
    both, x = twins(model, guide, Tempered, lr=0.0), batch(7)

    def write(objective, value):
        objective.weight.fill_(value)

    def replace(objective, value):
        objective.weight = torch.tensor(value)

    losses = [float(step_both(both, x))]
    for value, change in ((0.5, write), (2.0, replace), (0.25, write)):
        for engine in both:
            change(engine.elbo, value)
        losses.append(float(step_both(both, x)))
    assert graphs(both) == 1
    kl, reconstruction = (losses[0] - losses[1]) / 0.5, 2 * losses[1] - losses[0]
    assert losses == pytest.approx([reconstruction + weight * kl for weight in (1.0, 0.5, 2.0, 0.25)], rel=1e-5)
    assert abs(kl) > 1e-2  # or the weights would not matter within the tolerance


class Centred(nn.Module):
    """The importance-weighted loss minus its running mean, and a surrogate with a learned scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, model, guide, x):
        loss, surrogate = importance_weighted(model, guide, x)
        self.mean.lerp_(loss.detach(), 0.1)
        return loss - self.mean, surrogate / self.scale


def test_the_parameters_of_an_objective_are_learned_or_named():
    for compiled in (False, True):
        model, guide, objective = CoinModel(), CoinGuide(), Centred()
        learned = [*model.parameters(), *guide.parameters()]
        with pytest.raises(ValueError, match=r"the optimizer does not have loss\.scale, which would never be updated"):
            SVI(model, guide, torch.optim.SGD(learned, lr=0.1), objective, compile=compiled).step(torch.randn(5))
        engine = SVI(model, guide, torch.optim.SGD([*learned, objective.scale], lr=0.1), objective, compile=compiled)
        engine.step(torch.randn(5))
        assert float(objective.scale.detach()) != 1.5


def test_steps_change_the_state_of_an_objective_and_measurements_do_not():
    x, both = torch.randn(7), twins(CoinModel, CoinGuide, Centred)
    for engine in both:
        engine.elbo.scale.requires_grad_(False)
    means = []
    for step in range(3):
        step_both(both, x, seed=step)
        means.append(both[0].elbo.mean.clone())
        for engine in both:
            assert engine.elbo.mean == means[-1]
            engine.evaluate_loss(x)
            gradient_variance(engine, (x,), engine.parameters(), repeats=2)
            assert engine.elbo.mean == means[-1]
    assert len(set(map(float, means))) == 3


def negative_bound(model, guide, x):
    """What stock Pyro accepts as a loss."""
    return Trace_ELBO().differentiable_loss(model, guide, x)


def test_one_tensor_is_loss_and_surrogate():
    def twice(*run):
        loss = negative_bound(*run)
        return loss, loss

    x, found = torch.randn(6), []
    for objective in (negative_bound, twice):
        engine = svi(objective)
        pyro.set_rng_seed(1)
        value, _, gradients = engine.gradients(x)
        pyro.set_rng_seed(1)
        assert engine.evaluate_loss(x) == value
        found.append(torch.stack([value, *gradients]))
    assert torch.equal(*found)


WRONG = {
    "three": (lambda loss: (loss, loss, loss), r"\(tensor of shape \(\), tensor of shape \(\), tensor of shape \(\)\)"),
    "one in a tuple": (lambda loss: (loss,), r"\(tensor of shape \(\)\)"),
    "a list": (lambda loss: [loss, loss], "list"),
    "a number": (lambda loss: loss.item(), "float"),
    "a loss that is a number": (lambda loss: (loss.item(), loss), r"\(float, tensor of shape \(\)\)"),
    "nothing": (lambda loss: None, "NoneType"),
    "a surrogate per image": (lambda loss: (loss, loss.expand(6)), r"\(tensor of shape \(\), tensor of shape \(6,\)\)"),
    "a loss per image": (lambda loss: loss.expand(6), r"tensor of shape \(6,\)"),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_other_results_are_refused(wrong, compiled):
    change, what = WRONG[wrong]

    def mistaken(*run):
        return change(negative_bound(*run))

    engine = svi(mistaken, compile=compiled)
    sentence = (
        f"^mistaken returned {what}: an objective returns two tensors of shape \\(\\), its loss and its surrogate"
    )
    for call in (engine.step, engine.evaluate_loss):
        with pytest.raises(ValueError, match=sentence):
            call(torch.randn(6))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_surrogate_without_gradients_is_refused(compiled):
    def constant(*run):
        loss = negative_bound(*run)
        return loss, loss.detach()

    with pytest.raises(ValueError, match="the loss does not depend on any parameter"):
        svi(constant, compile=compiled).step(torch.randn(6))


def test_an_elbo_with_gradients_of_its_own_trains_in_lower_precision():
    model, guide, batch = PAIRS["vae"]
    model, guide, x = model(), guide(), batch(6)
    losses = []
    for precision in (None, torch.bfloat16):
        loss = RenyiELBO(alpha=0.5, num_particles=3)
        pyro.set_rng_seed(1)
        losses.append(float(SVI(model, guide, adam(model, guide, 0.0), loss, precision=precision).step(x)))
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
