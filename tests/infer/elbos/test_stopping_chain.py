"""Summing a chain of stops out: against enumeration, against sampling, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.nn import PyroModule

from pplmodels.distributions import Masked
from pplmodels.infer import SVI, PerSite_ELBO
from pplmodels.infer.elbos.stopping_chain import StoppingChain, trace_path
from pplmodels.metrics import gradient_variance

LOGITS, OBSERVED = (0.3, -0.2, 0.5), 1.7
STOPS = {"go": "enum"}


class Model(PyroModule):
    """n = 0..3 steps, each adding a normal height if it is reached; x ~ N(their sum, 0.5)."""

    def __init__(self):
        super().__init__("stops_model")
        self.height = torch.nn.Parameter(torch.tensor(1.1))

    def forward(self, n):
        with pyro.plate("data", n):
            present, total = torch.ones(n), torch.zeros(n)
            for t, p in enumerate((0.4, 0.3, 0.2), start=1):
                present = pyro.sample(f"go_{t}", dist.Bernoulli(p * present))
                step = pyro.sample(f"height_{t}", dist.Normal(self.height, 0.3).mask(present > 0))
                total = total + present * step
            pyro.sample("x", dist.Normal(total, 0.5), obs=torch.full((n,), OBSERVED))


class Guide(PyroModule):
    """Each step knows the height of the last; ``scale`` 0 makes the heights certain, ``fault`` breaks a rule."""

    def __init__(self, scale=0.2, fault=None):
        super().__init__("stops_guide")
        self.logits = torch.nn.Parameter(torch.tensor(LOGITS))
        self.height = torch.nn.Parameter(torch.tensor([0.8, 0.9, 0.7]))
        self.scale, self.fault = scale, fault

    def forward(self, n):
        infer = {} if self.fault == "no mark" else {"stop": True}
        with pyro.plate("data", n):
            present, last = torch.ones(n), torch.zeros(n)
            for t in range(3):
                p = (self.logits[t] + 0.4 * last).sigmoid() * (1 if self.fault == "goes on" else present)
                present = pyro.sample(f"go_{t + 1}", dist.Bernoulli(p), infer=infer)
                loc = self.height[t] + 0.3 * last + (present if self.fault == "reads the stop" else 0)
                seen = torch.ones(n).bool() if self.fault == "no mask" else present > 0
                height = dist.Normal(loc, self.scale) if self.scale else dist.Delta(loc)
                last = present * pyro.sample(f"height_{t + 1}", height.mask(seen))


def enumerated(model, guide):
    """The bound of one image as a sum over the four counts, where the heights are certain."""
    bound = 0.0
    for count in range(4):
        values = {f"go_{t}": torch.full((1,), float(t <= count)) for t in (1, 2, 3)}
        trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(1)
        trace.compute_log_prob()
        log_q = sum(trace.nodes[name]["log_prob"].sum() for name in values)
        values |= {f"height_{t}": trace.nodes[f"height_{t}"]["value"] for t in (1, 2, 3)}
        replayed = poutine.trace(poutine.condition(model, data=values)).get_trace(1)
        bound = bound + log_q.exp() * (replayed.log_prob_sum() - log_q)
    return bound


def svi(model, guide, loss):
    return SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), loss)


def estimates(model, guide, loss, images, repeats):
    """Bounds per image, and gradients per image flattened, of ``repeats`` steps."""
    engine = svi(model, guide, loss)
    bounds, gradients = [], []
    for _ in range(repeats):
        bounds.append(-engine.step(images))
        gradients.append(torch.cat([p.grad.flatten() for p in engine.parameters()]) / images)
    return torch.stack(bounds), torch.stack(gradients)


def test_with_certain_heights_bound_and_gradient_are_exact(float64):
    model, guide = Model(), Guide(scale=0)
    exact = enumerated(model, guide)
    wanted = torch.autograd.grad(exact, [model.height, guide.logits, guide.height])
    bounds, gradients = estimates(model, guide, PerSite_ELBO(estimators=STOPS), 5, 1)
    torch.testing.assert_close(bounds[0], exact.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(-gradients[0], torch.cat([g.flatten() for g in wanted]), rtol=1e-9, atol=1e-12)


def test_means_are_those_of_sampling_and_variances_smaller(float64):
    """Bound and gradient over 40 x 10,000 paths, within 4.5 joint standard errors of those over as many samples."""
    model, guide = Model(), Guide()
    sampled = estimates(model, guide, TraceGraph_ELBO(), 10_000, 40)
    summed = estimates(model, guide, PerSite_ELBO(estimators=STOPS), 10_000, 40)
    for one, other in zip(sampled, summed, strict=True):
        error = ((one.var(0) + other.var(0)) / 40).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()
    assert (sampled[1].mean(0).abs() > 10 * sampled[1].std(0) / 40**0.5).all()  # every gradient is far from 0
    assert (summed[1].var(0) < sampled[1].var(0)).all()
    by_name = {}
    for loss in (TraceGraph_ELBO(), PerSite_ELBO(estimators=STOPS)):
        by_name[type(loss)] = gradient_variance(svi(model, guide, loss), (100,), [guide.logits], repeats=200)
    assert by_name[PerSite_ELBO] < 0.5 * by_name[TraceGraph_ELBO]


class Picky(PyroModule):
    """A guide whose height depends on a choice."""

    def __init__(self):
        super().__init__("picky_guide")
        self.go = torch.nn.Parameter(torch.tensor(0.4))
        self.kind = torch.nn.Parameter(torch.tensor([0.2, -0.5, 0.3]))
        self.height = torch.nn.Parameter(torch.tensor([0.3, 1.2, 2.2]))

    def forward(self, n):
        with pyro.plate("data", n):
            there = pyro.sample("go_1", dist.Bernoulli(logits=self.go.expand(n)), infer={"stop": True}) > 0
            q_kind = dist.Categorical(logits=self.kind.expand(n, 3))
            kind = pyro.sample("kind_1", Masked(q_kind, there), infer={"choice": True})
            pyro.sample("height_1", dist.Normal(self.height[kind], 0.2).mask(there))


class Kinds(PyroModule):
    """One step at most; of which kind it is decides how high."""

    def __init__(self):
        super().__init__("kinds_model")
        self.height = torch.nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, n):
        with pyro.plate("data", n):
            present = pyro.sample("go_1", dist.Bernoulli(torch.full((n,), 0.4)))
            kind = pyro.sample("kind_1", dist.Categorical(torch.ones(n, 3)).mask(present > 0))
            height = pyro.sample("height_1", dist.Normal(self.height[kind], 0.3).mask(present > 0))
            pyro.sample("x", dist.Normal(present * height, 0.5), obs=torch.full((n,), OBSERVED))


def test_a_sampled_choice_may_be_depended_on(float64):
    """Bound and gradient over 40 x 5,000 paths, within 4.5 standard errors of the closed form's."""
    model, guide = Kinds(), Picky()

    def expected(loc, scale):
        """log N(h; loc, scale) of a height h of the guide's, for each kind."""
        return dist.Normal(loc, scale).log_prob(guide.height) - 0.2**2 / (2 * scale**2)

    q, log_pi = dist.Bernoulli(logits=guide.go), guide.kind.log_softmax(0)
    there, log_p = torch.tensor([0.0, 1.0]), dist.Bernoulli(0.4)
    chain = log_p.log_prob(there) - q.log_prob(there)
    entropy = torch.tensor(0.2).log() + math.log(2 * math.pi * math.e) / 2
    worth = expected(model.height, 0.3) + entropy + expected(torch.tensor(OBSERVED), 0.5) - math.log(3) - log_pi
    nothing = dist.Normal(0.0, 0.5).log_prob(torch.tensor(OBSERVED))
    exact = q.log_prob(there).exp() @ (chain + torch.stack([nothing, log_pi.exp() @ worth]))
    wanted = torch.autograd.grad(exact, [model.height, guide.go, guide.kind, guide.height])
    wanted = torch.cat([exact.detach()[None], *(g.reshape(-1) for g in wanted)])
    bounds, gradients = estimates(model, guide, PerSite_ELBO(estimators=STOPS), 5000, 40)
    found = torch.cat([bounds[:, None], -gradients], 1)
    error = found.std(0) / 40**0.5
    assert ((found.mean(0) - wanted).abs() < 4.5 * error).all()
    assert (wanted.abs() > 9 * error).all()


def test_the_outcomes_are_a_distribution(float64):
    stops = StoppingChain(trace_path(Guide(), 4))
    torch.testing.assert_close(stops.probs.sum(0), torch.ones(4))
    torch.testing.assert_close(stops.log_prob, stops.probs.log())
    torch.testing.assert_close(stops.reached(2), stops.go_on[:2].prod(0))
    assert [code[:, 0].tolist() for code in stops.codes] == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_scales_and_masks_of_handlers_count(float64):
    """Scaled log-probabilities scale the bound; an image that is masked on both sides adds nothing."""
    model, guide = Model(), Guide(scale=0)
    exact = -PerSite_ELBO(estimators=STOPS).loss(model, guide, 1)
    doubled = [poutine.scale(module, scale=2.0) for module in (model, guide)]
    assert -PerSite_ELBO(estimators=STOPS).loss(*doubled, 3) == pytest.approx(6 * exact, rel=1e-9)
    masked = [poutine.mask(module, mask=torch.tensor([True, False, True])) for module in (model, guide)]
    assert -PerSite_ELBO(estimators=STOPS).loss(*masked, 3) == pytest.approx(2 * exact, rel=1e-9)


def test_particles_share_one_run():
    model, guide = Model(), Guide()
    together = PerSite_ELBO(estimators=STOPS, num_particles=4000)
    alone = torch.tensor([-PerSite_ELBO(estimators=STOPS).loss(model, guide, 4) for _ in range(300)])
    assert -together.loss(model, guide, 4) == pytest.approx(float(alone.mean()), abs=4 * float(alone.std()) / 300**0.5)


def test_trains_under_stock_svi():
    model, guide = Model(), Guide()
    stock = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), PerSite_ELBO(estimators=STOPS))
    losses = [stock.step(64) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert stock.evaluate_loss(64) < losses[0]


@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("no mask", "height_1 of the guide depends on the stops in another way than by being masked"),
        ("goes on", "the later stops are not 0 with probability 1"),
    ],
)
def test_what_one_path_cannot_stand_for_is_refused(fault, sentence):
    with pytest.raises(ValueError, match=sentence):
        svi(Model(), Guide(fault=fault), PerSite_ELBO(estimators=STOPS)).step(3)


def test_without_the_mark_all_combinations_are_summed_out(float64):
    """Rows for the 8 combinations of the stops have the mean over the 4 counts, where the heights are certain."""
    model, guide = Model(), Guide(scale=0, fault="no mark")
    exact = enumerated(model, guide)
    wanted = torch.autograd.grad(exact, [model.height, guide.logits, guide.height])
    bounds, gradients = estimates(model, guide, PerSite_ELBO(estimators=STOPS), 5, 1)
    torch.testing.assert_close(bounds[0], exact.detach(), rtol=1e-6, atol=1e-6)  # a stopped step goes on with 1e-16
    torch.testing.assert_close(-gradients[0], torch.cat([g.flatten() for g in wanted]), rtol=1e-6, atol=1e-6)


def test_what_is_drawn_after_a_stop_may_read_it():
    """After the stop the site is masked, so what it would have read there is of no consequence."""
    assert svi(Model(), Guide(fault="reads the stop"), PerSite_ELBO(estimators=STOPS)).step(3).isfinite()
