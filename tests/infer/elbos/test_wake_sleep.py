"""Reweighted wake-sleep: enumeration, the gradients of both phases one by one, and what the sleep phase refuses."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn
from twins import graphs, step_both, twins

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.infer import SVI, ImportanceWeighted_ELBO, ReweightedWakeSleep_ELBO, ScaledKL
from pplmodels.sites import random_sites

SIZES = {"image": (1, 4, 4), "z_dim": 3, "hidden_dims": (8,)}
Z = X = torch.tensor([0.0, 1.0])


class Coins(PyroModule):
    """z ~ Bernoulli, x ~ Bernoulli that depends on z."""

    def __init__(self):
        super().__init__("coins")
        self.prior = nn.Parameter(torch.tensor(-0.8))
        self.likelihood = nn.Parameter(torch.tensor([-1.0, 1.7]))

    def p_x(self, z):
        return dist.Bernoulli(logits=self.likelihood[0] + self.likelihood[1] * z)

    def forward(self, x=None, n=None):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior))
            return pyro.sample("x", self.p_x(z), obs=x)

    def log_joint(self, z, x):
        return dist.Bernoulli(logits=self.prior).log_prob(z) + self.p_x(z).log_prob(x)


class CoinsGuide(PyroModule):
    def __init__(self):
        super().__init__("coins_guide")
        self.logits = nn.Parameter(torch.tensor([1.4, -0.2]))

    def q(self, x):
        return dist.Bernoulli(logits=self.logits[0] + self.logits[1] * x)

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.q(x))


class Chain(PyroModule):
    """z2 ~ N(loc, 1), z1 ~ N(z2, 1), x ~ N(z1, 1/2)."""

    def __init__(self):
        super().__init__("chain")
        self.loc = nn.Parameter(torch.tensor(0.3))

    def forward(self, x=None, n=None):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(self.loc, 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.loc * z2, 1.0))
            return pyro.sample("x", dist.Normal(z1, 0.5), obs=x)


class ChainGuide(PyroModule):
    def __init__(self):
        super().__init__("chain_guide")
        self.top = nn.Parameter(torch.tensor([0.2, 0.1, -0.3]))
        self.bottom = nn.Parameter(torch.tensor([0.5, 0.3, -0.2]))

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(self.top[0] * x + self.top[1], self.top[2].exp()))
            pyro.sample("z1", dist.Normal(self.bottom[0] * x + self.bottom[1] * z2, self.bottom[2].exp()))


def parameters(*pair):
    return [p for module in pair for p in module.parameters()]


def estimate(model, guide, loss, *args, seed=1, **kwargs):
    """Loss per image and all gradients per image in one vector."""
    pyro.set_rng_seed(seed)
    learned = parameters(model, guide)
    svi = SVI(model, guide, torch.optim.SGD(learned, lr=0.0), loss)
    value, images, gradients = svi.gradients(*args, **kwargs)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, learned, strict=True)]
    return value, torch.cat([part.flatten() for part in parts]) / images


@pytest.mark.parametrize("insomnia", [1.0, 0.0, 0.4])
def test_both_phases_agree_with_enumeration(float64, insomnia):
    """Two particles of a coin and dreams of two coins, 30 x 4,000 images, within 4.5 standard errors."""
    model, guide, x = Coins(), CoinsGuide(), torch.tensor(1.0)
    log_q = guide.q(x).log_prob(Z)
    log_w = (model.log_joint(Z, x) - log_q).detach()
    objective = torch.zeros(())
    bound = torch.zeros(())
    for outcome in itertools.product((0, 1), repeat=2):
        index = torch.tensor(outcome)
        probability, weights = log_q.detach()[index].sum().exp(), log_w[index].softmax(0)
        fits = model.log_joint(Z, x)[index] + insomnia * log_q[index]
        objective = objective + probability * (weights * fits).sum()
        bound = bound + probability * (log_w[index].logsumexp(0) - math.log(2))
    for z, image in itertools.product(Z, X):
        joint = model.log_joint(z, image).exp().detach()
        objective = objective + (1 - insomnia) * joint * guide.q(image).log_prob(z)
    wanted = torch.cat(
        [-bound[None], *(-g.flatten() for g in torch.autograd.grad(objective, parameters(model, guide)))]
    )
    loss = ReweightedWakeSleep_ELBO(2, insomnia=insomnia)
    found = [estimate(model, guide, loss, x.expand(4000), seed=seed) for seed in range(30)]
    found = torch.stack([torch.cat([value[None], gradients]) for value, gradients in found])
    error = found.std(0) / 30**0.5
    assert ((found.mean(0) - wanted).abs() <= 4.5 * error + 1e-12).all()
    assert (wanted.abs() > 9 * error).all()


def test_the_wake_phase_weights_the_densities_of_fixed_samples(float64):
    model, guide, x = Chain(), ChainGuide(), torch.randn(5)
    value, gradients = estimate(model, guide, ReweightedWakeSleep_ELBO(4), x)
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 4, dim=-2):
        q = poutine.trace(guide).get_trace(x)
        q.detach_()
        fixed = poutine.trace(poutine.replay(guide, trace=q)).get_trace(x)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
    for trace in (fixed, p):
        trace.compute_log_prob()
    log_p, log_q = (sum(site["log_prob"] for _, site in random_sites(trace)) for trace in (p, fixed))
    weights = (log_p - log_q).detach()
    surrogate = -(weights.softmax(0) * (log_p + log_q)).sum(0).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, parameters(model, guide))])
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)
    assert float(value) == pytest.approx(-float((weights.logsumexp(0) - math.log(4)).mean()), rel=1e-12)
    same, of_bound = estimate(model, guide, ImportanceWeighted_ELBO(4), x)
    assert float(same) == pytest.approx(float(value), rel=1e-13)
    torch.testing.assert_close(gradients[0], of_bound[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("insomnia", [1.0, 0.5])
def test_chunks_give_what_all_particles_at_once_give(float64, insomnia):
    model, guide, x = MLPVAE(**SIZES), MLPGuide(**SIZES), torch.rand(16, 1, 4, 4).round()
    found = [estimate(model, guide, ReweightedWakeSleep_ELBO(6, chunk=chunk), x) for chunk in (None, 4, 1)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("pair", [(Coins, CoinsGuide), (Chain, ChainGuide)])
def test_compiled_steps_are_the_uncompiled_ones_to_the_bit(pair, chunk):
    both = twins(*pair, partial(ReweightedWakeSleep_ELBO, 3, insomnia=0.5, chunk=chunk), clip_norm=5.0)
    for size in (7, 1):
        x = torch.rand(size).round()
        losses = [float(step_both(both, x, seed=step)) for step in range(2)]
        assert len(losses) == 2
    assert graphs(both) == 2


def test_sleep_alone_fits_the_posterior_of_the_images_of_the_model(float64):
    """With one particle, as in wake-sleep, and a model that stays as it is."""
    model, guide = Coins().requires_grad_(False), CoinsGuide()
    svi = SVI(model, guide, torch.optim.SGD(guide.parameters(), lr=2e-3), ReweightedWakeSleep_ELBO(1, insomnia=0.0))
    for _ in range(400):
        svi.step(torch.zeros(500))
    posterior = torch.stack([model.log_joint(Z, x).softmax(0)[1] for x in X])
    torch.testing.assert_close(guide.q(X).mean.detach(), posterior, atol=0.03, rtol=0)
    assert (guide.q(X).mean - CoinsGuide().q(X).mean).abs().max() > 0.15


def test_a_kl_weight_tempers_the_weights_and_does_not_scale_the_fit_of_the_guide(float64):
    """At weight 0 all particles have weights of p(x | z) alone; the sleep phase is that without a weight."""
    model, guide, x = Coins(), CoinsGuide(), torch.ones(6)
    found = [
        estimate(*pair, ReweightedWakeSleep_ELBO(1, insomnia=0.0), x)[1][-2:]
        for pair in ((model, guide), (ScaledKL(model, 0.2), ScaledKL(guide, 0.2)))
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert found[0].abs().max() > 1e-3


class Derived(PyroModule):
    """A guide that takes a feature of x, as DMM's takes reversed sequences."""

    def __init__(self, part, is_model):
        super().__init__(f"derived_{is_model}")
        self.part, self.is_model = part, is_model

    def forward(self, x=None, flipped=None, n=None):
        if self.is_model:
            return self.part(x, n)
        return self.part(1 - flipped)


def test_arguments_derived_from_the_images_need_a_dream(float64):
    model, guide, x = Derived(Coins(), True), Derived(CoinsGuide(), False), torch.rand(9).round()
    loss = ReweightedWakeSleep_ELBO(2, insomnia=0.3)
    with pytest.raises(ValueError, match=r"argument 2 is not the value of an observed site .*: pass dream to"):
        estimate(model, guide, loss, x, 1 - x)
    with pytest.raises(ValueError, match="the argument flipped is not the value"):
        estimate(model, guide, loss, x, flipped=1 - x)

    def dream(model, x, flipped):
        x = model(n=len(x))
        return x, 1 - x

    found = estimate(model, guide, ReweightedWakeSleep_ELBO(2, insomnia=0.3, dream=dream), x, 1 - x)
    torch.testing.assert_close(found, estimate(model.part, guide.part, loss, x), rtol=1e-12, atol=1e-12)


def test_observations_that_are_not_the_argument_need_a_dream():
    class Shifted(Coins):
        def forward(self, x=None, n=None):
            return super().forward(None if x is None else 1 - x, n)

    with pytest.raises(ValueError, match="argument 1 is not the value of an observed site"):
        estimate(Shifted(), CoinsGuide(), ReweightedWakeSleep_ELBO(2, insomnia=0.0), torch.ones(3))


def test_models_that_cannot_be_sampled_are_refused():
    class Observing(Coins):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ValueError, match=r"samples images by model\(n=...\), but the model has no argument n: give it"):
        estimate(Observing(), CoinsGuide(), ReweightedWakeSleep_ELBO(2, insomnia=0.5), torch.ones(3))


class Auxiliary(CoinsGuide):
    """An auxiliary choice, of which z depends."""

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Bernoulli(logits=self.logits[1]), infer={"is_auxiliary": True})
            pyro.sample("z", self.q(x * a))


class Point(CoinsGuide):
    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(self.q(x).mean.round()))


def test_guides_without_a_density_of_the_latents_are_refused():
    x = torch.ones(3)
    with pytest.raises(ValueError, match=r"a is only a site of the guide, but the sleep phase .*: use insomnia=1"):
        estimate(Coins(), Auxiliary(), ReweightedWakeSleep_ELBO(2, insomnia=0.5), x)
    estimate(Coins(), Auxiliary(), ReweightedWakeSleep_ELBO(2), x)
    with pytest.raises(ValueError, match="z of the guide is a Delta, which has no density to fit"):
        estimate(Coins(), Point(), ReweightedWakeSleep_ELBO(2), x)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_particles": 1}, "the guide's wake phase needs num_particles of at least 2"),
        ({"insomnia": 1.5}, "insomnia must be from 0"),
        ({"num_particles": 0, "insomnia": 0.0}, "num_particles must be a whole number of at least 1"),
    ],
)
def test_arguments_are_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ReweightedWakeSleep_ELBO(**arguments)
