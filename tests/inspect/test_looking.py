"""Looking never changes a pair, in whatever mode it is."""

import inspect as signatures
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import PAIRS
from pyro.infer import TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from guides import LadderGuide
from pplmodels import LadderVAE, inspect
from pplmodels.infer import SVI, adam
from pplmodels.infer.compile.state import State
from pplmodels.metrics import (
    active_units,
    codebook_counts,
    compiled_log_probs,
    elbo_surgery,
    elbo_terms,
    importance_weighted,
    log_probs,
    posterior_mean_variances,
)
from pplmodels.metrics.bounds import nonfinite_sites
from pplmodels.training.batch_norm import recompute_batch_norm


class Stranger(nn.Module):
    """A pair in the style of Pyro's examples, which keeps statistics in a buffer, an attribute and a dict."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 6))
        self.decoder = nn.Linear(3, 16)
        self.seen, self.kept = torch.zeros(16), {"runs": 0}

    def model(self, x=None, n=None):
        pyro.module("decoder", self.decoder)
        number = n if x is None else len(x)
        with pyro.plate("data", number, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(number, 3), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z).unflatten(-1, (1, 4, 4))).to_event(3), obs=x)

    def guide(self, x, n=None):
        pyro.module("encoder", self.encoder)
        self.seen = self.seen.lerp(x.flatten(1).mean(0), 0.1)
        self.kept["runs"] += 1
        with pyro.plate("data", len(x), dim=-1):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def stranger():
    both = Stranger()
    return both.model, both.guide


def functions():
    """A pair of functions; one writes to variables that only it knows."""
    both, average, last = Stranger(), torch.zeros(16), torch.zeros(16)

    def guide(x, n=None):
        nonlocal last
        average.lerp_(x.flatten(1).mean(0), 0.1)
        last = last + 1
        both.guide(x)

    return both.model, guide


def ladder():
    model = LadderVAE(image=(1, 4, 4), z_dims=(4, 3), hidden_dims=(8, 7), batch_norm=True)
    return model, LadderGuide(model)


def counting(name):
    """A pair of the table each part of which counts its runs in a buffer, as batch normalisation does."""
    pair = PAIRS[name].build()
    for module in pair:
        for part in list(module.modules()):
            part.register_buffer("runs", torch.zeros(()))
            part.register_forward_pre_hook(count)
    return pair


def count(module, _):
    module.runs.add_(1)


def images(n):
    return torch.rand(n, 1, 4, 4).round()


VQ, AIR, TABLE, DRAWN = "vq-vae, running means", "air", "air in 3-d", "draw, windows, three channels"
BUILT = {
    "ladder": (ladder, images),
    "stranger": (stranger, images),
    "functions": (functions, images),
    **{name: (partial(counting, name), PAIRS[name].batch) for name in (VQ, AIR, TABLE, DRAWN)},
}
CODED = ("stranger", "functions")  # pairs with a site z
ALL = tuple(BUILT)


def solids(model, guide, x):
    return inspect.find_solids(guide, x)


LOOKS = {  # of each function the pairs that it can look at, and how it is called
    "check_pair": (ALL, lambda model, guide, x: inspect.check_pair(model, guide, x)),
    "graph": (ALL, lambda model, guide, x: inspect.graph(model, guide, x)),
    "site_table": (ALL, lambda model, guide, x: inspect.site_table(model, guide, x)),
    "reconstruct": (ALL, lambda model, guide, x: inspect.reconstruct(model, guide, x)),
    "sample": (ALL, lambda model, guide, x: inspect.sample(model, 3)),
    "sample_means": (ALL, lambda model, guide, x: inspect.sample_means(model, n=3)),
    "resample": (ALL, lambda model, guide, x: inspect.resample(model, guide, x, keep=[])),
    "posterior": (ALL, lambda model, guide, x: inspect.posterior(model, guide, x, 4, max_batch=8)),
    "predictive": (ALL, lambda model, guide, x: inspect.predictive(model, guide, x, 4, max_batch=8)),
    "prior": (ALL, lambda model, guide, x: inspect.prior(model, 4)),
    "weight_diagnostics": (
        ALL,
        lambda model, guide, x: inspect.weight_diagnostics(model, guide, x, 25, max_batch=50),
    ),
    "calibration": (
        ALL,
        lambda model, guide, x: inspect.calibration(model, guide, num_datasets=10, num_samples=1, num_bins=2),
    ),
    "gradient_noise": (
        ALL,
        lambda model, guide, x: [
            inspect.gradient_noise(model, guide, {"bound": TraceGraph_ELBO()}, x, 2, by=by) for by in ("module", "site")
        ],
    ),
    "infer_codes": ((VQ,), lambda model, guide, x: inspect.infer_codes(guide, x)),
    "interpolate": (CODED, lambda model, guide, x: inspect.interpolate(model, guide, x, x, 3)),
    "manifold": (CODED, lambda model, guide, x: inspect.manifold(model, guide, x, 3)),
    "traverse": (CODED, lambda model, guide, x: inspect.traverse(model, guide, x, units=2, steps=3)),
    "prior_and_aggregate_posterior": (
        CODED,
        lambda model, guide, x: inspect.prior_and_aggregate_posterior(model, guide, x),
    ),
    "generation_steps": ((DRAWN,), lambda model, guide, x: inspect.generation_steps(model, 3)),
    "reconstruction_steps": ((DRAWN,), lambda model, guide, x: inspect.reconstruction_steps(model, guide, x)),
    "infer_scenes": ((AIR,), lambda model, guide, x: inspect.infer_scenes(model, guide, x)),
    "drawn_boxes": ((AIR,), lambda model, guide, x: inspect.drawn_boxes(model, log_probs(model, guide, x)[2])),
    "sample_scenes": ((AIR,), lambda model, guide, x: inspect.sample_scenes(model, 3, 1)),
    "count_posterior": ((AIR, TABLE), lambda model, guide, x: inspect.count_posterior(guide, x)),
    "find_solids": ((TABLE,), lambda model, guide, x: inspect.find_solids(guide, x)),
    "sample_yaws": ((TABLE,), lambda model, guide, x: inspect.sample_yaws(model, guide, x, 3)),
    "render_solids": ((TABLE,), lambda model, guide, x: inspect.render_solids(model, solids(model, guide, x))),
    "log_joint": ((TABLE,), lambda model, guide, x: inspect.log_joint(model, x, solids(model, guide, x))),
    "refine_solids": ((TABLE,), lambda model, guide, x: inspect.refine_solids(model, x, solids(model, guide, x), 1)),
    "search_solids": ((TABLE,), lambda model, guide, x: inspect.search_solids(model, x, 1, 1)),
    "log_probs": (ALL, lambda model, guide, x: log_probs(model, guide, x)),
    "compiled_log_probs": (("ladder", VQ), lambda model, guide, x: twice(compiled_log_probs(model, guide), x)),
    "elbo_terms": (ALL, lambda model, guide, x: elbo_terms(partial(log_probs, model, guide), [x, x])),
    "importance_weighted": (ALL, lambda model, guide, x: importance_weighted(partial(log_probs, model, guide), [x], 2)),
    "nonfinite_sites": (ALL, lambda model, guide, x: nonfinite_sites(model, guide, x)),
    "evaluate_loss": (ALL, lambda model, guide, x: svi(model, guide).evaluate_loss(x)),
    "posterior_mean_variances": (ALL, lambda model, guide, x: posterior_mean_variances(guide, [x])),
    "active_units": (ALL, lambda model, guide, x: active_units(guide, [x])),
    "information": (CODED, lambda model, guide, x: elbo_surgery(model, guide, x)),
    "codebook_counts": ((VQ,), lambda model, guide, x: codebook_counts(guide, [x], 5)),
}


def twice(log_prob_fn, x):
    for _ in range(2):
        log_prob_fn(x)


def svi(model, guide):
    return SVI(model, guide, torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0))


def content(pair) -> tuple:
    """Everything that can be reached from a pair: values with which another content can be compared."""
    state = State(dict(enumerate(pair)))
    return state.signature, [tensor.detach().clone() for tensor in state.tensors], list(map(id, state.tensors))


def test_every_public_function_that_is_given_a_module_is_tried():
    given = {
        name
        for name in inspect.__all__
        if {"model", "guide"} & set(signatures.signature(getattr(inspect, name)).parameters) and name != "Graph"
    }
    assert given == LOOKS.keys() & set(inspect.__all__)


@pytest.mark.parametrize(("look", "name"), [(look, name) for look, (names, _) in LOOKS.items() for name in names])
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_looking_leaves_a_pair_as_it_is(look, name):
    build, batch = BUILT[name]
    pair, x = build(), batch(4)
    signature, values, tensors = content(pair)
    LOOKS[look][1](*pair, x)
    found = content(pair)
    assert found[0] == signature and found[2] == tensors
    assert all(map(torch.equal, found[1], values))
    assert len(pyro.get_param_store()) == 0


def test_evaluation_mode_stays_too():
    pair = tuple(module.eval() for module in ladder())
    before = content(pair)
    inspect.reconstruct(*pair, images(4))
    assert content(pair)[0] == before[0] and not any(module.training for module in pair)


def test_a_look_that_fails_puts_back_what_was_written():
    model, guide = stranger()
    before = content((model, guide))

    def fails(x=None, n=None):
        model(x, n)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        inspect.reconstruct(fails, guide, images(4))
    after = content((model, guide))
    assert after[0] == before[0] and all(map(torch.equal, after[1], before[1]))


def test_what_hooks_collect_stays():
    model, guide = ladder()
    collected = []
    guide.layers[0].register_forward_hook(lambda module, inputs, output: collected.append(output))
    inspect.reconstruct(model, guide, images(4))
    assert len(collected) == 1


def test_a_first_look_sets_a_guide_up():
    def model(x=None, n=None):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = AutoNormal(model)
    log_probs(model, guide, torch.randn(4, 2))
    assert len(list(guide.parameters())) == 2
    svi = SVI(model, guide, torch.optim.Adam(guide.parameters()))
    assert svi.step(torch.randn(4, 2)).isfinite()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_whose_loss_is_made_of_a_look_keeps_its_statistics(compiled):
    def loss(model, guide, x):
        log_p, log_q, _ = log_probs(model, guide, x)
        return sum(term.sum() for term in log_q.values()) - sum(term.sum() for term in log_p.values())

    model, guide = ladder()
    svi = SVI(model, guide, adam(model, guide, 1e-3), loss, compile=compiled)
    for _ in range(3):
        svi.step(images(6))
    assert all(int(m.num_batches_tracked) == 3 for m in guide.modules() if isinstance(m, nn.BatchNorm1d))


def test_what_was_looked_at_can_be_differentiated():
    model, guide = ladder()
    log_p, _, _ = log_probs(model, guide, images(6))
    log_p["x"].sum().backward()
    assert all(parameter.grad is not None for parameter in guide.parameters())


def test_statistics_can_still_be_settled():
    model, guide = ladder()
    recompute_batch_norm(model, guide, [images(6)])
    assert all(m.running_mean.any() for m in guide.modules() if isinstance(m, nn.BatchNorm1d))
