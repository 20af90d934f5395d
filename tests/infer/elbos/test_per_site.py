"""One gradient estimator per site: all of them against enumeration, and what is refused."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule

from pplmodels.distributions import Masked
from pplmodels.infer import SVI, PerSite_ELBO
from pplmodels.infer.traces import local_params

DISCRETE = ("reinforce", "rloo", "enum", "mvd")
OBSERVED = 1.3


def elbo(estimators=None, **settings):
    """One particle, or two where a leave-one-out mean needs them."""
    several = "rloo" in (estimators or {}).values()
    return PerSite_ELBO(estimators=estimators, num_particles=2 if several else 1, max_plate_nesting=1, **settings)


def estimates(model, guide, loss, args, repeats, images, parameters):
    """Bound and gradient of ``parameters`` per image, flattened, of ``repeats`` estimates ``(repeats, 1 + P)``."""
    svi = SVI(model, guide, torch.optim.SGD(parameters, lr=0.0), loss)
    found = []
    for _ in range(repeats):
        value, _, gradients = svi.gradients(*args)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        found.append(-torch.cat([value.reshape(1), *(g.flatten() / images for g in flat)]))
    return torch.stack(found)


def exactly(bound, parameters):
    """Bound and gradient, flattened."""
    gradients = torch.autograd.grad(bound, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([bound.detach().reshape(1), *(g.flatten() for g in gradients)])


def assert_mean(found, wanted, power=5.0):
    """The means are within 4.5 standard errors, of which the largest entry of the gradient is ``power``."""
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - wanted).abs() <= 4.5 * error + 1e-9).all(), (found.mean(0), wanted, error)
    assert (wanted[1:].abs() > power * error[1:]).any()


class StepsModel(PyroModule):
    """Three binary variables, whose sum is observed with noise."""

    def __init__(self):
        super().__init__("steps_model")
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, n):
        with pyro.plate("data", n):
            last, total = torch.zeros(n), torch.zeros(n)
            for t in range(3):
                last = pyro.sample(f"z{t}", dist.Bernoulli(logits=0.4 - 0.9 * last))
                total = total + self.weight * (t + 1) * last
            pyro.sample("x", dist.Normal(total, 1.0), obs=torch.full((n,), OBSERVED))


class StepsGuide(PyroModule):
    """Each variable depends on those before it."""

    def __init__(self):
        super().__init__("steps_guide")
        self.logits = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.slope = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, n):
        with pyro.plate("data", n):
            before = torch.zeros(n)
            for t in range(3):
                before = before + pyro.sample(f"z{t}", dist.Bernoulli(logits=self.logits[t] + self.slope * before))


def log_joint(program, values, *args):
    """The log-probability of each image's latent and observed values."""
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*args)
    trace.compute_log_prob()
    return sum(s["log_prob"] for s in trace.nodes.values() if s["type"] == "sample" and s["name"] != "data")


def enumerated(model, guide, supports, *args):
    """The bound of one image, as a sum over all values of its sites."""
    bound = 0.0
    for picked in itertools.product(*supports.values()):
        values = {name: torch.tensor([value]) for name, value in zip(supports, picked, strict=True)}
        log_q = log_joint(guide, values, *args).sum()
        bound = bound + log_q.exp() * (log_joint(model, values, *args).sum() - log_q)
    return bound


@pytest.mark.parametrize("estimators", [*itertools.product(DISCRETE, repeat=3)], ids="-".join)
def test_three_dependent_steps_under_all_combinations(float64, estimators):
    """Mean bound and gradient of 30 x 400 images, within 4.5 standard errors of the sum over the 8 outcomes."""
    pyro.set_rng_seed(0)
    model, guide = StepsModel(), StepsGuide()
    parameters = [*model.parameters(), *guide.parameters()]
    with local_params():
        wanted = exactly(enumerated(model, guide, dict.fromkeys(("z0", "z1", "z2"), (0.0, 1.0)), 1), parameters)
    loss = elbo({f"z{t}": estimator for t, estimator in enumerate(estimators)})
    if set(estimators) == {"enum"}:
        found = estimates(model, guide, loss, (3,), 1, 3, parameters)
        torch.testing.assert_close(found[0], wanted, rtol=1e-10, atol=1e-10)
    else:
        assert_mean(estimates(model, guide, loss, (400,), 30, 400, parameters), wanted)


class MixtureModel(PyroModule):
    """A mixture of three normals, with a scale of its own in each image."""

    def __init__(self):
        super().__init__("mixture_model")
        self.loc = torch.nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))

    def forward(self, n):
        with pyro.plate("data", n):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
            w = pyro.sample("w", dist.Normal(self.loc[k], 0.7))
            pyro.sample("x", dist.Normal(w, 0.5), obs=torch.full((n,), OBSERVED))


class MixtureGuide(PyroModule):
    """The mean depends on the component, so that summing out needs a sample of it per component."""

    def __init__(self):
        super().__init__("mixture_guide")
        self.logits = torch.nn.Parameter(torch.tensor([0.2, -0.1, 0.4]))
        self.loc = torch.nn.Parameter(torch.tensor([0.1, 0.6, 1.2]))
        self.log_scale = torch.nn.Parameter(torch.tensor(-0.8))

    def forward(self, n):
        with pyro.plate("data", n):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            pyro.sample("w", dist.Normal(self.loc[k], self.log_scale.exp()))


def expected_normal(mean, scale, loc, log_scale):
    """E log N(w; mean, scale) over w ~ N(loc, exp(log_scale))."""
    return dist.Normal(mean, scale).log_prob(loc) - (2 * log_scale).exp() / (2 * scale**2)


def mixture_bound(model, guide):
    log_q = guide.logits.log_softmax(0)
    entropy = guide.log_scale + 0.5 * math.log(2 * math.pi * math.e)
    terms = torch.tensor([0.5, 0.3, 0.2]).log() - log_q + entropy
    terms = terms + expected_normal(model.loc, 0.7, guide.loc, guide.log_scale)
    terms = terms + expected_normal(torch.tensor(OBSERVED), 0.5, guide.loc, guide.log_scale)
    return (log_q.exp() * terms).sum()


@pytest.mark.parametrize("of_w", ["reparam", "reinforce", "rloo", "mvd"])
@pytest.mark.parametrize("of_k", DISCRETE)
def test_a_categorical_mixture(float64, of_k, of_w):
    """Mean bound and gradient of 40 x 1,000 images, within 4.5 standard errors of the closed form."""
    pyro.set_rng_seed(1)
    model, guide = MixtureModel(), MixtureGuide()
    parameters = [*model.parameters(), *guide.parameters()]
    wanted = exactly(mixture_bound(model, guide), parameters)
    assert_mean(estimates(model, guide, elbo({"k": of_k, "w": of_w}), (1000,), 40, 1000, parameters), wanted)


class CountsModel(PyroModule):
    """A Poisson number and a normal vector, whose components are one event."""

    def __init__(self):
        super().__init__("counts_model")
        self.slope = torch.nn.Parameter(torch.tensor(0.4))

    def forward(self, n):
        with pyro.plate("data", n):
            k = pyro.sample("k", dist.Poisson(torch.tensor(1.5)))
            w = pyro.sample("w", dist.Normal(torch.tensor([0.2, -0.3]), 1.0).to_event(1))
            mean = self.slope * k + w[..., 0] * w[..., 1] + w[..., 0]
            pyro.sample("x", dist.Normal(mean, 0.8), obs=torch.full((n,), OBSERVED))


class CountsGuide(PyroModule):
    def __init__(self):
        super().__init__("counts_guide")
        self.log_rate = torch.nn.Parameter(torch.tensor(0.3))
        self.loc = torch.nn.Parameter(torch.tensor([0.3, -0.4]))
        self.log_scale = torch.nn.Parameter(torch.tensor([-0.5, -0.2]))

    def forward(self, n):
        with pyro.plate("data", n):
            k = pyro.sample("k", dist.Poisson(self.log_rate.exp()))
            loc = self.loc + 0.1 * k[..., None] / (1 + k[..., None])
            pyro.sample("w", dist.Normal(loc, self.log_scale.exp()).to_event(1))


def test_poisson_and_normal_vectors_by_quadrature(float64):
    """mvd of both sites, and of each with the other sampled, against a sum over k and Gauss-Hermite quadrature."""
    pyro.set_rng_seed(2)
    model, guide = CountsModel(), CountsGuide()
    parameters = [*model.parameters(), *guide.parameters()]
    nodes, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(12))
    weights = (weights[:, None] * weights / (2 * math.pi)).flatten()
    grid = torch.cartesian_prod(nodes, nodes)
    bound = 0.0
    for k in range(25):
        loc = guide.loc + 0.1 * k / (1 + k)
        values = {"k": torch.full((len(grid),), float(k)), "w": loc + guide.log_scale.exp() * grid}
        log_k = dist.Poisson(guide.log_rate.exp()).log_prob(torch.tensor(float(k)))
        log_w = log_joint(model, values, len(grid)) - log_joint(guide, values, len(grid))
        bound = bound + log_k.exp() * (weights * log_w).sum()
    wanted = exactly(bound, parameters)
    for estimators in ({"k": "mvd", "w": "mvd"}, {"k": "mvd"}, {"w": "mvd"}, {"k": "rloo", "w": "mvd"}):
        assert_mean(estimates(model, guide, elbo(estimators), (1000,), 40, 1000, parameters), wanted)


class PlatesModel(PyroModule):
    """A global choice, and one per group and per entry, in plates that subsample."""

    def __init__(self, x):
        super().__init__("plates_model")
        self.x = x
        self.loc = torch.nn.Parameter(torch.tensor([0.3, 1.1]))

    def forward(self):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.4)))
        with pyro.plate("groups", 3, dim=-2), poutine.scale(scale=0.7):
            b = pyro.sample("b", dist.Bernoulli(logits=0.5 - a))
            with pyro.plate("entries", 4, subsample_size=self.size, dim=-1) as index:
                c = pyro.sample("c", dist.Categorical(logits=torch.stack([a + 0 * b, b, 0.5 * b], -1)))
                mask = self.x[:, index] > -1
                mean = self.loc[0] * a + self.loc[1] * b + 0.3 * c
                pyro.sample("x", dist.Normal(mean, 1.0).mask(mask), obs=self.x[:, index])

    size: int = 4


class PlatesGuide(PyroModule):
    def __init__(self, size):
        super().__init__("plates_guide")
        self.size = size
        self.logits = torch.nn.Parameter(torch.tensor([0.2, -0.4, 0.5, -0.3]))

    def forward(self):
        q = self.logits
        a = pyro.sample("a", dist.Bernoulli(logits=q[0]))
        with pyro.plate("groups", 3, dim=-2), poutine.scale(scale=0.7):
            b = pyro.sample("b", dist.Bernoulli(logits=q[1] + 0.5 * a))
            with pyro.plate("entries", 4, subsample_size=self.size, dim=-1):
                logits = torch.stack([0 * a * b, q[2] + a + 0 * b, q[3] + b + 0 * a], -1)
                pyro.sample("c", dist.Categorical(logits=logits))


def plates_bound(model, guide):
    """The full bound: a sum over a, within it over b in each group, and within these over c in each entry."""
    q, total = guide.logits, 0.0
    for a in (0.0, 1.0):
        q_a = dist.Bernoulli(logits=q[0]).log_prob(torch.tensor(a))
        value = dist.Bernoulli(torch.tensor(0.4)).log_prob(torch.tensor(a)) - q_a
        for row in model.x:
            for b in (0.0, 1.0):
                q_b = dist.Bernoulli(logits=q[1] + 0.5 * a).log_prob(torch.tensor(b))
                inner = dist.Bernoulli(logits=torch.tensor(0.5 - a)).log_prob(torch.tensor(b)) - q_b
                q_c = torch.stack([0 * q[2], q[2] + a, q[3] + b]).log_softmax(0)
                p_c = torch.tensor([a, b, 0.5 * b]).log_softmax(0)
                mean = model.loc[0] * a + model.loc[1] * b + 0.3 * torch.arange(3)
                log_x = dist.Normal(mean, 1.0).log_prob(row[:, None]) * (row[:, None] > -1)
                inner = inner + (q_c.exp() * (p_c - q_c + log_x)).sum()
                value = value + 0.7 * q_b.exp() * inner
        total = total + q_a.exp() * value
    return total


@pytest.mark.parametrize("size", [4, 2], ids=["all entries", "subsampled"])
@pytest.mark.parametrize(
    "estimators",
    [
        dict.fromkeys("abc", "reinforce"),
        dict.fromkeys("abc", "rloo"),
        dict.fromkeys("abc", "mvd"),
        dict.fromkeys("abc", "enum"),
        {"a": "mvd", "b": "enum", "c": "reinforce"},
        {"a": "reinforce", "b": "mvd", "c": "enum"},
        {"a": "enum", "b": "rloo", "c": "mvd"},
        {"a": "rloo", "b": "enum", "c": "enum"},
    ],
    ids=lambda e: "-".join(e.values()),
)
def test_nested_plates_with_scales_masks_and_subsamples(float64, estimators, size):
    """Mean bound and gradient of 30 x 100 samples, within 4.5 standard errors of the sum over all values."""
    pyro.set_rng_seed(3)
    x = torch.tensor([[0.3, 1.4, -0.2, 0.9], [2.0, -1.5, 0.1, 1.2], [0.7, 0.2, 1.9, -2.0]])
    model, guide = PlatesModel(x), PlatesGuide(size)
    model.size = size
    parameters = [*model.parameters(), *guide.parameters()]
    wanted = exactly(plates_bound(model, guide), parameters)
    loss = PerSite_ELBO(estimators=estimators, num_particles=100, max_plate_nesting=2)
    found = estimates(model, guide, loss, (), 30, 1, parameters)
    assert_mean(found, wanted)


@pytest.mark.parametrize("estimators", [dict.fromkeys("abc", "enum"), {"a": "mvd", "b": "mvd", "c": "enum"}])
def test_nested_plates_without_particles(float64, estimators):
    """One sample: enumeration is exact, and the mean of 400 other gradients is within 4.5 standard errors."""
    pyro.set_rng_seed(7)
    x = torch.tensor([[0.3, 1.4, -0.2, 0.9], [2.0, -1.5, 0.1, 1.2], [0.7, 0.2, 1.9, -2.0]])
    model, guide = PlatesModel(x), PlatesGuide(4)
    parameters = [*model.parameters(), *guide.parameters()]
    wanted = exactly(plates_bound(model, guide), parameters)
    if set(estimators.values()) == {"enum"}:
        found = estimates(model, guide, PerSite_ELBO(estimators=estimators), (), 1, 1, parameters)
        torch.testing.assert_close(found[0], wanted, rtol=1e-10, atol=1e-10)
    else:
        assert_mean(estimates(model, guide, PerSite_ELBO(estimators=estimators), (), 400, 1, parameters), wanted)


def refused(estimator, build, **settings):
    """The sentence about a guide with one site z."""

    def program():
        with pyro.plate("data", 2):
            pyro.sample("z", build())

    with pytest.raises(ValueError) as caught:
        PerSite_ELBO(estimators={"z": estimator}, **settings).loss(program, program)
    return str(caught.value)


LOGITS = torch.zeros(2)
REFUSALS = {
    "unknown": ("arm", lambda: dist.Bernoulli(logits=LOGITS), "site z has the estimator 'arm', which is not one of"),
    "reparam": ("reparam", lambda: dist.Bernoulli(logits=LOGITS), "reparam: Bernoulli has no reparameterized samples"),
    "one particle": ("rloo", lambda: dist.Bernoulli(logits=LOGITS), "rloo: it needs several vectorized particles"),
    "enum, normal": ("enum", lambda: dist.Normal(LOGITS, 1.0), "enum: Normal has no finite support"),
    "enum, poisson": ("enum", lambda: dist.Poisson(LOGITS.exp()), "enum: Poisson has no finite support"),
    "enum, event": (
        "enum",
        lambda: dist.Bernoulli(logits=torch.zeros(2, 3)).to_event(1),
        "enum: the values of independent components",
    ),
    "mvd": ("mvd", lambda: dist.Gamma(LOGITS.exp(), 1.0), "mvd: measure-valued derivatives are implemented for"),
    "score of a point": ("reinforce", lambda: dist.Delta(LOGITS), "reinforce: the density of a Delta has no score"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_an_estimator_cannot_do_is_refused_by_name(name):
    estimator, build, sentence = REFUSALS[name]
    assert sentence in refused(estimator, build)


def test_an_override_of_no_site_is_refused():
    with pytest.raises(ValueError, match="estimators has z_press, but there is no such site"):
        PerSite_ELBO(estimators={"z_press": "enum"}).loss(StepsModel(), StepsGuide(), 2)


def sum_of_a_plate():
    """A likelihood of the sum over a plate, which depends on the values of all entries together."""
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)))
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=z.dim() > 1), 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize("marks", [{}, {"choice": True}], ids=["rows", "outcomes"])
@pytest.mark.parametrize("estimator", ["enum", "mvd"])
def test_a_term_of_all_entries_of_a_plate_is_refused(estimator, marks):
    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=torch.zeros(3, requires_grad=True)), infer=marks)

    loss = PerSite_ELBO(estimators={"z": estimator})
    with pytest.raises(ValueError, match=r"site x depends on z, .* outside of the plate data"):
        loss.loss_and_grads(sum_of_a_plate, guide)


@pytest.mark.parametrize("marks", [{}, {"choice": True}], ids=["rows", "outcomes"])
def test_a_plate_that_only_the_model_has(float64, marks):
    """Two pixels per image in a plate of the model: enum asks for the number of plates, and mvd finds it."""
    x = torch.tensor([[0.3, 1.2], [0.8, -0.4]])

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            with pyro.plate("pixels", 2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Guide(PyroModule):
        def __init__(self):
            super().__init__("guide")
            self.logit = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self):
            with pyro.plate("data", 2):
                pyro.sample("z", dist.Bernoulli(logits=self.logit), infer=marks)

    guide = Guide()
    values = torch.tensor([0.0, 1.0])
    log_q = dist.Bernoulli(logits=guide.logit).log_prob(values)
    log_x = dist.Normal(values, 1.0).log_prob(x[..., None]).sum((0, 1))
    wanted = exactly((log_q.exp() * (2 * (dist.Bernoulli(0.4).log_prob(values) - log_q) + log_x)).sum(), [guide.logit])
    with pytest.raises(ValueError, match="max_plate_nesting"):
        PerSite_ELBO(estimators={"z": "enum"}).loss(model, guide)
    enum = PerSite_ELBO(estimators={"z": "enum"}, max_plate_nesting=2)
    found = estimates(model, guide, enum, (), 1, 1, [guide.logit])[0]
    torch.testing.assert_close(found, wanted / torch.tensor([2.0, 1.0]), rtol=1e-10, atol=1e-10)
    found = estimates(model, guide, PerSite_ELBO(estimators={"z": "mvd"}), (), 1, 1, [guide.logit])[0]
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-10, atol=1e-10)


def test_the_guide_and_handlers_around_it_choose():
    """infer states the estimator, poutine.infer_config around the guide changes it, and the argument overrides both."""
    model, guide = StepsModel(), StepsGuide()
    enum = poutine.infer_config(guide, lambda site: {"estimator": "enum"} if site["name"] != "data" else {})
    exact = [PerSite_ELBO().loss(model, enum, 2) for _ in range(2)]
    assert exact[0] == exact[1]
    every = {f"z{t}": "reinforce" for t in range(3)}
    assert PerSite_ELBO(estimators=every).loss(model, enum, 2) != PerSite_ELBO(estimators=every).loss(model, enum, 2)


@pytest.mark.parametrize("estimators", [("reinforce", "rloo", "enum"), ("mvd", "enum", "reinforce"), ("mvd",) * 3])
def test_a_compiled_step_is_the_uncompiled_one(estimators):
    """Losses and gradients of five steps with clipping, from the same seeds, bit for bit."""
    found = []
    for compile in (False, True):
        pyro.set_rng_seed(4)
        model, guide = StepsModel(), StepsGuide()
        parameters = [*model.parameters(), *guide.parameters()]
        loss = elbo({f"z{t}": estimator for t, estimator in enumerate(estimators)})
        svi = SVI(model, guide, torch.optim.Adam(parameters, 0.05), loss, clip_norm=0.5, compile=compile)
        found.append([])
        for step in range(5):
            pyro.set_rng_seed(step)
            found[-1] += [svi.step(7), *(p.grad.clone() for p in parameters)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_trains_under_stock_svi():
    model, guide = StepsModel(), StepsGuide()
    loss = elbo({"z0": "mvd", "z1": "enum", "z2": "rloo"})
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss)
    losses = [svi.step(50) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_poisson_after_a_stop(float64):
    """A sampled site on the path of a summed-out stop, against sampling both: within 4.5 joint standard errors."""
    pyro.set_rng_seed(5)

    class Guide(PyroModule):
        def __init__(self):
            super().__init__("poisson_guide")
            self.logit, self.log_rate = (torch.nn.Parameter(torch.tensor(v)) for v in (0.3, 0.4))

        def forward(self, n):
            with pyro.plate("data", n):
                there = pyro.sample("there", dist.Bernoulli(logits=self.logit.expand(n)), infer={"stop": True})
                pyro.sample("k", Masked(dist.Poisson(self.log_rate.exp().expand(n)), there > 0))

    def model(n):
        with pyro.plate("data", n):
            there = pyro.sample("there", dist.Bernoulli(torch.full((n,), 0.3)))
            k = pyro.sample("k", dist.Poisson(torch.full((n,), 1.5)).mask(there > 0))
            pyro.sample("x", dist.Normal(there * k, 1.0), obs=torch.full((n,), 4.0))

    guide = Guide()
    parameters = list(guide.parameters())
    wanted = torch.zeros(())
    for there, q in ((0.0, 1 - guide.logit.sigmoid()), (1.0, guide.logit.sigmoid())):
        value = dist.Bernoulli(0.3).log_prob(torch.tensor(there)) - q.log()
        counts = torch.arange(40.0)
        q_k = dist.Poisson(guide.log_rate.exp()).log_prob(counts)
        log_x = dist.Normal(there * counts, 1.0).log_prob(torch.tensor(4.0))
        inner = (q_k.exp() * (log_x + there * (dist.Poisson(1.5).log_prob(counts) - q_k))).sum()
        wanted = wanted + q * (value + inner)
    wanted = exactly(wanted, parameters)
    for of_k in ("reinforce", "rloo", "mvd"):
        loss = elbo({"there": "enum", "k": of_k})
        assert_mean(estimates(model, guide, loss, (1000,), 40, 1000, parameters), wanted)


def test_rows_share_what_does_not_depend_on_them(float64):
    """Terms that the value of a summed-out site does not change are equal in all rows, so enumeration adds no noise."""
    pyro.set_rng_seed(6)

    def model(n):
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Bernoulli(torch.full((n,), 0.4)))
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            pyro.sample("w", dist.Gamma(2.0, 1.0 + k))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full((n,), 0.7))

    class Guide(PyroModule):
        def __init__(self):
            super().__init__("guide")
            self.logit = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self, n):
            with pyro.plate("data", n):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
                pyro.sample("w", dist.Gamma(2.0, 1.0 + k))
                pyro.sample("z", dist.Bernoulli(logits=self.logit))

    guide = Guide()
    for estimator in ("enum", "mvd"):
        found = estimates(model, guide, elbo({"z": estimator}), (5,), 4, 5, list(guide.parameters()))
        torch.testing.assert_close(found[:, 1], found[:1, 1].expand(4), rtol=1e-10, atol=1e-12)
    assert estimates(model, guide, elbo({}), (5,), 4, 5, list(guide.parameters()))[:, 1].std() > 0.01
