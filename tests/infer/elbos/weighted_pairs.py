"""Pairs for tests of importance-weighted bounds, and their estimates."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn

from pplmodels.infer import SVI
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
