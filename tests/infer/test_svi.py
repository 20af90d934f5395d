"""Our SVI: the same numbers as the stock class, on pairs of ours and of others."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

from pplmodels.infer import SVI, NeuralBaseline, PerSite_ELBO, adam, local_params

PRIOR, OBSERVED = (0.4, 0.3, 0.2), 1.7


def chain(prior, present, site, infer=None):
    """One step of three: Bern(p) while the last step said yes, else certainly no."""
    mask = present > 0
    return present * pyro.sample(site, dist.Bernoulli(prior).mask(mask), infer=infer or {})


def counting_model(n):
    """n ~ three Bernoulli steps that stop at the first no; x ~ N(n, 0.5)."""
    with pyro.plate("data", n):
        present, total = torch.ones(n), torch.zeros(n)
        for t, p in enumerate(PRIOR):
            present = chain(torch.tensor(p), present, f"z_{t}")
            total = total + present
        pyro.sample("x", dist.Normal(total, 0.5), obs=torch.full((n,), OBSERVED))


class CountingGuide(PyroModule):
    """Independent logits for the three steps; optionally a baseline that knows the step's number."""

    def __init__(self, baseline=False):
        super().__init__("counting_guide")
        self.logits = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.baseline = NeuralBaseline(1, 1, hidden_dim=4) if baseline else None

    def forward(self, n):
        with pyro.plate("data", n):
            present = torch.ones(n)
            for t, logit in enumerate(self.logits):
                infer = {}
                if self.baseline is not None:
                    context = self.baseline.context(torch.zeros(n, 1))
                    infer = self.baseline.infer_config(context, torch.full((n, 1), float(t)), present)
                present = chain(logit.sigmoid(), present, f"z_{t}", infer)


class Nothing(PyroModule):
    """A module around a function, so that it has a place for parameters it does not have."""

    def __init__(self, function):
        super().__init__("nothing")
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def enumerated(logits):
    """The bound as a sum over the four counts."""
    bound = 0.0
    for n in range(4):
        steps = [1.0] * n + [0.0] * (n < 3)
        log_p = dist.Normal(float(n), 0.5).log_prob(torch.tensor(OBSERVED))
        log_q = torch.zeros(())
        for z, p, logit in zip(steps, PRIOR, logits, strict=False):
            log_p = log_p + dist.Bernoulli(p).log_prob(torch.tensor(z))
            log_q = log_q + dist.Bernoulli(logits=logit).log_prob(torch.tensor(z))
        bound = bound + log_q.exp() * (log_p - log_q)
    return bound


@pytest.mark.parametrize("baseline", [False, True])
def test_three_bernoullis_agree_with_enumeration(float64, baseline):
    """Mean over 40 x 5,000 samples within four standard errors of the exact bound and gradient."""
    guide = CountingGuide(baseline)
    exact = enumerated(guide.logits)
    exact_gradient = torch.autograd.grad(exact, guide.logits)[0]
    assert float(exact.detach()) == pytest.approx(-3.7565, abs=5e-5)
    torch.testing.assert_close(exact_gradient, torch.tensor([0.8110, -0.3217, -0.3091]), atol=5e-5, rtol=0)

    svi = SVI(counting_model, guide, torch.optim.SGD(guide.parameters(), lr=0.0))
    bounds, gradients = [], []
    for _ in range(40):
        bounds.append(-svi.step(5000))
        gradients.append(-guide.logits.grad / 5000)
    for samples, expected in ((bounds, exact.detach()), (gradients, exact_gradient)):
        samples = torch.stack(samples)
        error = samples.std(0) / len(samples) ** 0.5
        assert ((samples.mean(0) - expected).abs() < 4 * error).all()


def test_nvil_divides_the_score_function_gradient_and_nothing_else(float64):
    """Here the whole gradient of the logits is score function: it is the stock one over the signal's scale."""
    gradients, losses = [], []
    for loss in (TraceGraph_ELBO(), PerSite_ELBO()):
        pyro.set_rng_seed(1)
        guide = CountingGuide(baseline=True)
        svi = SVI(counting_model, guide, torch.optim.SGD(guide.parameters(), lr=0.0), loss)
        losses.append(svi.step(500))
        gradients.append([p.grad for p in guide.parameters()])
        scales = guide.baseline.signal_std()
    assert losses[0] == losses[1]
    assert scales > 1.5
    # the scale grows while the three sites are observed one after another; all three use the last one or an earlier
    ratio = gradients[0][0] / gradients[1][0]
    assert (ratio > 1.5).all()
    assert ratio[-1] == pytest.approx(float(scales), rel=1e-9)
    for stock, ours in zip(gradients[0][1:], gradients[1][1:], strict=True):
        torch.testing.assert_close(stock, ours)


def test_nvil_is_tracegraph_while_the_signals_are_small(float64):
    """Below one nat nothing is divided: the same gradients to the bit."""
    gradients = []
    for loss in (TraceGraph_ELBO(), PerSite_ELBO()):
        pyro.set_rng_seed(1)
        guide = CountingGuide(baseline=True)
        guide.baseline.signal_std = lambda: torch.ones(())
        svi = SVI(counting_model, guide, torch.optim.SGD(guide.parameters(), lr=0.0), loss)
        svi.step(100)
        gradients.append([p.grad for p in guide.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class GaussianModel(PyroModule):
    """z ~ N(0, 1), x ~ N(z, scale)."""

    def __init__(self):
        super().__init__("gaussian")
        self.scale = PyroParam(torch.tensor(0.7), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            return pyro.sample("x", dist.Normal(z, self.scale), obs=x)


class GaussianGuide(PyroModule):
    """z ~ N(a x, s)."""

    def __init__(self, slope=0.1):
        super().__init__("gaussian_guide")
        self.slope = torch.nn.Parameter(torch.tensor(slope))
        self.scale = PyroParam(torch.tensor(0.9), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(self.slope * x, self.scale))


@pytest.mark.parametrize("loss", [TraceGraph_ELBO, TraceMeanField_ELBO, pyro.infer.Trace_ELBO])
def test_the_exact_posterior_gives_the_evidence(float64, loss):
    model, guide = GaussianModel(), GaussianGuide()
    variance = model.scale.detach() ** 2
    with torch.no_grad():
        guide.slope.copy_(1 / (1 + variance))
    guide.scale = (variance / (1 + variance)).sqrt()
    x = torch.randn(5)
    svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), loss(num_particles=2))
    evidence = dist.Normal(0.0, (1 + variance).sqrt()).log_prob(x).mean()
    if loss is not TraceMeanField_ELBO:  # whose reconstruction is a sample while its KL is exact
        torch.testing.assert_close(-svi.evaluate_loss(x), evidence)
    model.zero_grad()
    steps = torch.stack([-svi.step(x) for _ in range(1500 if loss is TraceMeanField_ELBO else 2)])
    error = steps.std() / len(steps) ** 0.5
    assert (steps.mean() - evidence).abs() <= 4 * error + 1e-10


def test_constrained_parameters_train_and_the_store_stays_empty():
    model, guide = GaussianModel(), GaussianGuide()
    svi = SVI(model, guide, adam(model, guide, 0.05))
    x = 2 * torch.randn(200)
    first = float(svi.step(x))
    for _ in range(200):
        last = svi.step(x)
    assert last < first - 0.3
    assert len(pyro.get_param_store()) == 0


def test_a_wrapped_model_trains_too():
    """Handlers around a module hide it: its parameters still belong to it."""
    model, guide = GaussianModel(), GaussianGuide()
    scaled = pyro.poutine.scale(model, 0.5)
    svi = SVI(scaled, pyro.poutine.scale(guide, 0.5), adam(model, guide, 0.05))
    before = model.scale_unconstrained.detach().clone()
    svi.step(torch.randn(7))
    assert not torch.equal(model.scale_unconstrained, before)


def test_clipping_is_a_norm_per_image_and_group():
    x = 10 + torch.randn(50)
    norms = []
    for clip in (None, 0.25):
        pyro.set_rng_seed(3)
        model, guide = GaussianModel(), GaussianGuide()
        svi = SVI(model, guide, adam(model, guide, 0.0, {guide: 0.0}), clip_norm=clip)
        svi.step(x)
        norms.append(
            [torch.stack([p.grad.norm() for p in module.parameters()]).norm() / 50 for module in (model, guide)]
        )
    assert all(norm > 1 for norm in norms[0])
    assert [float(norm) for norm in norms[1]] == pytest.approx([0.25, 0.25], rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_remembered(fused):
    model, guide = GaussianModel(), GaussianGuide()
    optim = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=0.1, fused=fused)
    svi = SVI(model, guide, optim)
    x = torch.randn(5)
    svi.step(x)
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    svi.step(torch.tensor([1.0, float("inf")]))
    svi.step(x)
    assert svi.failed
    after = [*model.parameters(), *guide.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_cannot_be_used_is_refused_by_name():
    model, guide = GaussianModel(), GaussianGuide()
    with pytest.raises(ValueError, match=r"optim must be a torch\.optim\.Optimizer"):
        SVI(model, guide, "adam")
    with pytest.raises(ValueError, match=r"no_latents.* has no parameters of its own"):
        adam(model, no_latents, 1.0)
    with pytest.raises(ValueError, match=r"use pyro\.infer\.SVI with Pyro's optimizers"):
        SVI(model, guide, pyro.optim.Adam({"lr": 1.0}))


def test_wrong_shapes_are_found_in_the_first_step():
    """Validation is on for the first step, whatever it is afterwards."""

    class Wrong(GaussianGuide):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                return pyro.sample("z", dist.Normal(self.slope * x, -self.scale))

    model, guide = GaussianModel(), Wrong()
    with pytest.raises(ValueError, match="scale"):
        SVI(model, guide, adam(model, guide, 0.1)).step(torch.randn(3))


def test_a_pair_without_the_plate_reports_its_total():
    def model(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1), obs=x)

    guide = GaussianGuide()
    svi = SVI(model, Nothing(lambda x: None), torch.optim.SGD(guide.parameters(), lr=0.0))
    with pytest.raises(ValueError, match="the loss does not depend on any parameter"):
        svi.step(torch.zeros(4))
    assert float(svi.evaluate_loss(torch.zeros(4))) == pytest.approx(
        -4 * float(dist.Normal(0.0, 1.0).log_prob(torch.zeros(())))
    )


class Painter(PyroModule):
    """A model that embeds whole numbers and convolves: its maps come with the channels last in memory."""

    def __init__(self):
        super().__init__("painter")
        self.embedding = torch.nn.Embedding(5, 6)
        self.conv = torch.nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            logits = self.conv(self.embedding(x).movedim(-1, 1)).movedim(1, -1)
            pyro.sample("x", dist.Categorical(logits=logits).to_event(2), obs=x)


def no_latents(x):
    with pyro.plate("data", len(x)):
        pass


@pytest.mark.parametrize("compiled", [False, True])
def test_fused_steps_are_the_same_in_any_memory_order(compiled):
    model, x = Painter(), torch.randint(5, (7, 4, 4))
    twin = copy.deepcopy(model)
    svi = SVI(model, no_latents, torch.optim.Adam(model.parameters(), lr=0.1, fused=True), compile=compiled)
    optim = torch.optim.Adam(twin.parameters(), lr=0.1, fused=False)
    for _ in range(3):
        svi.step(x)
        optim.zero_grad()
        (Trace_ELBO().differentiable_loss(twin, no_latents, x) / 7).backward()
        optim.step()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, msg=name)


class Centre(PyroModule):
    """x ~ N(loc, 1), in a plate as the test has it."""

    def __init__(self, plate):
        super().__init__("centre")
        self.loc = torch.nn.Parameter(torch.tensor(0.0))
        self.plate = plate

    def forward(self, x):
        with self.plate(x) as index:
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x if index is None else x[index])


def all_of_guide(x):
    """There is nothing to infer."""


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_plate_without_a_size_is_as_long_as_what_is_in_it(compiled, clip):
    x = 3 + torch.randn(16)
    losses, locs = [], []
    for plate in (lambda x: pyro.plate("data"), lambda x: pyro.plate("data", len(x), dim=-1)):
        pyro.set_rng_seed(0)
        model = Centre(plate)
        optim = torch.optim.SGD(model.parameters(), lr=0.1)
        svi = SVI(model, all_of_guide, optim, Trace_ELBO(), clip_norm=clip, compile=compiled)
        losses.append([float(svi.step(x)) for _ in range(20)])
        locs.append(float(model.loc.detach()))
    assert losses[0] == pytest.approx(losses[1]) and locs[0] == pytest.approx(locs[1])
    assert losses[0][0] == pytest.approx(-float(dist.Normal(0.0, 1.0).log_prob(x).mean()))
    assert losses[0][-1] < losses[0][0] and 0 < locs[0] < 6


@pytest.mark.parametrize("compiled", [False, True])
def test_a_plate_that_subsamples_counts_as_a_whole(compiled):
    """Loss and clipped gradient are per image of the data set, whatever part of it a step looks at."""
    x = 3 + torch.randn(50)
    model = Centre(lambda x: pyro.plate("data", len(x), subsample_size=10, dim=-1))
    svi = SVI(model, all_of_guide, torch.optim.SGD(model.parameters(), lr=1.0), clip_norm=0.5, compile=compiled)
    pyro.set_rng_seed(1)
    expected = TraceGraph_ELBO().loss(model, all_of_guide, x) / 50
    pyro.set_rng_seed(1)
    assert float(svi.step(x)) == pytest.approx(expected, rel=1e-5)
    assert float(model.loc.grad) / 50 == pytest.approx(-0.5, rel=1e-4)  # clipped per image; unclipped it is about -3


def test_parameters_that_the_optimizer_does_not_have_are_named_before_anything_moves():
    model, guide = GaussianModel(), GaussianGuide()
    svi = SVI(model, guide, torch.optim.SGD([model.scale_unconstrained], lr=0.1))
    before = model.scale_unconstrained.detach().clone()
    with pytest.raises(
        ValueError, match=r"does not have guide\.scale_unconstrained, guide\.slope, which would never be updated"
    ):
        svi.step(torch.randn(5))
    assert torch.equal(model.scale_unconstrained, before)
    for parameter in guide.parameters():
        parameter.requires_grad_(False)
    svi.step(torch.randn(5))
    assert not torch.equal(model.scale_unconstrained, before)


def test_an_autoguide_that_was_never_called_is_found():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + offset.value, 1.0), obs=x)

    class Offset(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(()))

    offset = Offset()
    guide = AutoNormal(model)
    svi = SVI(model, guide, torch.optim.SGD([offset.value], lr=0.1))
    with pytest.raises(ValueError, match=r"guide\.locs\.z_unconstrained.*AutoGuide has none before it is called once"):
        svi.step(torch.randn(5))


class Doubled(Trace_ELBO):
    """Somebody's gradients."""

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        (2 * loss).backward()
        return loss.item()


class Tenfold(Trace_ELBO):
    def differentiable_loss(self, model, guide, *args, **kwargs):
        return 10 * super().differentiable_loss(model, guide, *args, **kwargs)


def gradient(loss):
    pyro.set_rng_seed(2)
    model, guide = GaussianModel(), GaussianGuide()
    svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), loss)
    value = svi.step(torch.linspace(-1, 1, 6))
    return float(value), torch.stack([p.grad for p in svi.parameters()])


def test_gradients_of_an_objectives_own_are_used():
    value, plain = gradient(Trace_ELBO())
    own_value, own = gradient(Doubled())
    assert own_value == pytest.approx(value)
    torch.testing.assert_close(own, 2 * plain)
    ten_value, ten = gradient(Tenfold())
    assert ten_value == pytest.approx(10 * value)
    torch.testing.assert_close(ten, 10 * plain)
    function_value, function = gradient(lambda model, guide, x: Trace_ELBO().differentiable_loss(model, guide, x))
    assert function_value == pytest.approx(value)
    torch.testing.assert_close(function, plain)


def test_an_objective_with_gradients_alone_is_used_as_stock_pyro_uses_it():
    x = torch.linspace(-1, 1, 6)
    pyro.set_rng_seed(2)
    model, guide = GaussianModel(), GaussianGuide()
    with local_params():
        expected = pyro.infer.RenyiELBO(alpha=0.5, num_particles=3).loss_and_grads(model, guide, x)
    wanted = torch.stack([p.grad for p in (*model.parameters(), *guide.parameters())])
    value, found = gradient(pyro.infer.RenyiELBO(alpha=0.5, num_particles=3))
    assert value * 6 == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("validate", [True, False])
def test_traceenum_trains_and_is_evaluated(validate):
    class Mixture(PyroModule):
        def __init__(self):
            super().__init__("mixture")
            self.locs, self.weights = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                k = pyro.sample("k", dist.Categorical(logits=self.weights), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(self.locs[k], 1.0), obs=x)

    x, model = torch.randn(9), Mixture()
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(3)), dist.Normal(model.locs.detach(), 1.0))
    with pyro.validation_enabled(validate):
        optim = torch.optim.SGD(model.parameters(), lr=0.1)
        svi = SVI(model, all_of_guide, optim, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1))
        expected = pytest.approx(-float(mixture.log_prob(x).mean()), rel=1e-5)
        assert float(svi.evaluate_loss(x)) == expected
        losses = [float(svi.step(x)) for _ in range(10)]
    assert losses[0] == expected and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (pyro.infer.JitTrace_ELBO(), "use Trace_ELBO with compile=True"),
        (pyro.infer.ReweightedWakeSleep(), "has two losses"),
        (pyro.infer.TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True), "has an infinite loss"),
        ("elbo", "has no gradients"),
    ],
)
def test_objectives_that_cannot_be_used_are_refused(objective, sentence):
    model, guide = GaussianModel(), GaussianGuide()
    with pytest.raises(ValueError, match=sentence):
        SVI(model, guide, adam(model, guide, 1.0), objective)


@pytest.mark.parametrize("compiled", [False, True])
def test_optimizers_and_gradients_that_do_not_fit_are_refused(compiled):
    model, guide = GaussianModel(), GaussianGuide()
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times"):
        SVI(model, guide, torch.optim.LBFGS(model.parameters()), compile=compiled)

    class Words(PyroModule):
        def __init__(self):
            super().__init__("words")
            self.table = torch.nn.Embedding(4, 2, sparse=True)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.table(x), 1.0).to_event(1), obs=torch.zeros(len(x), 2))

    words = Words()
    svi = SVI(words, all_of_guide, torch.optim.SGD(words.parameters(), lr=0.1), compile=compiled)
    with pytest.raises(ValueError, match=r"model\.table\.weight has a sparse gradient.*use sparse=False"):
        svi.step(torch.tensor([0, 3, 1]))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pair_that_draws_nothing_is_refused(compiled):
    def nothing(x):
        """No random choice."""

    model = GaussianModel()
    svi = SVI(nothing, nothing, torch.optim.SGD(model.parameters(), lr=0.1), compile=compiled)
    with pytest.raises(ValueError, match="the loss does not depend on any parameter"):
        svi.step(torch.zeros(3))
    with torch.no_grad(), pytest.raises(ValueError, match=r"no gradients under torch\.no_grad"):
        SVI(model, GaussianGuide(), torch.optim.SGD(model.parameters(), lr=0.1), compile=compiled).step(torch.zeros(3))


class Whitened(PyroModule):
    """Takes the first batch's mean as its offset."""

    def __init__(self):
        super().__init__("whitened")
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.started = False

    def forward(self, x):
        if not self.started:
            self.mean.copy_(x.mean())
            self.started = True
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.mean, self.scale.exp()), obs=x)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_the_first_step_initialises_stays_initialised(compiled):
    model, x = Whitened(), 5 + torch.randn(20)
    svi = SVI(model, all_of_guide, torch.optim.SGD(model.parameters(), lr=0.1), compile=compiled)
    svi.step(x)
    assert model.started and float(model.mean) == float(x.mean())
    svi.step(torch.zeros(20))
    assert float(model.mean) == float(x.mean())


def test_uncompiled_a_step_runs_the_pair_once():
    calls = []

    def model(x):
        calls.append("model")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(weight, 1.0), obs=x)

    weight = torch.nn.Parameter(torch.zeros(()))
    svi = SVI(model, lambda x: calls.append("guide"), torch.optim.SGD([weight], lr=0.1))
    for _ in range(3):
        svi.step(torch.ones(4))
    assert calls == ["guide", "model"] * 3


def test_pyro_module_states_a_modules_own_parameters_whatever_the_store_holds():
    """The second pair of a notebook cell that is run again is not the first one's."""
    moved = []
    for _ in range(2):
        net = torch.nn.Linear(1, 1)

        def model(x, net=net):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

        before = net.weight.detach().clone()
        SVI(model, all_of_guide, torch.optim.SGD(net.parameters(), lr=0.1)).step(torch.randn(6))
        moved.append(not torch.equal(net.weight, before))
    assert moved == [True, True] and len(pyro.get_param_store()) == 0
