"""Diagnostics of pairs whose posteriors are known: tails of weights, ranks, and variances of gradients."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pairs import PAIRS
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule

from guides.systems.air import gradient_variances
from pplmodels import inspect
from pplmodels.errors import InputError
from pplmodels.infer import SVI, SummedOut_ELBO
from pplmodels.inspect import diagnostics
from pplmodels.metrics import gradient_variance, importance_weighted, log_probs

NOISE = 0.5  # variance of x given z


class Model(PyroModule):
    """z ~ N(0, I) and x ~ N(z, 0.5 I) in the plane. The posterior is N(x / 1.5, I / 3)."""

    def __init__(self):
        super().__init__("gaussian_model")

    def forward(self, x=None, n=None):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, NOISE**0.5).to_event(1), obs=x)


class Guide(PyroModule):
    """The posterior with its variance multiplied by ``width``."""

    def __init__(self, width=1.0):
        super().__init__("gaussian_guide")
        self.width = width

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            scale = (self.width * NOISE / (1 + NOISE)) ** 0.5
            pyro.sample("z", dist.Normal(x / (1 + NOISE), scale).to_event(1))


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_is_that_of_the_tail(shape):
    """A guide of the variance s^2 v instead of v has weights of the shape k = 1 - s^2.

    In units of the posterior's standard deviation, log w = r^2 (1 / s^2 - 1) / 2 + constant, and r^2 / s^2 is a
    chi-squared variable with 2 degrees of freedom. So log w is exponential with the mean 1 - s^2, and w is a Pareto
    variable. The estimate from the M largest weights is the posterior mean with 10 observations of 1/2 (Vehtari et al.
    2024, appendix C). Its mean over 200 images is within 5 standard errors, about 0.04.
    """
    x = Model()(n=200)
    found = inspect.weight_diagnostics(Model(), Guide(1 - shape), x, num_samples=2000)
    largest = math.ceil(3 * 2000**0.5)
    expected = (largest * shape + 5) / (largest + 10)
    error = float(found.pareto_k.std()) / 200**0.5
    assert float(found.pareto_k.mean()) == pytest.approx(expected, abs=5 * error)
    assert error < 0.012
    assert found.threshold == pytest.approx(1 - 1 / math.log10(2000)) and found.num_samples == 2000


def test_elbo_bound_and_effective_size_are_the_known_ones(float64):
    """With s^2 = 0.8: KL = s^2 - 1 - log s^2 in the plane, and (E w)^2 / E w^2 = (1 - 2 k) / (1 - k)^2 for k = 0.2.

    The fourth moment of w exists, so all means over the images are within 5 standard errors.
    """
    x = Model()(n=300)
    found = inspect.weight_diagnostics(Model(), Guide(0.8), x, num_samples=1000)
    exact = dist.Normal(torch.zeros(2), (1 + NOISE) ** 0.5).to_event(1).log_prob(x).numpy()
    numbers = {
        -(0.8 - 1 - math.log(0.8)): found.elbo.values - exact,
        0.0: found.bound.values - exact,
        0.6 / 0.8**2: found.ess.values / 1000,
    }
    for known, values in numbers.items():
        assert values.mean() == pytest.approx(known, abs=5 * values.std() / 300**0.5)
        assert values.std() / 300**0.5 < 0.002


def test_the_numbers_do_not_depend_on_the_parts_and_are_those_of_the_bound(monkeypatch, float64):
    x, sizes = Model()(n=7), []

    def watched(model, guide, x, samples):
        sizes.append(len(x) * samples)
        return log_probs(model, guide, x, samples)

    monkeypatch.setattr(diagnostics, "log_probs", watched)
    found = inspect.weight_diagnostics(Model(), Guide(0.8), x, num_samples=100, max_batch=5)
    assert max(sizes) <= 5 and sum(sizes) == 700
    assert found.pareto_k.dims == ("image",) and list(found.image.values) == list(range(7))
    pyro.set_rng_seed(3)
    found = inspect.weight_diagnostics(Model(), Guide(0.8), x, num_samples=64)
    pyro.set_rng_seed(3)
    expected = importance_weighted(partial(log_probs, Model(), Guide(0.8), samples=64), [x], 64)
    np.testing.assert_allclose(found.bound, expected.bound)
    np.testing.assert_allclose(found.ess, expected.ess)


def test_equal_weights_have_no_tail(float64):
    found = inspect.weight_diagnostics(Model(), Guide(), Model()(n=3), num_samples=50)
    assert found.pareto_k.isnull().all()
    np.testing.assert_allclose(found.ess, 50)
    np.testing.assert_allclose(found.bound, found.elbo)


def test_too_few_samples_for_a_tail_are_refused():
    with pytest.raises(InputError, match="at least 25 samples, not 24"):
        inspect.weight_diagnostics(Model(), Guide(), Model()(n=3), num_samples=24)


def rank_probabilities(width, num_samples):
    """P(rank = r) for r = 0..S if the guide has ``width`` times the variance: the mean of a binomial distribution.

    In units of the posterior's standard deviation, z* is a standard normal e, and each sample is below it with
    probability Phi(e / sqrt(width)).
    """
    e, weights = np.polynomial.hermite_e.hermegauss(150)
    below = scipy.stats.norm.cdf(e / width**0.5)
    return (weights / weights.sum()) @ scipy.stats.binom.pmf(np.arange(num_samples + 1), num_samples, below[:, None])


@pytest.mark.parametrize("width", [1.0, 0.5, 2.0])
def test_ranks_have_the_known_distribution(width):
    """The chi-square test of 4,000 ranks with their probabilities, and the p-values of the test for uniformity."""
    found = inspect.calibration(Model(), Guide(width), num_datasets=4000, num_samples=19)
    assert found.ranks["z"].dims == ("dataset", "z_dim_0") and found.ranks["z"].shape == (4000, 2)
    expected = rank_probabilities(width, 19)
    if width == 1.0:
        np.testing.assert_allclose(expected, 0.05, rtol=1e-6)
    for column in range(2):
        counts = np.bincount(found.ranks["z"].values[:, column].astype(int), minlength=20)
        assert scipy.stats.chisquare(counts, 4000 * expected).pvalue > 1e-3
        p_value = float(found.p_values["z"][column])
        assert p_value == pytest.approx(scipy.stats.chisquare(counts).pvalue)
        if width == 0.5:  # overconfident: a U shape
            assert p_value < 1e-20 and counts[[0, -1]].min() > 1.5 * counts[5:15].max()
        elif width == 2.0:
            assert p_value < 1e-20 and counts[[0, -1]].max() < 0.5 * counts[5:15].min()


class Counting(PyroModule):
    """Two stops with probabilities 0.6 and 0.5, heights that are masked after the stop, and x ~ N(n + heights, 1)."""

    def __init__(self):
        super().__init__("counting_model")

    def forward(self, x=None, n=None):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            present, total = torch.ones(n if x is None else len(x)), 0.0
            for t, prob in enumerate((0.6, 0.5), start=1):
                present = pyro.sample(f"go_{t}", dist.Bernoulli(prob * present))
                height = pyro.sample(f"height_{t}", dist.Normal(0.0, 1.0).expand(present.shape).mask(present > 0))
                total = total + present * (2 + height)
            return pyro.sample("x", dist.Normal(total, 1.0), obs=x)


class CountingGuide(PyroModule):
    """The posterior, in which n is enumerated. ``bias`` is added to the logit of the first stop."""

    def __init__(self, bias=0.0):
        super().__init__("counting_guide")
        self.bias = bias

    def forward(self, x=None, n=None):
        scores = [
            math.log(prior) + dist.Normal(2.0 * count, (1.0 + count) ** 0.5).log_prob(x)
            for count, prior in enumerate((0.4, 0.3, 0.3))
        ]
        probs = torch.stack(scores).softmax(0)
        logits = (probs[1:].sum(0) / probs[0]).log(), (probs[2] / probs[1]).log()
        with pyro.plate("data", len(x), dim=-1):
            present = torch.ones(())
            go = []
            for t, logit in enumerate(logits, start=1):
                present = pyro.sample(f"go_{t}", dist.Bernoulli(present * (logit + self.bias * (t == 1)).sigmoid()))
                go.append(present)
            # the heights given n have the prior precision 1 each, and x - 2 n is their sum plus noise
            left, unknown = x - 2 * sum(go), sum(go)
            for t, present in enumerate(go, start=1):
                gain = present / (1 + unknown)  # of the heights that are not known yet
                q = dist.Normal(gain * left, (1 - gain).sqrt())
                height = pyro.sample(f"height_{t}", q.mask(present > 0))
                left, unknown = left - present * height, unknown - present


def count(latents):
    return latents["go_1"] + latents["go_2"]


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_discrete_and_masked_ranks_are_uniform_where_the_guide_is_exact(bias):
    """A bias of the first stop shows in the ranks of stops and count, and leaves those of the heights uniform.

    The guide is then still exact given an object, because of the other sites only the second stop could change that.
    """
    pair = Counting(), CountingGuide(bias)
    found = inspect.calibration(*pair, num_datasets=3000, statistics={"count": count}, max_batch=20_000)
    p_values = found.p_values
    assert set(p_values) == {"go", "height", "count"} and found.ranks["height"].dims == ("dataset", "step")
    assert p_values["height"].values.min() > 1e-3
    assert (p_values["count"] > 1e-3) == (bias == 0) and (p_values["go"].values.min() > 1e-3) == (bias == 0)
    assert bias == 0 or p_values["count"] < 1e-10
    used = found.ranks["height"].notnull().mean("dataset").values
    np.testing.assert_allclose(used, (0.6, 0.3), atol=5 * (0.24 / 3000) ** 0.5)
    assert found.ranks["go"].notnull().all() and found.ranks["count"].notnull().all()


def test_masked_ranks_find_a_guide_that_is_wrong_where_they_are_used():
    class Narrow(CountingGuide):
        def forward(self, x=None, n=None):
            with pyro.poutine.reparam(config={}), Sharper():
                super().forward(x)

    class Sharper(pyro.poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] == "height_1":
                normal = msg["fn"].base_dist
                msg["fn"] = dist.Normal(normal.loc, 0.5 * normal.scale).mask(msg["fn"]._mask)

    found = inspect.calibration(Counting(), Narrow(), num_datasets=2000, max_batch=20_000)
    assert found.p_values["height"][0] < 1e-10 and found.p_values["go"].values.min() > 1e-3


def test_masks_of_all_kinds_are_found():
    def model(x=None, n=None):
        number = n if x is None else len(x)
        with pyro.plate("data", number, dim=-1):
            on = torch.arange(number) % 2 == 0
            pyro.sample("inner", dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1))
            pyro.sample("outer", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(on))
            with pyro.poutine.mask(mask=on):
                pyro.sample("handled", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(torch.zeros(number), 1.0), obs=x)

    found = inspect.calibration(model, model, num_datasets=40, num_samples=3, num_bins=2)
    assert found.ranks["inner"].notnull().mean("dataset").values.tolist() == [1, 0]
    assert found.ranks["outer"].notnull().mean("dataset").values.tolist() == [0.5, 0.5]
    assert float(found.ranks["handled"].notnull().mean()) == 0.5
    assert found.p_values["inner"].notnull().values.tolist() == [True, False]


def only_scores(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0)), 1.0), obs=x)


def one_image(x=None, n=None):
    with pyro.plate("data", n, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    return torch.zeros(1)


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        (only_scores, {}, r"but model\(n=1000\) fails with TypeError: only_scores\(\) got an unexpected keyword"),
        (one_image, {}, r"but model\(n=1000\) does not return a tensor of 1000 images"),
        (Model(), {"num_samples": 100}, "100 samples give 101 possible ranks, which cannot be divided evenly into 20"),
        (Model(), {"num_datasets": 99}, "20 bins need at least 100 datasets, not 99"),
        (Model(), {"statistics": {"z": lambda latents: latents["z"]}}, "the statistic 'z' has the name of a site"),
        (
            Model(),
            {"statistics": {"mean": lambda latents: latents["z"].mean(0)}},
            r"the statistic 'mean' has shape \(2,\), which does not begin with the dimensions \(1000,\)",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_a_sentence(model, arguments, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        inspect.calibration(model, Guide(), **arguments)
    assert "\n" not in str(caught.value)


class Noisy(PyroModule):
    """q(z) = N(loc, scale^2) for each image. The model has no parameters and ignores x."""

    def __init__(self, loc=0.7):
        super().__init__("noisy_guide")
        self.loc = torch.nn.Parameter(torch.tensor(loc))
        self.net = torch.nn.Linear(1, 1, bias=False)  # its weight is the scale
        torch.nn.init.constant_(self.net.weight, 0.5)

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), self.net(torch.ones(len(x), 1)).squeeze(-1)))


def standard(x=None, n=None):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def score_function(model, guide, x):
    """The bound with the score-function estimator instead of the reparameterized one."""
    trace = pyro.poutine.trace(guide).get_trace(x)
    trace.nodes["z"]["value"] = trace.nodes["z"]["value"].detach()
    replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(x)
    for part in (trace, replayed):
        part.compute_log_prob()
    log_q = trace.nodes["z"]["log_prob"]
    cost = (log_q - replayed.nodes["z"]["log_prob"]).detach()
    return cost.sum(), (cost * log_q).sum()


def moments():
    """The variances and kurtoses of the derivatives of one image's loss, (loc, scale), by Gauss-Hermite quadrature.

    With z = m + s e for a standard normal e, the loss is z^2 / 2 - e^2 / 2 - log s. Along the path, e is fixed. All
    derivatives are polynomials in e, for which the quadrature is exact.
    """
    e, weights = np.polynomial.hermite_e.hermegauss(20)
    m, s = 0.7, 0.5
    z = m + s * e
    loss = z**2 / 2 - e**2 / 2 - math.log(s)
    gradients = np.array([[z, z * e - 1 / s], [loss * e / s, loss * (e**2 - 1) / s]])
    weights = weights / weights.sum()
    centred = gradients - (gradients @ weights)[..., None]
    variances = centred**2 @ weights
    return variances, centred**4 @ weights / variances**2


def test_the_noise_is_the_known_one_by_module_and_by_site():
    """Variances of the path-wise and the score-function estimator, within 5 standard errors.

    By module they are those of an image divided by their number, here from 2,000 means over 50 images, and by site
    those of an image, here from 30 estimates for each of 2,000 images. The relative standard error of a variance of N
    values is ((kurtosis - 1) / N)^0.5.
    """
    guide, objectives = Noisy(), {"path": Trace_ELBO(), "score": score_function}
    variances, kurtoses = moments()
    modules = inspect.gradient_noise(standard, guide, objectives, torch.zeros(50, 1), repeats=2000, compile=True)
    assert modules.dims == ("objective", "module")
    assert modules["objective"].values.tolist() == ["path", "score"]
    assert modules["module"].values.tolist() == ["guide.loc", "guide.net"]
    errors = ((2 + (kurtoses - 3) / 50) / 2000) ** 0.5
    assert (np.abs(modules.values * 50 / variances - 1) < 5 * errors).all()
    sites = inspect.gradient_noise(standard, guide, objectives, torch.zeros(2000, 1), repeats=30, by="site")
    assert sites.dims == ("objective", "site") and sites["site"].values.tolist() == ["z"]
    errors = (variances * ((kurtoses - 1) / (2000 * 29)) ** 0.5).sum(1)
    assert (np.abs(sites.values[:, 0] - variances.sum(1)) < 5 * errors).all()
    assert (errors < 0.1 * variances.sum(1)).all()


def test_compiled_and_uncompiled_noise_agree_and_generators_stay(float64):
    guide, x = Noisy(), torch.zeros(5, 1)
    generator = torch.get_rng_state()
    found = [
        inspect.gradient_noise(standard, guide, {"graph": TraceGraph_ELBO()}, x, compile=compiled)
        for compiled in (False, True)
    ]
    np.testing.assert_allclose(*found)
    assert torch.equal(generator, torch.get_rng_state())
    svi = SVI(standard, guide, torch.optim.SGD(guide.parameters(), lr=0.0), TraceGraph_ELBO())
    alone = [gradient_variance(svi, (x,), [p]) for p in guide.parameters()]
    np.testing.assert_allclose(found[0][0], alone)


class Stopping(PyroModule):
    """A guide of one stop, whose logit is a parameter, and a net that only some objectives use."""

    def __init__(self):
        super().__init__("stopping_guide")
        self.logit = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x=None, n=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("go_1", dist.Bernoulli(logits=self.logit.expand(len(x))), infer={"stop": True})


def coin(x=None, n=None):
    with pyro.plate("data", len(x), dim=-1):
        go = pyro.sample("go_1", dist.Bernoulli(torch.full((len(x),), 0.5)))
        pyro.sample("x", dist.Normal(go[:, None], 1.0).to_event(1), obs=x)


def test_a_discrete_site_has_the_variance_of_the_score_and_none_if_it_is_summed_out(float64):
    """The gradient of an image is (z - p) c_z: its variance is p (1 - p) ((1 - p) c_1 + p c_0)^2.

    Here c_z is log q(z) - log p(x, z), and z has two values, so the kurtosis is 1 / (p (1 - p)) - 3.
    """
    x, objectives = torch.full((2000, 1), 2.5), {"score": TraceGraph_ELBO(), "summed": SummedOut_ELBO()}
    p = float(torch.tensor(0.3).sigmoid())
    normal = dist.Normal(torch.tensor([0.0, 1.0]), 1.0)
    cost = torch.tensor([1 - p, p]).log() - math.log(0.5) - normal.log_prob(torch.tensor(2.5))
    exact = p * (1 - p) * float((1 - p) * cost[1] + p * cost[0]) ** 2
    noise = inspect.gradient_noise(coin, Stopping(), objectives, x, repeats=30, by="site").sel(site="go_1")
    # the kurtosis is close to 1, where the sample variance has the relative standard error 2^0.5 / N per image
    error = ((1 / (p * (1 - p)) - 4) / 30 + 2 / 30**2) ** 0.5 / 2000**0.5
    assert float(noise.sel(objective="score")) == pytest.approx(exact, rel=5 * error)
    assert exact > 0.1 and float(noise.sel(objective="summed")) == pytest.approx(0, abs=1e-20)


def test_rows_are_named_for_functions_and_autoguides_and_missing_ones_are_nan():
    net = torch.nn.Linear(1, 1)

    def model(x=None, n=None):
        pyro.module("decoder", net)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def guide(x=None, n=None):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    def without_model(model, guide, x):
        trace = pyro.poutine.trace(guide).get_trace(x)
        return trace.log_prob_sum()

    x, objectives = torch.randn(4, 1), {"bound": Trace_ELBO(), "entropy": without_model}
    before = dict(pyro.get_param_store().items())
    found = inspect.gradient_noise(model, guide, objectives, x)
    assert found["module"].values.tolist() == ["model.decoder", "guide.scale"]
    assert found.isnull().values.tolist() == [[False, False], [True, False]]
    assert dict(pyro.get_param_store().items()) == before == {}

    def whole(x=None, n=None):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    found = inspect.gradient_noise(whole, AutoNormal(whole), {"bound": Trace_ELBO()}, x)
    assert found["module"].values.tolist() == ["guide.locs", "guide.scales"] and (found > 0).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"repeats": 1}, "at least 2 estimates, not 1"),
        ({"by": "layer"}, 'by "module" or by "site", not by \'layer\''),
        ({"by": "site", "compile": True}, "needs compile=False"),
    ],
)
def test_noise_that_cannot_be_measured_is_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        inspect.gradient_noise(standard, Noisy(), {"bound": Trace_ELBO()}, torch.zeros(3, 1), **arguments)
    with pytest.raises(InputError, match="neither model nor guide has parameters"):
        inspect.gradient_noise(Model(), Guide(), {"bound": Trace_ELBO()}, torch.zeros(3, 2))


def test_the_noise_of_air_is_the_sum_over_the_modules_of_its_guide():
    model, guide = PAIRS["air"].build()
    x = PAIRS["air"].batch(6)
    found = gradient_variances(model, guide, x, 8)
    learned = [*model.parameters(), *guide.parameters()]
    parts = {
        "presence": [*guide.presence.parameters()],
        "guide": [p for name, p in guide.named_parameters() if not name.startswith("baseline.")],
    }
    for name, elbo in {"reinforce": TraceGraph_ELBO(), "summed-out": SummedOut_ELBO()}.items():
        svi = SVI(model, guide, torch.optim.SGD(learned, lr=0.0), elbo)
        for part, parameters in parts.items():
            alone = gradient_variance(svi, (x,), parameters, 8)
            assert found.pop(f"gradient_variance/{name}/{part}") == pytest.approx(alone, rel=1e-4)  # float32
    assert not found
