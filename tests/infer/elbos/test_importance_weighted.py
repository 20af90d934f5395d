"""Importance-weighted bounds: closed forms, enumeration, and estimators against each other."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.nn import PyroModule
from torch import nn
from weighted_pairs import (
    GRADIENTS,
    LadderGuide,
    LadderModel,
    LinearGuide,
    LinearModel,
    MixedGuide,
    MixedModel,
    assert_equal_means,
    engine,
    estimate,
    many,
    parameters,
    reference,
)

from pplmodels.infer import ImportanceWeighted_ELBO
from pplmodels.infer.elbos.importance_weighted import leave_one_out, renyi


def test_the_bound_rises_with_particles_to_the_evidence(float64):
    """The means of 8 x 1,000 images, and their standard errors."""
    model, guide, x = LinearModel(), LinearGuide(), torch.randn(3).expand(1000, 3)
    evidence = float(model.log_prob(x[:1]).detach())
    bounds, errors = [], []
    for number in (1, 4, 32, 256):
        loss = ImportanceWeighted_ELBO(number, max_plate_nesting=1)
        values = torch.tensor([-loss.loss(model, guide, x) / 1000 for _ in range(8)])
        bounds.append(float(values.mean()))
        errors.append(float(values.std()) / 8**0.5)
    for low, high, error in zip(bounds, bounds[1:], errors, strict=False):
        assert low < high - 4 * error
    assert abs(bounds[-1] - evidence) < 4.5 * errors[-1] + 0.02 * (evidence - bounds[0])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_exact_posterior_gives_the_evidence_and_its_gradient(float64, gradient, chunk):
    """Every weight is p(x), so bound and gradients have no variance."""
    model, guide, x = LinearModel(), LinearGuide(), torch.randn(4, 3)
    with torch.no_grad():
        model.net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))  # so the posterior is diagonal
        precision = 1 + 4 * model.net.weight.square().sum(0)
        guide.net.weight.copy_(4 * model.net.weight.T / precision[:, None])
        guide.net.bias.copy_(-guide.net.weight @ model.net.bias)
        guide.log_scale.copy_(-precision.log() / 2)
    loss, gradient_found = estimate(model, guide, ImportanceWeighted_ELBO(5, gradient, chunk=chunk), x)
    evidence = model.log_prob(x).mean().detach()
    assert float(loss) == pytest.approx(-float(evidence), rel=1e-10)
    if gradient != "plain":  # the score of q, which the other estimators do not have, is noise
        of_guide = sum(p.numel() for p in guide.parameters())
        assert gradient_found[-of_guide:].abs().max() < 1e-12


@pytest.mark.parametrize("pair", [(LinearModel, LinearGuide), (LadderModel, LadderGuide), (MixedModel, MixedGuide)])
def test_one_particle_is_tracegraph(float64, pair):
    model, guide = (part() for part in pair)
    x = torch.randn(6, 3) if pair[0] is LinearModel else torch.randn(6)
    value, gradient = estimate(model, guide, ImportanceWeighted_ELBO(1), x)
    expected, stock = estimate(model, guide, TraceGraph_ELBO(), x)
    assert float(value) == pytest.approx(float(expected), rel=1e-13)
    if pair[0] is not MixedModel:  # where TraceGraph_ELBO leaves out costs that do not depend on a site
        torch.testing.assert_close(gradient, stock, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -1.0])
def test_one_by_one_the_plain_gradient_is_that_of_the_bound(float64, alpha):
    pair, x = (LadderModel(), LadderGuide()), torch.randn(5)
    found = estimate(*pair, ImportanceWeighted_ELBO(4, alpha=alpha, chunk=1), x)
    torch.testing.assert_close(found, reference(pair, 4, x, alpha), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_chunks_give_what_all_particles_at_once_give(float64, gradient):
    """16 images, so that one draw of all particles uses the same random numbers as several draws."""
    x, found = torch.randn(16, 3), []
    model, guide = LinearModel(), LinearGuide()
    for chunk in (None, 3, 1, 7, 20):
        found.append(estimate(model, guide, ImportanceWeighted_ELBO(7, gradient, chunk=chunk), x))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-11)
    assert found[0][1].abs().max() > 0.1


@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_images_do_not_see_each_other(float64, gradient, chunk):
    """The gradient with respect to one image stays when others change."""

    model, guide, x = LinearModel(), LinearGuide(), torch.randn(16, 3)
    far = x.clone()
    far[8:] += 50
    grads = []
    for images in (x, far):
        pyro.set_rng_seed(1)
        images = images.clone().requires_grad_()
        svi = engine(model, guide, ImportanceWeighted_ELBO(4, gradient, chunk=chunk))
        _, surrogate, _ = svi._losses((images,), {})
        grads.append(torch.autograd.grad(surrogate, images)[0][:8])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    assert grads[0].abs().max() > 1e-2


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gradient", ["dreg", "gdreg"])
def test_doubly_reparameterized_gradients_have_the_plain_mean_and_less_variance(float64, gradient, alpha):
    model, guide, x = LadderModel(), LadderGuide(), torch.tensor([0.9, -1.4]).repeat(1500)
    plain = many(model, guide, ImportanceWeighted_ELBO(3, alpha=alpha), x)
    doubly = many(model, guide, ImportanceWeighted_ELBO(3, gradient, alpha=alpha), x)
    assert_equal_means(doubly, plain)
    of_guide = slice(-7, None)
    assert doubly[2][of_guide].mean() < 0.8 * plain[2][of_guide].mean()
    if gradient == "gdreg":  # the first five parameters are those of the priors
        assert doubly[2][:5].mean() < plain[2][:5].mean()


def test_stl_is_biased_for_several_particles_and_unbiased_for_one(float64):
    model, guide, x = LadderModel(), LadderGuide(), torch.tensor([0.9, -1.4]).repeat(1500)
    assert_equal_means(*(many(model, guide, ImportanceWeighted_ELBO(1, name), x) for name in ("stl", "plain")))
    plain, stl = (many(model, guide, ImportanceWeighted_ELBO(5, name), x) for name in ("plain", "stl"))
    error = (plain[1].square() + stl[1].square()).sqrt()
    assert ((plain[0] - stl[0]).abs() > 8 * error)[-7:].any()


SCALES = {
    "the kl is annealed": {"scale": 0.4},
    "an image is masked": {"mask": torch.tensor([True, False]).repeat(1500)},
    "both": {"scale": 0.4, "mask": torch.tensor([True, False]).repeat(1500)},
}


@pytest.mark.parametrize("gradient", ["dreg", "gdreg"])
@pytest.mark.parametrize("case", SCALES)
def test_scaled_and_masked_latents_have_the_plain_mean(float64, case, gradient):
    model, guide, x = LadderModel(**SCALES[case]), LadderGuide(**SCALES[case]), torch.tensor([0.9, -1.4]).repeat(1500)
    plain, doubly = (many(model, guide, ImportanceWeighted_ELBO(3, name), x) for name in ("plain", gradient))
    assert_equal_means(doubly, plain)


class MaskedGuide(LadderGuide):
    """q(z2) alone is masked, although the rest depends on it, and q(z1) is scaled."""

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            top = dist.Normal(self.top[0] * x + self.top[1], self.top[2].exp())
            z2 = pyro.sample("z2", top.mask(x > 0))
            loc = self.bottom[0] * x + self.bottom[1] * z2
            with poutine.scale(scale=0.7):
                pyro.sample("z1", dist.Normal(loc, (self.bottom[2] * z2.tanh() + self.bottom[3]).exp()))


@pytest.mark.parametrize("gradient", ["dreg", "gdreg"])
def test_sites_with_different_masks_and_scales_have_the_plain_mean(float64, gradient):
    model, guide, x = LadderModel(scale=0.6), MaskedGuide(), torch.tensor([0.9, -1.4]).repeat(1500)
    plain, doubly = (many(model, guide, ImportanceWeighted_ELBO(3, name), x) for name in ("plain", gradient))
    assert_equal_means(doubly, plain)


class FlowGuide(LinearGuide):
    """An auxiliary normal, and z as a Delta of an affine map of it with its log-density: the guide is normal again."""

    def __init__(self, as_delta):
        super().__init__()
        self.as_delta = as_delta
        self.stretch = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            if self.as_delta:
                u = pyro.sample("u", self.q(x), infer={"is_auxiliary": True})
                density = -self.stretch.sum().expand(u.shape[:-1])
                pyro.sample("z", dist.Delta(u * self.stretch.exp(), log_density=density, event_dim=1))
            else:
                flow = dist.transforms.AffineTransform(0.0, self.stretch.exp(), event_dim=1)
                pyro.sample("z", dist.TransformedDistribution(self.q(x), [flow]))


@pytest.mark.parametrize("as_delta", [False, True])
@pytest.mark.parametrize("gradient", ["dreg", "gdreg", "stl", "vimco"])
def test_flows_and_deltas_of_auxiliary_sites_have_the_plain_mean(float64, gradient, as_delta):
    model, guide, x = LinearModel(), FlowGuide(as_delta), torch.randn(1, 3).expand(2000, 3)
    number = 1 if gradient == "stl" else 3
    plain, other = (many(model, guide, ImportanceWeighted_ELBO(number, name), x) for name in ("plain", gradient))
    assert_equal_means(other, plain, power=gradient != "vimco")


def test_vimco_agrees_with_enumeration_and_has_less_variance_than_the_score_function(float64):
    """Three particles of a coin: the bound and its gradient, summed over the eight outcomes."""

    class Coin(PyroModule):
        def __init__(self, logit, observed=False):
            super().__init__("coin")
            self.logit, self.observed = nn.Parameter(torch.tensor(logit)), observed

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Bernoulli(logits=self.logit))
                if self.observed:
                    pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    model, guide, x = Coin(-0.8, True), Coin(0.4), torch.tensor(0.8)
    for alpha in (0.0, 0.5, 1.0):
        z = torch.tensor([0.0, 1.0])
        q, p = dist.Bernoulli(logits=guide.logit), dist.Bernoulli(logits=model.logit)
        weights = p.log_prob(z) + dist.Normal(z, 0.7).log_prob(x) - q.log_prob(z)
        exact = torch.zeros(())
        for outcome in itertools.product((0, 1), repeat=3):
            index = torch.tensor(outcome)
            exact = exact - q.log_prob(z)[index].sum().exp() * renyi(weights[index][:, None], alpha)[0]
        wanted = torch.stack([exact, *torch.autograd.grad(exact, parameters(model, guide))]).detach()
        found = many(model, guide, ImportanceWeighted_ELBO(3, alpha=alpha), x.expand(5000))
        assert ((found[0] - wanted).abs() < 4.5 * found[1]).all()
        assert (wanted.abs() > 9 * found[1]).all()

    class Uncontrolled(ImportanceWeighted_ELBO):
        def _bound(self, log_weight):
            bound, weights = super()._bound(log_weight)
            return bound, weights._replace(signal=bound.expand_as(log_weight))

    stock = many(model, guide, Uncontrolled(3), x.expand(5000))
    vimco = many(model, guide, ImportanceWeighted_ELBO(3), x.expand(5000))
    assert_equal_means(vimco, stock)
    assert vimco[2][1] < 0.5 * stock[2][1]


def test_leaving_one_out_is_the_bound_with_the_mean_of_the_others(float64):
    weights = 300 * torch.randn(6, 4)
    weights[2, 1] = -math.inf
    for alpha in (0.0, 0.7, 1.0, 2.0):
        expected = torch.empty_like(weights)
        for k in range(6):
            others = torch.cat([weights[:k], weights[k + 1 :]])
            changed = weights.clone()
            changed[k] = others.mean(0)
            expected[k] = renyi(changed, alpha)
        torch.testing.assert_close(leave_one_out(weights, alpha), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["plain", "vimco"])
def test_discrete_and_continuous_sites_in_one_guide_have_the_gradient_of_the_bound(float64, gradient):
    """Against finite differences of the mean bound by quadrature and enumeration for two particles."""
    model, guide, x = MixedModel(), MixedGuide(), torch.tensor(1.1)
    nodes, density = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(60))
    density = density / density.sum()

    def exact():
        logits = dist.Bernoulli(logits=guide.k[0] * x + guide.k[1])
        weights, probs = [], []
        for k in torch.tensor([0.0, 1.0]):
            q = dist.Normal(guide.z[0] * x + guide.z[1] * k, guide.z[2].exp())
            z = q.loc + q.scale * nodes
            log_p = dist.Bernoulli(0.3).log_prob(k) + dist.Normal(model.loc * k, 1.0).log_prob(z)
            log_p = log_p + dist.Normal(z + k, 0.5).log_prob(x)
            weights.append(log_p - logits.log_prob(k) - q.log_prob(z))
            probs.append(logits.log_prob(k).exp() * density)
        weights, probs = torch.cat(weights), torch.cat(probs)
        both = torch.logaddexp(weights[:, None], weights) - math.log(2)
        return -(probs[:, None] * probs * both).sum()

    bound = exact()
    wanted = torch.cat(
        [bound.detach()[None], *(g.flatten() for g in torch.autograd.grad(bound, parameters(model, guide)))]
    )
    found = many(model, guide, ImportanceWeighted_ELBO(2, gradient), x.expand(5000))
    assert ((found[0] - wanted).abs() < 4.5 * found[1]).all()
    assert (wanted.abs() > 9 * found[1]).sum() >= 5
