"""The VAE family where the answer is known: probabilistic PCA, flows by autograd, likelihoods by summation."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineAutoregressive
from torch import nn

from guides import ConvGuide, LSTMGuide, MLPGuide, VAEGuide, VectorGuide
from pplmodels import MLPVAE, VAE, ConvVAE, VectorVAE, inspect
from pplmodels.data import dynamic_binarize, load_images
from pplmodels.data.gaussians import GAUSSIANS
from pplmodels.distributions import DiscretizedLogisticMixture
from pplmodels.infer import SVI, adam
from pplmodels.metrics import elbo_terms, importance_weighted, log_probs
from pplmodels.models.likelihoods import DiagonalNormal, LogitNormal
from pplmodels.models.priors import AutoregressiveFlow, StandardNormal, identity_made
from pplmodels.module import PairModule
from pplmodels.nn import conv_decoder, conv_encoder
from pplmodels.testing import Pair


def bent(module: PairModule, network: str) -> PairModule:
    """The module with a flow that is no longer the identity, at which its first layers would get no gradient."""
    for parameter in module.get_submodule(network).parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


PAIRS = {
    "vae, of parts": Pair(
        model=lambda: VAE(StandardNormal(2), nn.Linear(2, 6), DiagonalNormal()),
        guide=lambda model: VAEGuide(nn.Linear(3, 4), 2),
        batch=lambda n: torch.randn(n, 3),
        saved=False,
    ),
    "vae, fully connected": Pair(
        model=lambda: MLPVAE(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        guide=lambda model: MLPGuide(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        batch=lambda n: torch.rand(n, 1, 4, 4).round(),
    ),
    "vae, plane": Pair(
        model=lambda: VectorVAE(hidden_dims=(8,)),
        guide=lambda model: VectorGuide(hidden_dims=(8,)),
        batch=lambda n: torch.randn(n, 2),
    ),
    "vae, convolutional, logit-normal": Pair(
        model=lambda: ConvVAE(image=(3, 8, 8), z_dim=3, channels=(6, 4), likelihood="logit-normal-learned"),
        guide=lambda model: ConvGuide(image=(3, 8, 8), z_dim=3, channels=(4, 6)),
        batch=lambda n: torch.rand(n, 3, 8, 8),
    ),
    "vae, convolutional, logistic mixture, flow prior": Pair(
        model=lambda: bent(ConvVAE(image=(3, 8, 8), z_dim=3, channels=(6, 4), flow=(8,)), "prior.network"),
        guide=lambda model: ConvGuide(image=(3, 8, 8), z_dim=3, channels=(4, 6)),
        batch=lambda n: torch.rand(n, 3, 8, 8).mul(255).round() / 255,
    ),
    "vae, convolutional, flow posterior": Pair(
        model=lambda: ConvVAE(image=(1, 8, 8), z_dim=3, channels=(6, 4), likelihood="bernoulli"),
        guide=lambda model: bent(ConvGuide(image=(1, 8, 8), z_dim=3, channels=(4, 6), flow=(8,)), "network"),
        batch=lambda n: torch.rand(n, 1, 8, 8).round(),
    ),
    "vae, rows": Pair(
        model=lambda: ConvVAE(image=(1, 8, 8), z_dim=3, channels=(6, 4), refine=False, likelihood="bernoulli"),
        guide=lambda model: LSTMGuide(image=(1, 8, 8), z_dim=3, hidden_dim=8),
        batch=lambda n: torch.rand(n, 1, 8, 8).round(),
        exact=False,
    ),
}


class SharedNormal(nn.Module):
    """x ~ N(decoder's output, s^2), one s for all coordinates."""

    def __init__(self, scale):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, loc):
        return dist.Normal(loc, self.log_scale.exp()).to_event(1)


class ExactEncoder(nn.Module):
    """The posterior of probabilistic PCA with orthogonal columns: linear in x, the same variance for all x."""

    def __init__(self, weight, mean, scale):
        super().__init__()
        precision = weight.pow(2).sum(0) / scale**2 + 1
        self.linear = weight.mT / scale**2 / precision[:, None]
        self.mean, self.scale = mean, precision.rsqrt()

    def forward(self, x):
        loc = (x - self.mean) @ self.linear.mT
        raw = self.scale.expm1().log()  # softplus of it is the scale
        return torch.cat([loc, raw.expand_as(loc)], -1)


def ppca(seed=0, dim=6, codes=2, number=4000):
    """Data, the maximum-likelihood pPCA of them, and its mean log-likelihood (Tipping & Bishop 1999, section 3.2)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    x = torch.randn(number, dim, generator=generator) @ mixing.mT + torch.randn(dim, generator=generator)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    noise = eigenvalues[codes:].mean()
    weight = vectors[:, :codes] * (eigenvalues[:codes] - noise).sqrt()
    likelihood = -0.5 * (
        dim * math.log(2 * math.pi) + eigenvalues[:codes].log().sum() + (dim - codes) * noise.log() + dim
    )
    return x, weight, x.mean(0), noise.sqrt(), float(likelihood)


def linear_pair(weight, mean, scale):
    decoder = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        decoder.weight.copy_(weight)
        decoder.bias.copy_(mean)
    model = VAE(StandardNormal(weight.shape[1]), decoder, SharedNormal(float(scale)))
    return model, VAEGuide(ExactEncoder(weight, mean, scale), weight.shape[1])


def test_with_the_exact_posterior_every_sample_gives_log_p(float64):
    x, weight, mean, scale, likelihood = ppca()
    pair = linear_pair(weight, mean, scale)
    covariance = weight @ weight.mT + scale**2 * torch.eye(len(weight))
    exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    for _ in range(3):
        log_p, log_q, _ = log_probs(*pair, x)
        torch.testing.assert_close(sum(log_p.values()) - sum(log_q.values()), exact, rtol=1e-9, atol=1e-9)
    assert float(exact.mean()) == pytest.approx(likelihood, rel=1e-9)


def test_training_a_linear_vae_reaches_the_likelihood_of_pca(float64):
    """From random weights, on the training data: as good as the closed form, and no better beyond the noise."""
    x, _, _, _, likelihood = ppca()
    model = VAE(StandardNormal(2), nn.Linear(2, 6), SharedNormal(1.0))
    guide = VAEGuide(nn.Linear(6, 4), 2)
    optim = adam(model, guide, 1e-2)
    svi = SVI(model, guide, optim, compile=True)
    for step in range(1500):
        if step == 1000:
            optim.param_groups[0]["lr"].fill_(1e-3)
        svi.step(x[torch.randint(len(x), (256,))])
    elbo = elbo_terms(partial(log_probs, model, guide), x.split(4000))[0]["elbo"]
    assert likelihood - 0.02 < elbo < likelihood + 0.01


def test_importance_weighting_closes_the_gap_on_a_linear_pair(float64):
    x, weight, mean, scale, likelihood = ppca(number=500)
    model, _ = linear_pair(weight, mean, scale)
    guide = VAEGuide(ExactEncoder(weight, mean, 1.5 * scale), 2)
    bounds = [
        float(importance_weighted(partial(log_probs, model, guide), x.split(500), samples).bound.mean())
        for samples in (1, 10, 200)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < likelihood + 0.01
    assert bounds[2] == pytest.approx(likelihood, abs=0.02)


def test_the_flow_is_autoregressive_and_its_jacobian_is_counted(float64):
    network = identity_made(5, (16, 16))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    flow = AffineAutoregressive(network)
    z = torch.randn(5)
    jacobian = torch.autograd.functional.jacobian(flow, z)
    assert torch.equal(jacobian, jacobian.tril()) and (jacobian.tril(-1).abs() > 0).any()
    torch.testing.assert_close(flow.log_abs_det_jacobian(z, flow(z)), jacobian.slogdet().logabsdet)
    torch.testing.assert_close(flow.inv(flow(z).clone()), z)


def test_the_flow_prior_is_normalised_and_begins_as_a_standard_normal(float64):
    prior = AutoregressiveFlow(2, (16, 16))
    z = torch.randn(50, 2)
    torch.testing.assert_close(prior().log_prob(z), StandardNormal(2)().log_prob(z))
    for parameter in prior.network.parameters():
        nn.init.normal_(parameter, std=0.25)
    assert not torch.allclose(prior().log_prob(z), StandardNormal(2)().log_prob(z))
    side = torch.linspace(-12, 12, 801)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    density = prior().log_prob(grid).exp().detach()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-3)
    samples = prior().sample((4000,)).detach()
    mean = (grid * density[..., None]).sum((0, 1)) / density.sum()
    torch.testing.assert_close(samples.mean(0), mean, atol=5 * float(samples.std(0).max()) / 4000**0.5, rtol=0)


@pytest.mark.parametrize("place", ["prior", "posterior"])
def test_from_one_seed_a_pair_with_an_untrained_flow_is_the_plain_pair(place):
    """The same weights, the same bound: to the last digit."""
    x = torch.rand(5, 1, 8, 8).round()
    bounds = []
    for flow in (None, (16,)):
        pyro.set_rng_seed(3)
        flows = {place: flow}
        model = ConvVAE((1, 8, 8), 3, (8, 8), likelihood="bernoulli", flow=flows.get("prior"))
        log_p, log_q, _ = log_probs(model, ConvGuide((1, 8, 8), 3, (4, 8), flow=flows.get("posterior")), x)
        bounds.append(sum(log_p.values()) - sum(log_q.values()))
    assert torch.equal(*bounds)


def levels(*shape):
    return (torch.arange(256.0, dtype=torch.get_default_dtype()) / 255).view(*shape)


def test_the_logistic_mixture_sums_to_one_over_the_levels(float64):
    """Narrow and wide components, in the middle, at the edges and beyond them."""
    parameters = 2 * torch.randn(20, 3 * DiscretizedLogisticMixture.per_component(1), 1, 1)
    total = DiscretizedLogisticMixture(parameters, 1).log_prob(levels(256, 1, 1, 1, 1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(20))


def test_independent_logistics_are_the_product_of_their_channels(float64):
    loc, log_scale = torch.randn(3, 1, 1), torch.tensor([-3.0, -1.0, 0.5]).view(3, 1, 1)
    x = levels(256)[torch.tensor([0, 90, 255])].view(3, 1, 1)
    expected = 0.0
    for channel in range(3):
        v, m, s = 2 * x[channel] - 1, loc[channel], log_scale[channel].exp()
        below, above = ((v + side / 255 - m).div(s).sigmoid() for side in (-1, 1))
        expected += ((1.0 if channel == 2 else above) - (0.0 if channel == 0 else below)).log()
    found = DiscretizedLogisticMixture.single(loc, log_scale).log_prob(x)
    torch.testing.assert_close(found, expected.squeeze())


def test_summing_later_channels_out_leaves_the_first(float64):
    """Over all 256 x 256 values of two channels, for some values of the first."""
    parameters = 2 * torch.randn(3 * DiscretizedLogisticMixture.per_component(3), 1, 1)
    first_channel = parameters.unflatten(0, (3, -1))[:, [0, 1, 4]].flatten(0, 1)  # weight, first mean, first scale
    for level in (0, 90, 255):
        x = torch.full((256, 256, 3, 1, 1), level / 255)
        x[..., 1, :, :], x[..., 2, :, :] = levels(256, 1, 1, 1), levels(1, 256, 1, 1)
        total = DiscretizedLogisticMixture(parameters, 3).log_prob(x).exp().sum()
        alone = DiscretizedLogisticMixture(first_channel, 1).log_prob(x[0, 0, :1]).exp()
        torch.testing.assert_close(total, alone)


def test_samples_of_the_logistic_mixture_follow_its_probabilities():
    parameters = torch.randn(2 * DiscretizedLogisticMixture.per_component(1), 1, 1).expand(20_000, -1, -1, -1)
    mixture = DiscretizedLogisticMixture(parameters, 1)
    levels = (mixture.sample().flatten() * 255).round().long()
    probabilities = (
        DiscretizedLogisticMixture(parameters[:256], 1).log_prob((torch.arange(256.0) / 255).view(256, 1, 1, 1)).exp()
    )
    for edge in (64, 128, 192, 255):
        p = float(probabilities[:edge].sum())
        error = math.sqrt(p * (1 - p) / 20_000)
        assert float((levels < edge).double().mean()) == pytest.approx(p, abs=4.5 * error + 1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_the_logit_normal_is_a_density_of_intensities(float64, learned):
    """Its integral over all x that the squeeze allows is one: the Jacobian is right."""
    likelihood = LogitNormal(1, learned_scale=learned)
    if learned:
        likelihood.log_scale.data.fill_(-0.7)
    reach = 0.1 / 1.8
    x = torch.linspace(-reach + 1e-9, 1 + reach - 1e-9, 400_001)
    density = likelihood(torch.full((len(x), 1, 1, 1), 0.8)).log_prob(x.view(-1, 1, 1, 1)).exp()
    assert float(torch.trapezoid(density, x).detach()) == pytest.approx(1, abs=1e-4)


def test_the_order_of_rows_matters_to_the_lstm():
    guide = LSTMGuide((1, 8, 8), z_dim=4, hidden_dim=16)
    x = torch.rand(3, 1, 8, 8)
    locs = [poutine.trace(guide).get_trace(rows).nodes["z"]["fn"].mean for rows in (x, x.flip(2))]
    assert not torch.allclose(*locs, atol=1e-4)


def test_a_flow_posterior_scores_its_own_samples(float64):
    """Through the cache or by inverting, D passes, the same log q."""
    guide = ConvGuide((1, 8, 8), 3, (4, 8), flow=(16,))
    for parameter in guide.network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.rand(4, 1, 8, 8)
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    again = poutine.trace(poutine.condition(guide, data={"z": trace.nodes["z"]["value"].clone()})).get_trace(x)
    again.compute_log_prob()
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], again.nodes["z"]["log_prob"])


def test_the_kl_of_samples_is_the_closed_form(float64):
    """log q - log p at the guide's samples, over 4,000 of them an image, is KL(N(loc, s^2) || N(0, I)) on average."""
    guide = VAEGuide(nn.Linear(6, 4), 2)
    model = VAE(StandardNormal(2), nn.Linear(2, 6), SharedNormal(1.0))
    x = torch.randn(8, 6)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist
    exact = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum(-1)
    log_p, log_q, _ = log_probs(model, guide, x, samples=4000)
    kl = log_q["z"] - log_p["z"]
    assert ((kl.mean(0) - exact).abs() < 5 * kl.std(0) / 4000**0.5).all()


def test_points_in_the_plane_cost_their_entropy_at_the_optimum(float64):
    """The rotated set is a one-dimensional linear VAE with unit noise: -ELBO on fresh points is 4.4473 nats."""
    gaussian = GAUSSIANS["rotated"]
    weight = torch.full((2, 1), math.sqrt(12.0))
    pair = linear_pair(weight, torch.tensor(gaussian.mean), torch.tensor(1.0))
    x = gaussian.draw(100_000, seed=1).double()
    elbo = elbo_terms(partial(log_probs, *pair), x.split(20_000))[0]
    assert -elbo["elbo"] == pytest.approx(gaussian.entropy(), abs=5 * 1.0 / 100_000**0.5)  # deviation of log p: 1 nat
    assert elbo["kl"] == pytest.approx(0.5 * math.log(25), abs=0.02)


def test_what_is_learnt_lies_between_the_mean_image_and_the_entropy_of_binarisation():
    """On the digits: better than a model of each pixel by itself, and above what the drawing of pixels costs."""
    images = load_images("digits")
    probability = images.train[:].mean(0).clamp(1e-3, 1 - 1e-3)
    test = images.test.with_transform(dynamic_binarize).frozen()
    mean_pixels = dist.Bernoulli(probability).to_event(3).log_prob(test[:]).mean()
    entropy = dist.Bernoulli(images.test[:]).to_event(3).entropy().mean()
    sizes = {"image": (1, 8, 8), "z_dim": 16, "hidden_dims": (64,)}
    model, guide = MLPVAE(**sizes), MLPGuide(**sizes)
    svi = SVI(model, guide, adam(model, guide, 3e-3), compile=True)
    train = images.train.with_transform(dynamic_binarize)
    for _ in range(600):
        svi.step(train[torch.randint(len(train), (128,))])
    elbo = elbo_terms(partial(log_probs, model, guide), test.batches(100))[0]["elbo"]
    assert float(mean_pixels) + 1 < elbo < -float(entropy)


@pytest.mark.parametrize("refine", [False, True])
def test_decoders_make_images_of_any_shape_that_can_be_halved(refine):
    decoder = conv_decoder(5, (6, 4, 3), (2, 16, 8), 7, refine)
    assert decoder(torch.randn(2, 3, 5)).shape == (2, 3, 7, 16, 8)
    with pytest.raises(ValueError, match="9x8 images are not multiples of"):
        conv_decoder(5, (6, 4, 3), (2, 9, 8), 7, refine)


def test_encoders_read_sides_that_are_odd():
    assert conv_encoder((2, 9, 7), (4, 5, 6), 3)(torch.rand(4, 2, 9, 7)).shape == (4, 3)


def sharp_pair():
    """Posteriors so narrow that two samples of one image are the same code."""
    model = ConvVAE((1, 8, 8), z_dim=3, channels=(8, 8), likelihood="bernoulli")
    guide = ConvGuide((1, 8, 8), 3, (4, 8))
    with torch.no_grad():
        guide.encoder.net[-1].bias[3:] = -20.0
    return model, guide


def test_interpolations_begin_and_end_with_reconstructions():
    model, guide = sharp_pair()
    x = torch.rand(6, 1, 8, 8).round()
    between = inspect.interpolate(model, guide, x[:3], x[3:], steps=5)
    assert between.shape == (3, 5, 1, 8, 8)
    ends = inspect.reconstruct(model, guide, x)
    torch.testing.assert_close(between[:, 0], ends[:3], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(between[:, -1], ends[3:], atol=1e-4, rtol=1e-3)


def test_the_plane_of_codes_is_that_of_the_coordinates_that_vary_most():
    model, guide = sharp_pair()
    with torch.no_grad():
        guide.encoder.net[-1].weight.mul_(torch.tensor([9.0, 0.01, 5.0, 0, 0, 0])[:, None])
    plane, coordinates = inspect.manifold(model, guide, torch.rand(200, 1, 8, 8).round(), side=4)
    assert plane.shape == (4, 4, 1, 8, 8) and coordinates == (0, 2)
    assert not torch.allclose(plane[0, 0], plane[3, 0]) and not torch.allclose(plane[0, 0], plane[0, 3])


def test_a_traversal_moves_one_coordinate_at_a_time_of_those_that_vary_most():
    model, guide = sharp_pair()
    with torch.no_grad():
        guide.encoder.net[-1].weight.mul_(torch.tensor([9.0, 0.01, 5.0, 0, 0, 0])[:, None])
    x = torch.rand(200, 1, 8, 8).round()
    images, coordinates = inspect.traverse(model, guide, x, units=2, steps=5)
    assert images.shape == (2, 5, 1, 8, 8) and coordinates == [0, 2]
    codes = guide(x).detach()
    for row, unit in zip(images, coordinates, strict=True):
        moved = codes[0].repeat(5, 1)
        moved[:, unit] = codes[:, unit].quantile(torch.linspace(0.025, 0.975, 5))
        torch.testing.assert_close(row, model.decoder(moved).sigmoid(), atol=1e-3, rtol=0)


def test_the_centre_of_a_transformed_distribution_is_its_bases_centre_transformed():
    assert float(inspect.mean_image(LogitNormal(1)(torch.zeros(1, 1, 1, 1))).squeeze()) == pytest.approx(0.5)
