"""Importance-weighted bounds: closed forms, enumeration, and estimators against each other."""

import itertools
import math
import weakref
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import Guide, Model, graphs, step_both, twins

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.infer import SVI, ImportanceWeighted_ELBO, ScaledKL
from pplmodels.infer.elbos.importance_weighted import leave_one_out, renyi
from pplmodels.sites import random_sites

GRADIENTS = ("plain", "stl", "dreg", "gdreg")


class LinearModel(PyroModule):
    """z ~ N(0, I_2), x ~ N(W z + b, I_3 / 4)."""

    def __init__(self):
        super().__init__("linear_model")
        self.net = nn.Linear(2, 3)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)

    def log_prob(self, x):
        weight, bias = self.net.weight, self.net.bias
        covariance = weight @ weight.T + 0.25 * torch.eye(3)
        return dist.MultivariateNormal(bias, covariance).log_prob(x)


class LinearGuide(PyroModule):
    """z ~ N(A x + c, scale)."""

    def __init__(self):
        super().__init__("linear_guide")
        self.net = nn.Linear(3, 2)
        self.log_scale = nn.Parameter(torch.tensor([-0.4, 0.1]))

    def q(self, x):
        return dist.Normal(self.net(x), self.log_scale.exp()).to_event(1)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.q(x))


class LadderModel(PyroModule):
    """z2 ~ N(loc, scale), z1 ~ N(a z2, scale1(z2)), x ~ N(c z1 + z2, 1/2): every prior is learned."""

    def __init__(self, mask=None, scale=1.0):
        super().__init__("ladder_model")
        self.prior = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.layer = nn.Parameter(torch.tensor([0.7, -0.5, 0.2]))
        self.out = nn.Parameter(torch.tensor(0.8))
        self.mask, self.scale = mask, scale

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=True if self.mask is None else self.mask):
            with poutine.scale(scale=self.scale):
                z2 = pyro.sample("z2", dist.Normal(self.prior[0], self.prior[1].exp()))
                loc, log_scale = self.layer[0] * z2, self.layer[1] + self.layer[2] * z2.tanh()
                z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()))
            pyro.sample("x", dist.Normal(self.out * z1 + 0.3 * z2, 0.5), obs=x)


class LadderGuide(PyroModule):
    def __init__(self, mask=None, scale=1.0):
        super().__init__("ladder_guide")
        self.top = nn.Parameter(torch.tensor([0.2, 0.1, -0.3]))
        self.bottom = nn.Parameter(torch.tensor([0.5, 0.3, 0.1, -0.2]))
        self.mask, self.scale = mask, scale

    def forward(self, x):
        with (
            pyro.plate("data", len(x), dim=-1),
            poutine.mask(mask=True if self.mask is None else self.mask),
            poutine.scale(scale=self.scale),
        ):
            z2 = pyro.sample("z2", dist.Normal(self.top[0] * x + self.top[1], self.top[2].exp()))
            loc = self.bottom[0] * x + self.bottom[1] * z2
            pyro.sample("z1", dist.Normal(loc, (self.bottom[2] * z2.tanh() + self.bottom[3]).exp()))


class MixedModel(PyroModule):
    """k ~ Bernoulli(0.3), z ~ N(k, 1), x ~ N(z + k, 1/2)."""

    def __init__(self):
        super().__init__("mixed_model")
        self.loc = nn.Parameter(torch.tensor(0.9))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            z = pyro.sample("z", dist.Normal(self.loc * k, 1.0))
            pyro.sample("x", dist.Normal(z + k, 0.5), obs=x)


class MixedGuide(PyroModule):
    def __init__(self):
        super().__init__("mixed_guide")
        self.k = nn.Parameter(torch.tensor([0.4, -0.2]))
        self.z = nn.Parameter(torch.tensor([0.5, -0.3, -0.4]))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(logits=self.k[0] * x + self.k[1]))
            pyro.sample("z", dist.Normal(self.z[0] * x + self.z[1] * k, self.z[2].exp()))


def parameters(*pair):
    return [p for module in pair for p in module.parameters()]


def engine(model, guide, loss, **options):
    return SVI(model, guide, torch.optim.SGD(parameters(model, guide), lr=0.0), loss, **options)


def estimate(model, guide, loss, x, seed=1):
    """Loss per image and all gradients in one vector."""
    pyro.set_rng_seed(seed)
    value, images, gradients = engine(model, guide, loss).gradients(x)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters(model, guide), strict=True)]
    return value, torch.cat([part.flatten() for part in parts]) / images


def many(model, guide, loss, x, repeats=30):
    """Means of losses and gradients over estimates, their standard errors, and the variance of a gradient."""
    found = [estimate(model, guide, loss, x, seed) for seed in range(repeats)]
    gradients = torch.stack([torch.cat([value[None], gradient]) for value, gradient in found])
    return gradients.mean(0), gradients.std(0) / repeats**0.5, gradients[:, 1:].var(0)


def assert_equal_means(first, second, power=True):
    """Within 4.5 standard errors of the difference, which are small next to the largest gradient."""
    error = (first[1].square() + second[1].square()).sqrt()
    assert ((first[0] - second[0]).abs() <= 4.5 * error + 1e-12).all()
    if power:
        assert float(error[1:].max()) < 0.05 * float(second[0][1:].abs().max())


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


def reference(pair, number, x, alpha=0.0):
    """The plain gradient by autograd of logsumexp, from particles one after another."""
    model, guide = pair
    pyro.set_rng_seed(1)
    weights = []
    for _ in range(number):
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
        p.compute_log_prob()
        q.compute_log_prob()
        terms = [(1, site) for _, site in random_sites(p)] + [(-1, site) for _, site in random_sites(q)]
        weights.append(sum(sign * site["log_prob"] for sign, site in terms))
    weights = torch.stack(weights)
    bound = weights.mean(0) if alpha == 1 else (((1 - alpha) * weights).logsumexp(0) - math.log(number)) / (1 - alpha)
    gradients = torch.autograd.grad(-bound.mean(), parameters(model, guide))
    return -bound.mean().detach(), torch.cat([g.flatten() for g in gradients])


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


COMPILED = {
    "ladder": (LadderModel, LadderGuide, lambda: torch.randn(7)),
    "mixed": (MixedModel, MixedGuide, lambda: torch.randn(7)),
    "vae": (
        lambda: MLPVAE(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        lambda: MLPGuide(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        lambda: torch.rand(7, 1, 4, 4).round(),
    ),
    "batch norm and dropout": (Model, Guide, lambda: torch.randn(7, 4)),
}


@pytest.mark.parametrize(
    ("name", "gradient", "chunk"),
    [
        *(("ladder", gradient, None) for gradient in (*GRADIENTS, "vimco")),
        ("ladder", "gdreg", 2),
        ("mixed", "plain", None),
        ("mixed", "plain", 2),
        ("vae", "plain", 2),
        ("vae", "dreg", None),
        ("batch norm and dropout", "dreg", 1),
    ],
)
def test_compiled_steps_are_the_uncompiled_ones_to_the_bit(name, gradient, chunk):
    model, guide, batch = COMPILED[name]
    both = twins(model, guide, partial(ImportanceWeighted_ELBO, 3, gradient, chunk=chunk), clip_norm=5.0)
    x = batch()
    losses = [float(step_both(both, x, seed=step)) for step in range(3)]
    assert graphs(both) == 1 and len(set(losses)) == 3


class Peak(TorchDispatchMode):
    """The largest number of bytes that results of operations hold at once."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.largest = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.held:
                self.held.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self.largest = max(self.largest, self.now)
        return result

    def _free(self, key, size):
        self.held.discard(key)
        self.now -= size


@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_memory_is_that_of_a_chunk(gradient):
    model, guide = MLPVAE(image=(1, 12, 12), z_dim=2, hidden_dims=(8,)), MLPGuide((1, 12, 12), 2, (8,))
    x, peaks = torch.rand(16, 1, 12, 12).round(), {}
    for number, chunk in ((4, None), (64, None), (64, 4)):
        loss = ImportanceWeighted_ELBO(number, gradient, chunk=chunk, max_plate_nesting=1)
        with Peak() as peak:
            engine(model, guide, loss).gradients(x)
        peaks[number, chunk] = peak.largest
    noise = 64 * 16 * 2 * 4  # bytes of the random numbers of all particles
    assert peaks[64, 4] < 2 * peaks[4, None] + 4 * noise < peaks[64, None] / 4


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_step_in_lower_precision_is_close_to_that_in_full_precision(gradient):
    model, guide, batch = COMPILED["vae"]
    model, guide, x = model(), guide(), batch()
    found = []
    for precision in (None, torch.bfloat16):
        pyro.set_rng_seed(1)
        svi = engine(model, guide, ImportanceWeighted_ELBO(4, gradient, chunk=2), precision=precision, compile=True)
        found.append(float(svi.step(x)))
    assert found[0] != found[1] == pytest.approx(found[0], rel=0.02)


def test_chunks_change_buffers_once_and_see_the_same_dropout(float64):
    """Two particles one after another against autograd through both at once, which keeps all activations."""
    model, guide, x = Model(), Guide(), torch.randn(9, 4)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = estimate(model, guide, ImportanceWeighted_ELBO(2, chunk=1), x)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.load_state_dict(buffers, strict=False)
    torch.testing.assert_close(found, reference((model, guide), 2, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after, dict(model.named_buffers()))
    assert int(after["net.1.num_batches_tracked"]) == 2


@pytest.mark.parametrize("scale", [0.01, torch.tensor(0.01, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_a_scale_of_the_whole_pair_multiplies_the_loss_and_not_the_weights(float64, gradient, scale):
    model, guide, x = LadderModel(), LadderGuide(), torch.randn(4)
    (loss, gradients), (scaled, of_scaled) = (scaled_by(s, model, guide, gradient, x) for s in (1.0, scale))
    assert float(scaled) == pytest.approx(0.01 * float(loss), rel=1e-12)
    torch.testing.assert_close(of_scaled, 0.01 * gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gradient", [*GRADIENTS, "vimco"])
def test_a_scale_of_each_image_multiplies_its_loss(float64, gradient):
    """The terms of the images are found by doubling one of them."""
    model, guide, x = LadderModel(), LadderGuide(), torch.randn(4)
    scale = torch.tensor([3.0, 1.0, 2.0, 0.5])
    run = partial(scaled_by, model=model, guide=guide, gradient=gradient, x=x)
    (whole, *parts), (found,) = (
        [torch.cat([loss[None], gradients]) for loss, gradients in map(run, scales)]
        for scales in ([torch.ones(4), *(1 + torch.eye(4))], [scale])
    )
    expected = sum(s * (part - whole) for s, part in zip(scale, parts, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def scaled_by(scale, model, guide, gradient, x):
    """Loss and gradients, both summed over the images."""
    pyro.set_rng_seed(1)
    pair = [poutine.scale(part, scale=scale) for part in (model, guide)]
    svi = SVI(*pair, torch.optim.SGD(parameters(model, guide), lr=0.0), ImportanceWeighted_ELBO(3, gradient))
    loss, images, gradients = svi.gradients(x)
    return images * loss, torch.cat([part.flatten() for part in gradients])


def test_an_annealed_kl_is_an_exponent_in_the_weight(float64):
    model, guide, x = LinearModel(), LinearGuide(), torch.randn(6, 3)
    found = engine(*(ScaledKL(part, 0.3) for part in (model, guide)), ImportanceWeighted_ELBO(4))
    pyro.set_rng_seed(1)
    value = found.step(x)
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 4, dim=-2):
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
    p.compute_log_prob()
    q.compute_log_prob()
    kl = q.nodes["z"]["log_prob"] - p.nodes["z"]["log_prob"]
    weights = p.nodes["x"]["log_prob"] - 0.3 * kl
    assert float(value) == pytest.approx(-float((weights.logsumexp(0) - math.log(4)).mean().detach()), rel=1e-12)


class Subsampled(PyroModule):
    """One half of a pair of discrete and continuous sites over 8 images, of which a step sees some."""

    def __init__(self, part, index=None):
        super().__init__(type(part).__name__)
        self.part, self.index, self.seen = part, index, []

    def forward(self, x):
        size = None if self.index is not None else 2
        with pyro.plate("images", 8, subsample_size=size, subsample=self.index, dim=-1) as index:
            self.seen.append(index)
            seen = x[index]
            if isinstance(self.part, MixedGuide):
                k = pyro.sample("k", dist.Bernoulli(logits=self.part.k[0] * seen + self.part.k[1]))
                pyro.sample("z", dist.Normal(self.part.z[0] * seen + self.part.z[1] * k, self.part.z[2].exp()))
            else:
                k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
                z = pyro.sample("z", dist.Normal(self.part.loc * k, 1.0))
                pyro.sample("x", dist.Normal(z + k, 0.5), obs=seen)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("gradient", ["plain", "vimco"])
def test_subsampled_images_count_for_all(float64, gradient, chunk):
    """Two of 8 images: four times their loss and gradients, with the same noise."""
    pair, x, index = (MixedModel(), MixedGuide()), torch.linspace(-2, 2, 8), torch.tensor([6, 1])
    loss = ImportanceWeighted_ELBO(3, gradient, chunk=chunk, max_plate_nesting=1)
    value, expected = estimate(*pair, loss, x[index])
    found, gradients = estimate(*(Subsampled(part, index) for part in pair), loss, x)
    assert float(found) == pytest.approx(4 * 2 * float(value), rel=1e-12)  # a total, without a plate "data"
    torch.testing.assert_close(gradients, 4 * 2 * expected, rtol=1e-11, atol=1e-12)


def test_all_chunks_of_a_step_see_the_same_images():
    pair, x = [Subsampled(MixedModel()), Subsampled(MixedGuide())], torch.linspace(-2, 2, 8)
    loss = ImportanceWeighted_ELBO(3, chunk=1, max_plate_nesting=1)
    svi, steps = engine(*pair, loss), []
    for _ in range(4):
        for part in pair:
            part.seen.clear()
        svi.step(x)
        seen = [index for part in pair for index in part.seen]
        assert len(seen) == 12 and all(torch.equal(index, seen[0]) for index in seen)
        steps.append(tuple(seen[0].tolist()))
    assert len(set(steps)) > 1


class Words(PyroModule):
    """Each of three parts of an image has a latent: z ~ N(0, 1), x ~ N(z, 1), with the exact posterior as guide."""

    def __init__(self, is_guide, dims, subsample=None):
        super().__init__(f"words_{is_guide}")
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.is_guide, self.dims, self.subsample = is_guide, dims, subsample

    def forward(self, x):
        seen = x if self.dims[0] < self.dims[1] else x.T
        images = pyro.plate("data", len(x), dim=self.dims[0])
        words = pyro.plate("words", 3, subsample_size=self.subsample, dim=self.dims[1])
        with images, words as index:
            seen = seen.index_select(self.dims[1], index)
            if self.is_guide:
                pyro.sample("z", dist.Normal(seen / 2 + self.shift, 0.5**0.5))
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=seen)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2)])
def test_plates_inside_the_images_are_parts_of_their_weights(float64, dims, gradient):
    x = torch.randn(5, 3)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    pair = [Words(is_guide, dims) for is_guide in (False, True)]
    assert float(engine(*pair, ImportanceWeighted_ELBO(3, gradient)).step(x)) == pytest.approx(-float(evidence.mean()))
    with torch.no_grad():
        pair[1].shift.fill_(0.7)
    joint = float(engine(*pair, ImportanceWeighted_ELBO(2000)).evaluate_loss(x))
    assert joint == pytest.approx(-float(evidence.mean()), abs=0.1)  # weights of all images at once would be off by 1
    part = [Words(is_guide, dims, subsample=1) for is_guide in (False, True)]
    engine(*part, ImportanceWeighted_ELBO(3, gradient, chunk=2)).step(x)


def test_other_plates_functions_and_observations_outside(float64):
    """The same pair as functions in a plate of another name, with one more observation that all images share."""
    model, guide, x = LinearModel(), LinearGuide(), torch.randn(6, 3)

    def function(x):
        pyro.module("function", model)
        pyro.sample("norm", dist.Normal(model.net.bias, 1.0).to_event(1), obs=torch.zeros(3))
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(model.net(z), 0.5).to_event(1), obs=x)

    def guide_function(x):
        pyro.module("guide_function", guide)
        with pyro.plate("points", len(x)):
            pyro.sample("z", guide.q(x))

    norm = dist.Normal(model.net.bias, 1.0).log_prob(torch.zeros(3)).sum()
    for gradient in (*GRADIENTS, "vimco"):
        for chunk in (None, 1):
            loss = ImportanceWeighted_ELBO(3, gradient, chunk=chunk)
            value, expected = estimate(model, guide, loss, x)
            pyro.set_rng_seed(1)
            svi = SVI(function, guide_function, torch.optim.SGD(parameters(model, guide), lr=0.0), loss)
            other, images, gradients = svi.gradients(x)
            assert images == 1  # there is no plate "data", so the loss is a total
            assert float(other) == pytest.approx(6 * float(value) - float(norm.detach()), rel=1e-12)
            (of_norm,) = torch.autograd.grad(norm, model.net.bias, retain_graph=True)
            gradients = torch.cat([g.flatten() for g in gradients])
            gradients[6:9] += of_norm
            torch.testing.assert_close(gradients, 6 * expected, rtol=1e-10, atol=1e-10)


def test_stock_svi_takes_the_same_steps(float64):
    results = []
    for stock in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide, x = LadderModel(), LadderGuide(), torch.randn(5)
        loss = ImportanceWeighted_ELBO(3, "dreg", chunk=2)
        loss.max_plate_nesting = 1
        if stock:
            svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), loss)
        else:
            svi = SVI(model, guide, torch.optim.SGD(parameters(model, guide), lr=1e-2 * 5), loss)
        losses = []
        for step in range(3):
            pyro.set_rng_seed(step)
            losses.append(float(svi.step(x)) / (5 if stock else 1))
        results.append(losses)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)


def refused(model, guide, sentence, loss=None, *args):
    svi = engine(model, guide, loss or ImportanceWeighted_ELBO(2))
    with pytest.raises(ValueError, match=sentence):
        svi.step(*(args or (torch.randn(4),)))


class Program(PyroModule):
    """A function with one parameter."""

    def __init__(self, function):
        super().__init__(function.__name__)
        self.loc, self.function = nn.Parameter(torch.tensor(0.1)), function

    def forward(self, x):
        return self.function(self.loc, x)


def plain_model(loc, x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plain_guide(loc, x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_pairs_without_weights_per_image_are_refused():
    def global_model(loc, x):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def global_guide(loc, x):
        pyro.sample("z", dist.Normal(loc, 1.0))

    def loop_model(loc, x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def loop_guide(loc, x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))

    def summing_model(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("total", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros(1))

    def shared_model(loc, x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def shared_guide(loc, x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def no_guide(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})

    refused(
        Program(global_model), Program(global_guide), 'z of the guide is outside of the plate "data".*leave the data'
    )
    refused(Program(loop_model), Program(loop_guide), 'the plate "data" is a loop')
    refused(Program(summing_model), Program(plain_guide), "total of the model is outside .* depends on latents inside")
    refused(Program(shared_model), Program(shared_guide), "z has 1 values in the plate .* of 4 images")
    with pytest.warns(UserWarning):
        refused(Program(plain_model), Program(no_guide), "z is only a site of the model")


@pytest.mark.parametrize("gradient", ["stl", "dreg", "gdreg"])
def test_discrete_sites_are_refused_where_a_path_is_needed(gradient):
    sentence = f'k of the guide is not reparameterized, but gradient="{gradient}" needs the path'
    refused(MixedModel(), MixedGuide(), sentence, ImportanceWeighted_ELBO(2, gradient))


def test_gdreg_refuses_priors_without_noise():
    def gamma_model(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(loc.exp(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def gamma_guide(loc, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(loc, 1.0))

    sentence = "needs the noise of a sample of z of the model.*not for Gamma"
    refused(Program(gamma_model), Program(gamma_guide), sentence, ImportanceWeighted_ELBO(2, "gdreg"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_particles": 0}, "num_particles must be a whole number of at least 1, not 0"),
        ({"num_particles": 2.5}, "num_particles must be a whole number"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, not 0"),
        ({"gradient": "iwae"}, "gradient must be one of plain, stl, dreg, gdreg, vimco, not 'iwae'"),
        ({"alpha": math.inf}, "alpha must be a finite number"),
        ({"gradient": "vimco", "num_particles": 1}, "num_particles must be at least 2"),
    ],
)
def test_arguments_are_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImportanceWeighted_ELBO(**arguments)
