"""The ladder where the answer is known: one layer, merges in closed form, a linear chain with its evidence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import kl_divergence

from guides import LadderGuide, VAEGuide
from guides.ladder_vae import product_of_gaussians
from pplmodels import VAE, LadderVAE, inspect
from pplmodels.metrics import log_probs
from pplmodels.models.likelihoods import Bernoulli
from pplmodels.models.priors import StandardNormal
from pplmodels.nn.mlp import BatchNorm
from pplmodels.testing import Pair
from pplmodels.training.batch_norm import recompute_batch_norm

PAIRS = {
    "ladder vae": Pair(
        model=lambda: LadderVAE(image=(1, 4, 4), z_dims=(4, 3, 2), hidden_dims=(8, 7, 6)),
        guide=lambda model: LadderGuide(model),
        batch=lambda n: torch.rand(n, 1, 4, 4).round(),
    ),
}
IMAGE = (1, 4, 4)


def images(n):
    return torch.rand(n, *IMAGE).round()


def test_one_layer_is_a_vae(float64):
    model = LadderVAE(IMAGE, z_dims=(3,), hidden_dims=(8,), batch_norm=False)
    guide = LadderGuide(model)

    def encoder(x):
        ((loc, variance),) = guide.bottom_up(x)
        return torch.cat([loc, variance.sqrt().expm1().log()], -1)  # of which a VAE's guide takes the softplus

    posterior = VAEGuide(nn.Identity(), 3)
    posterior.encoder.forward = encoder
    vae = VAE(StandardNormal(3), model.decoder, Bernoulli()), posterior
    x, terms = images(6), []
    for modules in ((model, guide), vae):
        pyro.set_rng_seed(3)
        log_p, log_q, _ = log_probs(*modules, x)
        terms.append([log_p.get("z", log_p.get("z1")), log_p["x"], *log_q.values()])
    torch.testing.assert_close(*terms)


def normal(loc, variance):
    return dist.Normal(loc, variance.sqrt()).to_event(1)


def test_merging_multiplies_the_densities(float64):
    message, expected = (torch.randn(5, 3), torch.rand(5, 3) + 0.1), (torch.randn(5, 3), torch.rand(5, 3) + 0.1)
    merged = normal(*product_of_gaussians(message, normal(*expected)))
    z = torch.randn(2, 5, 3)
    product = normal(*message).log_prob(z) + normal(*expected).log_prob(z)
    difference = product - merged.log_prob(z)  # the normaliser, which does not depend on z
    torch.testing.assert_close(difference[0], difference[1])
    assert (merged.variance < torch.minimum(message[1], expected[1])).all()


def test_the_limits_of_merging(float64):
    loc, expected = torch.randn(5, 3), normal(torch.randn(5, 3), torch.rand(5, 3) + 0.1)
    vague = normal(*product_of_gaussians((loc, torch.full((5, 3), 1e20)), expected))
    torch.testing.assert_close(vague.mean, expected.mean)
    torch.testing.assert_close(vague.variance, expected.variance)
    torch.testing.assert_close(kl_divergence(vague, expected), torch.zeros(5))
    sharp, variance = product_of_gaussians((loc, torch.full((5, 3), 1e-12)), expected)
    torch.testing.assert_close(sharp, loc)
    torch.testing.assert_close(variance, torch.full((5, 3), 1e-12))


def test_what_a_message_costs_is_the_closed_form(float64):
    """KL = 1/2 [log(1 + r) - r / (1 + r) + (difference of means)^2 / variance_p], r = variance_p / variance^."""
    loc, variance, expected = torch.randn(5, 3), torch.rand(5, 3) + 0.1, normal(torch.randn(5, 3), torch.rand(5, 3) + 1)
    r = expected.variance / variance
    shift = r / (1 + r) * (loc - expected.mean)
    closed = 0.5 * ((1 + r).log() - r / (1 + r) + shift**2 / expected.variance).sum(-1)
    torch.testing.assert_close(
        kl_divergence(normal(*product_of_gaussians((loc, variance), expected)), expected), closed
    )


@pytest.mark.parametrize("training", [True, False])
def test_what_is_drawn_depends_on_every_layer_and_every_merge(float64, training):
    """The gradient of the reconstruction alone reaches all of the guide, and all of the model's way down."""
    model = LadderVAE(IMAGE, z_dims=(4, 3, 2), hidden_dims=(8, 7, 6)).train(training)
    guide = LadderGuide(model).train(training)
    log_p, _, _ = log_probs(model, guide, images(20))
    parameters = {**dict(guide.named_parameters()), **dict(model.layers.named_parameters())}
    gradients = torch.autograd.grad(log_p["x"].sum(), list(parameters.values()))
    assert [name for name, g in zip(parameters, gradients, strict=True) if g.abs().max() < 1e-8] == []


class Linear(nn.Module):
    """Mean a multiple of the input, variance fixed."""

    def __init__(self, weight, variance):
        super().__init__()
        self.weight, self.variance = weight, variance

    def forward(self, z):
        loc = z @ self.weight.mT
        return loc, self.variance.expand_as(loc)


class Noise(nn.Module):
    """x ~ N(decoder's output, variance)."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance

    def forward(self, loc):
        return dist.Normal(loc, self.variance.sqrt()).to_event(3)


def linear_chain(slack=1.0):
    """z2 ~ N(0, 1), z1 ~ N(A z2, diagonal), x ~ N(W z1, s) with orthogonal columns of W, and its exact guide.

    With ``slack`` above 1 the guide's messages are too vague by that factor. Also returns x's covariance.
    """
    a, between = torch.tensor([[0.8], [-0.5]]), torch.tensor([0.6, 0.9])
    w, noise = torch.linalg.qr(torch.randn(4, 2))[0] * torch.tensor([1.3, 0.7]), torch.tensor(0.4)
    model = LadderVAE((1, 1, 4), z_dims=(2, 1), hidden_dims=(4, 4), batch_norm=False)
    model.layers[0] = Linear(a, between)
    model.decoder = nn.Linear(2, 4)
    with torch.no_grad():
        model.decoder.weight.copy_(w)
        model.decoder.bias.zero_()
    model.decoder = nn.Sequential(model.decoder, nn.Unflatten(-1, (1, 1, 4)))
    model.likelihood = Noise(noise)
    of_x_given_z2 = w @ between.diag() @ w.mT + noise * torch.eye(4)

    class Exact(LadderGuide):
        def bottom_up(self, x):
            squares = w.pow(2).sum(0)
            lower = x.flatten(-3) @ w / squares, (noise / squares).expand(len(x), 2)
            gain = (w @ a).mT @ torch.linalg.inv(of_x_given_z2)
            variance = 1 / (1 + gain @ w @ a)
            upper = x.flatten(-3) @ gain.mT * variance, variance.expand(len(x), 1)
            return [(loc, slack * spread) for loc, spread in (lower, upper)]

    return model, Exact(model), of_x_given_z2 + w @ a @ (w @ a).mT


def test_with_the_exact_posterior_every_sample_gives_the_evidence_of_a_linear_chain(float64):
    model, guide, covariance = linear_chain()
    x = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).sample((50,))
    evidence = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    for _ in range(3):
        log_p, log_q, _ = log_probs(model, guide, x.view(50, 1, 1, 4))
        torch.testing.assert_close(sum(log_p.values()) - sum(log_q.values()), evidence, rtol=1e-9, atol=1e-9)


def test_with_another_posterior_the_bound_is_below_the_evidence(float64):
    model, guide, covariance = linear_chain(slack=2.0)
    x = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).sample((1,))
    evidence = float(torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x))
    with torch.no_grad():
        log_p, log_q, _ = log_probs(model, guide, x.view(1, 1, 1, 4).expand(4000, -1, -1, -1))
    bound = sum(log_p.values()) - sum(log_q.values())
    assert float(bound.mean()) < evidence - 4 * float(bound.std()) / 4000**0.5
    assert float(bound.logsumexp(0)) - math.log(4000) == pytest.approx(evidence, abs=0.05)


def test_each_layer_depends_on_the_one_above_only():
    model = LadderVAE(IMAGE, z_dims=(4, 3, 2), hidden_dims=(8, 7, 6))
    for module in (model, LadderGuide(model)):
        nodes = poutine.trace(module).get_trace(images(5)).nodes
        scopes = {name: set(nodes[name]["infer"]["_markov_scope"]) for name in ("z3", "z2", "z1")}
        assert "z3" in scopes["z2"] and "z2" in scopes["z1"] and "z3" not in scopes["z1"]


def test_layers_that_are_not_kept_come_from_the_model():
    model = LadderVAE(IMAGE, z_dims=(4, 3, 2), hidden_dims=(8, 7, 6)).eval()
    guide = LadderGuide(model).eval()
    x, drawn = images(5), {}
    for keep in (["z3", "z2", "z1"], []):
        for batch in (x, 1 - x):
            pyro.set_rng_seed(1)
            drawn[len(keep), batch is x] = inspect.resample(model, guide, batch, keep)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(drawn[3, True], inspect.reconstruct(model, guide, x))
    assert not torch.allclose(drawn[3, True], drawn[3, False])
    torch.testing.assert_close(drawn[0, True], drawn[0, False])  # what the prior draws, whatever the image


def test_batch_norm_is_torchs_over_all_leading_dimensions():
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view(2, 5, 3))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert torch.equal(ours(x[:1, :1]), ours.eval()(x[:1, :1]))  # one image has no variance


def test_settled_statistics_are_those_of_all_batches():
    model = LadderVAE(IMAGE, z_dims=(3,), hidden_dims=(8,))
    guide = LadderGuide(model)
    batches = images(60).split(20)
    recompute_batch_norm(model, guide, batches)
    first = guide.layers[0][0]
    inputs = torch.stack([first[0](x.flatten(1)) for x in batches])
    torch.testing.assert_close(first[1].running_mean, inputs.mean((0, 1)))
    torch.testing.assert_close(first[1].running_var, inputs.var(1).mean(0))
    assert guide.training and first[1].momentum == 0.1


@pytest.mark.parametrize("sizes", [{"z_dims": ()}, {"z_dims": (4, 3), "hidden_dims": (8,)}])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="must both have one number per layer"):
        LadderVAE(IMAGE, **sizes)
