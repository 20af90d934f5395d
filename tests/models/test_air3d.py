"""AIR in three dimensions: its gradients against the sum over presences and kinds, and its poses against the truth."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.nn import pyro_method

from guides import AIR3DGuide
from guides.systems.air3d import tabletop_metrics
from pplmodels import AIR3D
from pplmodels.data import make_tabletop_scenes
from pplmodels.distributions import WrappedNormal
from pplmodels.distributions.wrapped_normal import wrapped
from pplmodels.errors import InputError
from pplmodels.infer import NVIL_ELBO, SVI, SummedOut_ELBO
from pplmodels.inspect import (
    Solids,
    find_solids,
    render_solids,
    sample_yaws,
    sampled_solids,
    solid_metrics,
    true_solids,
    yaw_errors,
)
from pplmodels.metrics import log_probs
from pplmodels.nn.renderer import KINDS, PERIODS
from pplmodels.testing import Pair

PAIRS = {
    "air in 3-d": Pair(
        model=lambda: AIR3D(image=(8, 10), num_steps=2),
        guide=lambda model: AIR3DGuide(image=(8, 10), num_steps=2, channels=2, hidden_dim=8),
        batch=lambda n: torch.rand(n, 3, 8, 10),
        stops=True,
        choices=True,
        exact=False,
    ),
}
SIZES = {"image": (8, 8), "num_steps": 2}
PLACE, YAW = (0.1, -0.2), 0.4
OUTCOMES = [(), *((k,) for k in range(4)), *((k, j) for k in range(4) for j in range(4))]


class FixedGuide(AIR3DGuide):
    """The guide with its poses at fixed values: only z_pres and z_kind are random."""

    @pyro_method
    def q_z_place(self, features, seen):
        return dist.Delta(torch.tensor(PLACE).expand((*features.shape[:-1], 2)) + 0 * features[..., :2], event_dim=1)

    @pyro_method
    def q_z_yaw(self, features):
        return dist.Delta(torch.tensor(YAW).expand(features.shape[:-1]))


def log_prob(module, x, values):
    trace = poutine.trace(poutine.condition(module, data=values)).get_trace(x)
    trace.compute_log_prob()
    return sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and site["name"] != "data")


def outcome(kinds):
    """The values of all sites where as many solids as ``kinds`` are there; what is masked is anything."""
    values = {}
    for t in (1, 2):
        values[f"z_pres_{t}"] = torch.full((1,), float(t <= len(kinds)))
        values[f"z_kind_{t}"] = torch.tensor([kinds[t - 1] if t <= len(kinds) else 0])
        values[f"z_place_{t}"], values[f"z_yaw_{t}"] = torch.tensor([PLACE]), torch.tensor([YAW])
    return values


def exact_bound(model, guide, x):
    """The bound as a sum over the 1 + 4 + 16 values of presences and kinds."""
    bound = 0.0
    for kinds in OUTCOMES:
        values = outcome(kinds)
        log_q = log_prob(guide, x, values).sum()
        bound = bound + log_q.exp() * (log_prob(model, x, values).sum() - log_q)
    return bound


@pytest.fixture
def exact(float64):
    """A pair with fixed poses, a picture, the bound and its gradient in the guide's weights."""
    pyro.set_rng_seed(3)
    # at this scale a perfect pixel is worth 0 nats, and costs do not all share a large number
    model = AIR3D(**SIZES, pixel_scale=1 / math.sqrt(2 * math.pi), log_k=math.log(0.5))
    guide = FixedGuide(**SIZES, channels=2, hidden_dim=8, presence_bias=0.3, log_k=math.log(0.5))
    for baseline in (guide.baseline, guide.kind_baseline):
        baseline.signal_std = lambda: torch.ones(())
    x = make_tabletop_scenes(1, counts=(2,), size=(8, 8))[:].double()
    parameters = [p for name, p in guide.named_parameters() if "baseline" not in name]
    bound = exact_bound(model, guide, x)
    gradient = torch.autograd.grad(bound, parameters, allow_unused=True)
    wanted = torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, gradient, strict=True)]
    )
    return model, guide, x, parameters, bound.detach(), wanted


def estimate(model, guide, x, parameters, loss):
    baselines = [p for name, p in guide.named_parameters() if "baseline" in name]
    engine = SVI(model, guide, torch.optim.SGD([*parameters, *baselines], lr=0.0), loss)
    value, images, gradients = engine.gradients(x)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=False)]
    return -value, -torch.cat([g.flatten() for g in flat]) / images


def test_summed_out_bound_and_gradient_are_exact(exact):
    model, guide, x, parameters, bound, wanted = exact
    found = estimate(model, guide, x, parameters, SummedOut_ELBO())
    torch.testing.assert_close(found[0], bound, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "loss", [pytest.param(TraceGraph_ELBO, marks=pytest.mark.slow), NVIL_ELBO, partial(SummedOut_ELBO, choices=False)]
)
def test_the_mean_gradient_is_the_gradient_of_the_sum(exact, loss):
    """Along itself and four random directions, within 4.5 standard errors over 14 x 1,000 samples."""
    model, guide, x, parameters, bound, wanted = exact
    directions = torch.cat([wanted[None], torch.randn(4, len(wanted))])
    directions = directions / directions.norm(dim=1, keepdim=True)
    many = x.expand(1000, *x.shape[1:])
    pairs = [estimate(model, guide, many, parameters, loss()) for _ in range(14)]
    bounds = torch.stack([value for value, _ in pairs])
    assert abs(bounds.mean() - bound) < 4.5 * bounds.std() / 14**0.5
    slopes = torch.stack([directions @ gradient for _, gradient in pairs])
    error = slopes.std(0) / 14**0.5
    assert ((slopes.mean(0) - directions @ wanted).abs() < 4.5 * error).all()
    assert wanted.norm() > 9 * error[0]  # a gradient of 0 would not do


def test_a_choice_that_something_depends_on_is_refused():
    class Dependent(AIR3DGuide):
        def forward(self, x=None, n=None):
            with pyro.plate("data", len(x)):
                there = pyro.sample("z_pres_1", dist.Bernoulli(torch.full((len(x),), 0.5)), infer={"stop": True}) > 0
                even = dist.Categorical(torch.ones(len(x), 4))
                kind = pyro.sample("z_kind_1", even.mask(there), infer={"choice": True})
                pyro.sample(
                    "z_place_1", dist.Normal(torch.zeros(len(x), 2), 1.0 + kind[:, None]).to_event(1).mask(there)
                )
                pyro.sample("z_yaw_1", WrappedNormal(torch.zeros(len(x)), 1.0).mask(there))

    model, guide = AIR3D(image=(8, 8), num_steps=1), Dependent(image=(8, 8))
    with pytest.raises(ValueError, match="site z_place_1 of the guide depends on a choice"):
        SummedOut_ELBO().loss(model, guide, torch.rand(3, 3, 8, 8))


@pytest.mark.parametrize("loss", [TraceGraph_ELBO, NVIL_ELBO])
def test_the_kind_of_what_is_not_there_has_no_gradient(loss):
    model, guide = AIR3D(**SIZES), AIR3DGuide(**SIZES, presence_bias=-30.0, presence_limit=60.0)
    loss().loss_and_grads(model, guide, torch.rand(5, 3, 8, 8))
    assert guide.presence.weight.grad.abs().max() > 0
    assert guide.kind.weight.grad.abs().max() == 0


def test_stopped_steps_add_nothing(float64):
    model, guide = AIR3D(**SIZES), AIR3DGuide(**SIZES, channels=2, hidden_dim=8)
    x = torch.rand(1, 3, 8, 8)
    for kinds in OUTCOMES[:2]:
        values, other = outcome(kinds), outcome(kinds)
        other["z_kind_2"] += 1
        other["z_place_2"] = other["z_place_2"] + 1
        other["z_yaw_2"] = other["z_yaw_2"] - 1
        for module in (model, guide):
            assert torch.equal(log_prob(module, x, values), log_prob(module, x, other))


def test_a_scene_without_solids_is_the_table():
    model = AIR3D(log_k=-1e4)
    drawn = model(n=200)
    torch.testing.assert_close(drawn.mean(0), model.renderer.empty(), atol=5 * 0.1 / 200**0.5, rtol=0)


def test_a_patch_covers_a_solid_and_spares_its_neighbour(float64):
    guide, model = AIR3DGuide(), AIR3D()
    tables = make_tabletop_scenes(300, counts=(2,), seed=5)
    both = true_solids(tables)
    both = Solids(both.count, both.kind, both.place.double(), both.yaw.double())
    second = Solids(both.count - 1, both.kind.flip(1), both.place.flip(1), both.yaw.flip(1))
    left = guide.erase(render_solids(model, both), both.place[:, 0])
    off = (left - render_solids(model, second)).abs().mean((1, 2, 3))
    was = (render_solids(model, both) - render_solids(model, second)).abs().mean((1, 2, 3))
    assert off.median() < 0.2 * was.median()


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_the_pose_of_a_noise_free_scene_is_recovered_from_near_the_truth(kind, float64):
    """By gradient steps on the likelihood from 6 % of the table and 20 degrees away."""
    model = AIR3D(num_steps=2)
    kinds = torch.tensor([[kind, (kind + 2) % 4]])
    place, yaw = torch.tensor([[[0.1, -0.3], [-0.3, 0.4]]]), torch.tensor([[0.5, -2.0]])
    x = model.render(torch.ones(1, 2), kinds, place, yaw)
    pose = [place + torch.tensor([0.08, -0.09]), yaw + math.radians(20)]
    for value in pose:
        value.requires_grad_()
    optim = torch.optim.Adam(pose, lr=0.02)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 250)
    for _ in range(250):
        optim.zero_grad()
        (model.render(torch.ones(1, 2), kinds, *pose) - x).square().sum().backward()
        optim.step()
        rate.step()
    assert (pose[0] - place).abs().max() < 2e-3
    for index, k in enumerate(kinds[0]):
        if PERIODS[int(k)]:
            assert abs(float(wrapped(pose[1].detach() - yaw)[0, index])) < 0.01


def test_yaw_errors_respect_symmetry(float64):
    true, quarter = torch.zeros(4), torch.full((4,), math.pi / 2 + 0.1)
    error = yaw_errors(quarter, true, torch.arange(4))
    assert math.isnan(error[0])
    torch.testing.assert_close(error[1:], torch.tensor([0.1, math.pi / 2 + 0.1, math.pi / 2 + 0.1]))
    torch.testing.assert_close(yaw_errors(true + 2 * math.pi - 0.1, true, torch.full((4,), 2)), true + 0.1)


def test_metrics_match_solids_in_any_order(float64):
    tables = make_tabletop_scenes(60, seed=2)
    true = true_solids(tables)
    perfect = solid_metrics(true, true)
    assert perfect["kind_accuracy"] == perfect["count_accuracy_argmax"] == 1
    assert perfect["place_error_percent"] == perfect["yaw_error_degrees"] == 0
    order = torch.stack([torch.cat([torch.randperm(n), torch.arange(n, 3)]) for n in true.count.tolist()])
    shuffled = Solids(
        true.count,
        true.kind.gather(1, order),
        true.place.gather(1, order[..., None].expand(-1, -1, 2)) + torch.tensor([0.03, 0.04]),
        true.yaw.gather(1, order) + math.radians(3),
    )
    found = solid_metrics(true, shuffled)
    assert found["kind_accuracy"] == 1
    assert found["place_error_percent"] == pytest.approx(2.5, rel=1e-5)  # 0.05 of a side of 2
    assert found["yaw_error_degrees"] == pytest.approx(3, rel=1e-4)
    assert found["place_error_percent_p90"] == pytest.approx(2.5, rel=1e-5)
    assert found["yaw_error_degrees_p90"] == pytest.approx(3, rel=1e-4)
    fewer = Solids((true.count - 1).clamp(min=0), true.kind, true.place, true.yaw)
    assert solid_metrics(true, fewer)["count_accuracy_argmax"] == float((true.count == 0).double().mean())
    none = Solids(true.count * 0, true.kind, true.place, true.yaw)
    assert solid_metrics(true, none).keys() == {"count_accuracy_argmax", "kind_recall"}
    assert solid_metrics(true, none)["kind_recall"] == 0
    assert set(solid_metrics(none, true)) == {"count_accuracy_argmax"}


def test_a_missed_solid_has_the_wrong_kind(float64):
    """Of three true solids one is missed and one has another kind; the second scene has a superfluous solid."""
    place = torch.tensor([[[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]])
    kind = torch.tensor([[1, 2, 3], [1, 0, 0]])
    true = Solids(torch.tensor([3, 0]), kind, place, torch.zeros(2, 3))
    found = Solids(torch.tensor([2, 1]), torch.tensor([[1, 0, 0], [1, 0, 0]]), place, torch.zeros(2, 3))
    metrics = solid_metrics(true, found)
    assert metrics["kind_recall"] == pytest.approx(1 / 3) and metrics["kind_accuracy"] == 1 / 2


def test_medians_and_90th_percentiles_of_errors(float64):
    """Eleven scenes of one cylinder, whose errors are 0, 1, ... 10 percent of the side and degrees."""
    errors = torch.arange(11.0)[torch.randperm(11)]
    kind = torch.full((11, 1), KINDS.index("cylinder"))
    true = Solids(torch.ones(11).long(), kind, torch.zeros(11, 1, 2), torch.zeros(11, 1))
    place = torch.stack([errors / 50, torch.zeros(11)], -1)[:, None]
    metrics = solid_metrics(true, Solids(true.count, kind, place, errors.deg2rad()[:, None]))
    for name in ("place_error_percent", "yaw_error_degrees"):
        assert metrics[name] == pytest.approx(5) and metrics[f"{name}_p90"] == pytest.approx(9)
    assert metrics["yaw_error_degrees_p90/cylinder"] == pytest.approx(9)


def test_every_measure_of_solids_is_taken_at_the_mode_and_of_one_sample():
    torch.manual_seed(0)
    model, guide = AIR3D(image=(16, 16), num_steps=2), AIR3DGuide(image=(16, 16), num_steps=2, channels=2, hidden_dim=8)
    tables = make_tabletop_scenes(80, counts=(0, 1, 2), size=(16, 16))
    drawn = []

    def recorded(x):
        drawn.append(log_probs(model, guide, x))
        return drawn[-1]

    metrics = tabletop_metrics(recorded, guide, tables)
    true, (sample,) = true_solids(tables), [sampled_solids(latents) for _, _, latents in drawn]
    for prefix, solids in (("", find_solids(guide, tables[:])), ("sampled_", sample)):
        expected = solid_metrics(true, solids)
        assert expected["count_accuracy_argmax"] == metrics["count_accuracy_argmax" if not prefix else "count_accuracy"]
        del expected["count_accuracy_argmax"]
        assert {"kind_recall", "place_error_percent_p90"} <= expected.keys()
        for name, value in expected.items():
            assert metrics[f"{prefix}{name}"] == (pytest.approx(value) if isinstance(value, float) else value)
    assert metrics["kind_recall"] != metrics["sampled_kind_recall"]
    assert len(metrics["reliability/share"]) == 10


def test_what_is_found_is_the_same_every_time_and_yaws_are_not():
    guide, model = AIR3DGuide(channels=2, hidden_dim=8), AIR3D()
    x = make_tabletop_scenes(6)[:]
    one, other = (find_solids(guide, x) for _ in range(2))
    assert torch.equal(one.place, other.place) and torch.equal(one.count, other.count)
    yaws = sample_yaws(model, guide, x, 20)
    assert yaws.shape == (6, 20) and yaws.std(1).min() > 0.01


def test_tables_are_drawn_from_the_prior_and_apart():
    tables = make_tabletop_scenes(1000, seed=1)
    again = make_tabletop_scenes(1000, seed=1)
    assert torch.equal(tables.pixels, again.pixels) and tables.pixels.dtype == torch.uint8
    assert not torch.equal(tables.pixels, make_tabletop_scenes(1000, seed=2).pixels)
    shares = tables.counts.bincount() / 1000
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 1000) ** 0.5
    assert tables.part(slice(7)).place.shape == (7, 3, 2) and len(tables.head(7)) == 7
    three = tables.part(tables.counts == 3)
    distance = torch.cdist(three.place, three.place) + 9 * torch.eye(3)
    assert distance.min() >= 0.7 and three.place.abs().max() <= 0.9
    rendered = render_solids(AIR3D(), true_solids(tables))
    assert (rendered - tables[:]).abs().mean() < 0.05  # noise and another light


def test_solids_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        make_tabletop_scenes(3, counts=(30,))
