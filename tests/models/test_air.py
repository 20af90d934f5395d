"""AIR by hand: the prior over counts, what a stopped step is worth, and the sum over z_pres."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.nn import pyro_method

from guides import AIRGuide, DAIRGuide
from guides.systems.air import gradient_health
from pplmodels import AIR, AIR3D
from pplmodels.data import Images
from pplmodels.infer import SVI, PerSite_ELBO, adam
from pplmodels.infer.traces import local_params
from pplmodels.inspect import count_objects, count_posterior, decided_counts, sample_scenes
from pplmodels.metrics import log_probs
from pplmodels.models.air import BACKGROUND_MODELS, COARSE
from pplmodels.nn import write_window
from pplmodels.systems.counting import _collapse, scene_metrics
from pplmodels.testing import Pair

AIR_SIZES = {"canvas": (1, 10, 10), "num_steps": 2, "what_dim": 3, "window": 5}
SCENE = {"background_model": "scene", "background_dim": 3}
AIR_WIDTHS = {"attention_channels": 6, "embed_dim": 8, "hidden_dim": 8, "predict_dim": 8, "encoder_dims": (8,)}
PAIRS = {
    "air": Pair(
        model=lambda: AIR(**AIR_SIZES, hidden_dims=(8,)),
        guide=lambda model: AIRGuide(**AIR_SIZES, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 1, 10, 10),
        stops=True,
    ),
    "air, residual": Pair(
        model=lambda: AIR(**AIR_SIZES, hidden_dims=(8,)),
        guide=lambda model: DAIRGuide(model, **AIR_SIZES, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 1, 10, 10),
        stops=True,
    ),
    "air, background per scene, occlusion": Pair(
        model=lambda: AIR(
            **AIR_SIZES, **SCENE, background_patterns=2, hidden_dims=(8,), occlusion=True, learn_pixel_scale=True
        ),
        guide=lambda model: AIRGuide(**AIR_SIZES, **AIR_WIDTHS, **SCENE),
        batch=lambda n: torch.rand(n, 1, 10, 10),
        stops=True,
    ),
    "air, residual, common background": Pair(
        model=lambda: AIR(**AIR_SIZES, hidden_dims=(8,), background_model="common"),
        guide=lambda model: DAIRGuide(model, **AIR_SIZES, **AIR_WIDTHS, background_model="common"),
        batch=lambda n: torch.rand(n, 1, 10, 10),
        stops=True,
    ),
    "air, three channels, wide canvas": Pair(
        model=lambda: AIR(canvas=(3, 8, 12), num_steps=2, what_dim=3, window=5),
        guide=lambda model: AIRGuide(canvas=(3, 8, 12), num_steps=2, what_dim=3, window=5, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 3, 8, 12),
        stops=True,
    ),
}
COUNTS = {0: (0.0, 0.0), 1: (1.0, 0.0), 2: (1.0, 1.0)}


class FixedGuide(AIRGuide):
    """AIR's guide with its continuous sites at fixed values: only z_pres is random."""

    @pyro_method
    def q_z_where(self, features, point):
        return dist.Delta(torch.tensor([-0.4, 0.2, -0.1]).expand((*features.shape[:-1], 3)), event_dim=1)

    @pyro_method
    def q_z_what(self, glimpse):
        return dist.Delta(torch.tensor([0.5, -1.0, 0.3]).expand((*glimpse.shape[:-3], 3)), event_dim=1)


def presence(z_pres, n=1):
    return {f"z_pres_{t}": torch.full((n,), z) for t, z in enumerate(z_pres, start=1)}


def log_prob(module, x, values):
    """log-probability of each image with some sites at given values, all sites added up."""
    trace = poutine.trace(poutine.condition(module, data=values)).get_trace(x)
    trace.compute_log_prob()
    return sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and site["name"] != "data")


@pytest.mark.parametrize("k", [0.3, 1.0, 5.0, 1e-6])
def test_the_prior_over_counts_is_geometric(float64, k):
    model = AIR(**{**AIR_SIZES, "num_steps": 4}, log_k=math.log(k))
    rho = model.presence_logits().sigmoid()
    counts = [rho[:n].prod() * (1 - rho[n] if n < 4 else 1) for n in range(5)]
    expected = torch.tensor([k**n for n in range(5)])
    torch.testing.assert_close(torch.stack(counts), expected / expected.sum(), rtol=1e-9, atol=0)


def latents_of(model, number):
    with pyro.plate("data", number):
        return model.latents(number)


def test_drawn_counts_follow_the_prior():
    model = AIR(**AIR_SIZES, log_k=math.log(0.5))
    counts = latents_of(model, 20_000)[0].sum(-1).long().bincount() / 20_000
    torch.testing.assert_close(counts, torch.tensor([4 / 7, 2 / 7, 1 / 7]), atol=0.015, rtol=0)  # 4 standard errors


def test_presence_never_returns():
    model = AIR(**{**AIR_SIZES, "num_steps": 5}, log_k=0.0)
    z_pres = latents_of(model, 2000)[0]
    assert (z_pres[:, 1:] <= z_pres[:, :-1]).all()


def test_a_scene_without_objects_is_exactly_black():
    model = AIR(**AIR_SIZES, log_k=-1e4)
    latents = latents_of(model, 10)
    assert not latents[0].any()
    assert torch.equal(model.render(*latents), torch.zeros(10, 1, 10, 10))


def test_stopped_steps_add_nothing(float64):
    """With n objects, the latents after the n-th change neither log p nor log q, and get no gradient."""
    model, guide = AIR(**AIR_SIZES), AIRGuide(**AIR_SIZES, **AIR_WIDTHS)
    x = torch.rand(3, 1, 10, 10)
    for n, z_pres in COUNTS.items():
        values = []
        for seed in (1, 2):
            torch.manual_seed(7)
            stopped = {
                f"{site}_{t}": (torch.randn(3, size, generator=torch.Generator().manual_seed(seed))).requires_grad_()
                for t in range(n + 1, 3)
                for site, size in (("z_where", 3), ("z_what", 3))
            }
            found = {
                f"{site}_{t}": 0.3 * torch.ones(3, size)
                for t in range(1, n + 1)
                for site, size in (("z_where", 3), ("z_what", 3))
            }
            values.append(
                [log_prob(module, x, {**presence(z_pres, 3), **found, **stopped}) for module in (model, guide)]
            )
            total = sum(value.sum() for value in values[-1])
            if stopped:
                gradients = torch.autograd.grad(total, list(stopped.values()), allow_unused=True)
                assert all(g is None or not g.any() for g in gradients)
        for first, second in zip(*values, strict=True):
            assert torch.equal(first, second)


def test_a_count_costs_what_the_prior_says(float64):
    """Sites of a stopped step are worth exactly 0, so z_pres sites add up to log p(n)."""
    model = AIR(**AIR_SIZES, log_k=math.log(0.01))
    for n, z_pres in COUNTS.items():
        trace = poutine.trace(poutine.condition(model, data=presence(z_pres))).get_trace(n=1)
        trace.compute_log_prob()
        log_p = sum(trace.nodes[f"z_pres_{t}"]["log_prob"] for t in (1, 2))
        assert float(log_p) == pytest.approx(n * math.log(0.01) - math.log(1 + 0.01 + 0.0001), rel=1e-9)


def exact_bound(model, guide, x, **certain):
    """The bound as a sum over the three values of (z_pres_1, z_pres_2). ``certain`` are values of further sites."""
    bound = 0.0
    for z_pres in COUNTS.values():
        values = presence(z_pres)
        log_q = sum(
            poutine.trace(poutine.condition(guide, data=values)).get_trace(x).nodes[site]["fn"].log_prob(value).sum()
            for site, value in values.items()
        )
        latents = {f"z_where_{t}": torch.tensor([[-0.4, 0.2, -0.1]]) for t in (1, 2)}
        latents |= {f"z_what_{t}": torch.tensor([[0.5, -1.0, 0.3]]) for t in (1, 2)} | certain
        bound = bound + log_q.exp() * (log_prob(model, x, {**values, **latents}).sum() - log_q)
    return bound


def test_summed_out_is_the_sum_with_a_background_and_occlusion(float64):
    """The bound as a sum over counts, by conditioning on each, with a certain z_background."""

    class CertainBackground(FixedGuide):
        @pyro_method
        def q_z_background(self, x, embedding):
            return dist.Delta(torch.tensor([0.3, -0.2, 0.5]).expand((*embedding.shape[:-1], 3)), event_dim=1)

    model = AIR(**AIR_SIZES, **SCENE, hidden_dims=(8,), occlusion=True, learn_pixel_scale=True)
    guide = CertainBackground(**AIR_SIZES, **AIR_WIDTHS, **SCENE, presence_bias=0.3, log_k=0.0)
    x = torch.rand(1, 1, 10, 10)
    with local_params():
        bound = exact_bound(model, guide, x, z_background=torch.tensor([[0.3, -0.2, 0.5]]))
    learned = [*model.parameters(), *guide.parameters()]
    exact = [-g for g in torch.autograd.grad(bound, learned, allow_unused=True, materialize_grads=True)]
    svi = SVI(model, guide, torch.optim.SGD(learned, lr=0.0), PerSite_ELBO(estimators={"z_pres": "enum"}))
    assert float(-svi.step(x.expand(3, 1, 10, 10))) == pytest.approx(float(bound.detach()), rel=1e-10)
    for p, wanted in zip(learned, exact, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad / 3
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("baseline", [True, False], ids=["baseline", "no baseline"])
@pytest.mark.parametrize(
    "loss",
    [
        TraceGraph_ELBO,
        PerSite_ELBO,
        partial(PerSite_ELBO, estimators={"z_pres": "rloo"}, num_particles=2, max_plate_nesting=1),
        partial(PerSite_ELBO, estimators={"z_pres": "mvd"}),
    ],
    ids=["tracegraph", "reinforce", "rloo", "mvd"],
)
def test_the_mean_gradient_is_the_gradient_of_the_sum(float64, baseline, loss):
    """All gradients of model and guide, along random directions, within 4.5 standard errors over 40 x 1,000 samples.

    Signals are normalized with a scale of 1, where the gradient has to be unbiased too.
    """
    model = AIR(**AIR_SIZES, hidden_dims=(8,), log_k=math.log(0.2))
    guide = FixedGuide(**AIR_SIZES, **AIR_WIDTHS, presence_bias=0.3, log_k=0.0)
    guide.baseline.signal_std = lambda: torch.ones(())
    x = torch.rand(1, 1, 10, 10) * 0.4
    sampled = (
        guide if baseline else poutine.infer_config(guide, lambda site: {"baseline": {}, "score_normalizer": None})
    )
    learned = [*model.parameters(), *(p for name, p in guide.named_parameters() if "baseline" not in name)]
    with local_params():
        bound = exact_bound(model, guide, x)
    exact = torch.autograd.grad(bound, learned, allow_unused=True)
    used = [p for p, g in zip(learned, exact, strict=True) if g is not None]
    exact = [g for g in exact if g is not None]
    assert {id(p) for p in (guide.presence.bias, guide.lstm.recurrent.weight, *model.parameters())} <= {
        id(p) for p in used
    }
    directions = [[torch.randn_like(g) / g.numel() ** 0.5 for g in exact] for _ in range(20)]

    svi = SVI(model, sampled, torch.optim.SGD([*used, *guide.baseline.parameters()], lr=0.0), loss())
    samples, bounds = [], []
    for _ in range(40):
        bounds.append(-svi.step(x.expand(1000, 1, 10, 10)))
        samples.append([sum((d * -p.grad).sum() / 1000 for d, p in zip(ds, used, strict=True)) for ds in directions])
    expected = torch.tensor([sum((d * g).sum() for d, g in zip(ds, exact, strict=True)) for ds in directions])
    samples, bounds = torch.tensor(samples), torch.stack(bounds)
    for values, wanted in ((samples, expected), (bounds, bound.detach())):
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - wanted).abs() < 4.5 * error).all()
    assert (expected.abs() > 10 * samples.std(0) / 40**0.5).any()  # the test has power: some direction is far from 0


def test_summed_out_is_the_sum(float64):
    """Bound and every gradient, exactly, where the continuous sites are certain."""
    model = AIR(**AIR_SIZES, hidden_dims=(8,), log_k=math.log(0.2))
    guide = FixedGuide(**AIR_SIZES, **AIR_WIDTHS, presence_bias=0.3, log_k=0.0)
    x = torch.rand(1, 1, 10, 10) * 0.4
    with local_params():
        bound = exact_bound(model, guide, x)
    learned = [*model.parameters(), *guide.parameters()]
    exact = [-g for g in torch.autograd.grad(bound, learned, allow_unused=True, materialize_grads=True)]
    svi = SVI(model, guide, torch.optim.SGD(learned, lr=0.0), PerSite_ELBO(estimators={"z_pres": "enum"}))
    assert float(-svi.step(x.expand(3, 1, 10, 10))) == pytest.approx(float(bound.detach()), rel=1e-10)
    for p, wanted in zip(learned, exact, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad / 3
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_the_residual_guide_sees_what_is_not_yet_drawn():
    model = AIR(**AIR_SIZES)
    guide = DAIRGuide(model, **AIR_SIZES, **AIR_WIDTHS)
    seen = []
    guide.embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(4, 1, 10, 10)
    trace = poutine.trace(poutine.condition(guide, data=presence([1.0, 1.0], 4))).get_trace(x)
    first, second = seen
    torch.testing.assert_close(first, x.flatten(1))
    drawn = model.render(
        torch.ones(4, 1), trace.nodes["z_where_1"]["value"][:, None], trace.nodes["z_what_1"]["value"][:, None]
    )
    torch.testing.assert_close(second, (x - drawn).flatten(1))
    assert drawn.abs().sum() > 0


def one_scene(model, n_background=3):
    """Latents of a scene whose two objects overlap: z_where (1, 2, 3), z_what (1, 2, D), z_background (1, G)."""
    z_where = torch.tensor([[[-0.6, 0.1, 0.0], [-0.5, -0.1, 0.2]]])
    return z_where, torch.randn(1, 2, model.what_dim), torch.randn(1, n_background)


def test_later_objects_hide_what_is_below_them(float64):
    """Pixel by pixel, from the images and masks of the windows."""
    model = AIR(**AIR_SIZES, **SCENE, occlusion=True)
    z_where, z_what, z_background = one_scene(model)
    canvas = model.ground(z_background)
    expected = [canvas]
    for t in range(2):
        image = model.decoder(z_what[:, t]).sigmoid().view(1, 2, 5, 5)
        mask = write_window(image[:, 1:], z_where[:, t], 10, 10)
        color = write_window(image[:, :1] * image[:, 1:], z_where[:, t], 10, 10)
        canvas = (1 - mask) * canvas + color
        expected.append(canvas)
    assert (expected[2] - expected[1]).abs().max() > 1e-3
    for n, z_pres in COUNTS.items():
        found = model.render(torch.tensor([z_pres]), z_where, z_what, z_background)
        torch.testing.assert_close(found, expected[n])


def test_an_opaque_object_does_not_show_the_background(float64):
    model = AIR(**AIR_SIZES, **SCENE, occlusion=True, decoder_bias=50.0)
    z_where, z_what, _ = one_scene(model)
    z_where[..., 0] = 1.0  # windows larger than the canvas
    canvases = [model.render(torch.ones(1, 2), z_where, z_what, torch.randn(1, 3)) for _ in range(2)]
    torch.testing.assert_close(*canvases)


@pytest.mark.parametrize("occlusion", [False, True])
@pytest.mark.parametrize("background_model", BACKGROUND_MODELS)
def test_all_counts_at_once_are_each_count_alone(float64, background_model, occlusion):
    model = AIR(**AIR_SIZES, background_model=background_model, background_dim=3, occlusion=occlusion)
    z_where, z_what, z_background = one_scene(model)
    z_background = z_background if background_model == "scene" else None
    z_pres = torch.tensor(list(COUNTS.values()))[:, None]  # (3, 1, 2)
    together = model.render(z_pres, z_where, z_what, z_background)
    assert together.shape == (3, 1, 1, 10, 10)
    for n, scene in enumerate(together):
        torch.testing.assert_close(scene, model.render(z_pres[n], z_where, z_what, z_background))
    torch.testing.assert_close(together[0], model.ground(z_background).expand(1, 1, 10, 10))


def test_a_background_is_smooth_and_differs_between_scenes():
    """Its grid of 4x4 points cannot represent an object: second differences vanish between the points."""
    model = AIR(canvas=(3, 40, 40), background_model="scene")
    ground = model.ground(torch.randn(5, 8))
    assert (ground[0] - ground[1]).abs().max() > 1e-3
    bends = ground.diff(n=2, dim=-1).abs() > 1e-4
    assert 0 < bends.any(-2).flatten(0, 1).any(0).sum() <= 2 * (COARSE - 2)  # the columns at the inner points


def a_start(model, guide):
    """Start both from a picture and two orthogonal patterns; returns them."""
    picture = torch.rand(1, 10, 10)
    rows = torch.linalg.qr(torch.randn(100, 2))[0].T * torch.tensor([[2.0], [0.5]])
    patterns = rows.view(2, 1, 10, 10)
    model.start_from(picture, patterns)
    guide.start_from(picture, patterns, model.pixel_scale)
    return picture, patterns


def test_a_background_starts_as_the_combination_of_patterns(float64):
    model = AIR(**AIR_SIZES, **SCENE, background_patterns=2)
    picture, patterns = a_start(model, AIRGuide(**AIR_SIZES, **AIR_WIDTHS, **SCENE))
    z_background = torch.randn(5, 3)
    expected = picture + torch.einsum("bp,pchw->bchw", z_background[:, :2], patterns)
    torch.testing.assert_close(model.ground(z_background), expected)


@pytest.mark.parametrize("residual", [False, True])
def test_the_guide_of_the_background_starts_as_the_exact_posterior_without_objects(float64, residual):
    """Bayes' rule for a linear normal model, from its joint covariance."""
    model = AIR(**AIR_SIZES, **SCENE, background_patterns=2)
    sizes = {**AIR_SIZES, **AIR_WIDTHS, **SCENE}
    guide = DAIRGuide(model, **sizes) if residual else AIRGuide(**sizes)
    picture, patterns = a_start(model, guide)
    x = torch.rand(7, 1, 10, 10)
    rows = patterns.flatten(1)
    of_pixels = rows.T @ rows + model.pixel_scale**2 * torch.eye(100)
    gain = rows @ of_pixels.inverse()
    found = guide.q_z_background(x, guide.embed(x.flatten(1))).base_dist
    torch.testing.assert_close(found.loc[:, :2], (x - picture).flatten(1) @ gain.T)
    covariance = torch.eye(2) - gain @ rows.T
    torch.testing.assert_close(found.scale[0, :2].square().diag(), covariance)
    z_background = torch.cat([found.loc[:, :2], torch.zeros(7, 1)], 1)
    torch.testing.assert_close(guide.canvas_before(z_background), model.ground(z_background))


@pytest.mark.parametrize("background_model, patterns", [("scene", 4), ("scene", -1), ("common", 1)])
def test_patterns_need_a_latent_each(background_model, patterns):
    with pytest.raises(ValueError, match=f"background_patterns must be from 0 .* not {patterns}"):
        AIR(**AIR_SIZES, background_model=background_model, background_dim=3, background_patterns=patterns)


def test_the_common_background_is_learned_as_the_mean_of_empty_scenes():
    model = AIR(**AIR_SIZES, background_model="common", log_k=-1e4)
    x = torch.rand(1, 10, 10).clamp(0.1, 0.9)
    optim = torch.optim.Adam([model.picture], lr=0.1)
    for _ in range(300):
        optim.zero_grad()
        (model.render(torch.zeros(1, 2), *one_scene(model)[:2]) - x).square().sum().backward()
        optim.step()
    torch.testing.assert_close(model.ground(), x, atol=1e-2, rtol=0)


def test_a_learned_pixel_deviation_is_the_deviation_of_the_pixels(float64):
    """The optimum of the likelihood is the standard deviation around the canvas."""
    model = AIR(**AIR_SIZES, learn_pixel_scale=True, log_k=-1e4)
    x = 0.2 * torch.randn(200, 1, 10, 10)
    optim = torch.optim.Adam([model.log_pixel_scale], lr=0.05)
    for _ in range(300):
        optim.zero_grad()
        z_where, z_what, _ = one_scene(model)
        (-model.p_x(torch.zeros(1, 2), z_where, z_what).log_prob(x).mean()).backward()
        optim.step()
    torch.testing.assert_close(model.pixel_scale, x.square().mean().sqrt(), rtol=1e-3, atol=0)


def test_a_learned_pixel_deviation_starts_above_its_minimum():
    with pytest.raises(ValueError, match=r"a learned pixel_scale starts above 0\.1, not from 0\.05"):
        AIR(pixel_scale=0.05, learn_pixel_scale=True)


def test_a_background_per_scene_needs_its_latent():
    with pytest.raises(ValueError, match="give z_background"):
        AIR(**AIR_SIZES, **SCENE).ground()


def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match="background_model is one of none, common, scene, not 'blue'"):
        AIR(background_model="blue")


def test_the_residual_guide_owns_none_of_the_models_parameters():
    model = AIR(**AIR_SIZES)
    guide = DAIRGuide(model, **AIR_SIZES, **AIR_WIDTHS)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}


def test_the_count_posterior_is_what_sampling_counts():
    guide = AIRGuide(**{**AIR_SIZES, "num_steps": 3}, **AIR_WIDTHS, presence_bias=0.4)
    x = torch.rand(1, 1, 10, 10)
    posterior = count_posterior(guide, x, num_samples=200)
    trace = poutine.trace(guide).get_trace(x.expand(20_000, 1, 10, 10))
    latents = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    sampled = count_objects(latents).bincount(minlength=4) / 20_000
    assert posterior.shape == (1, 4)
    torch.testing.assert_close(posterior[0], sampled, atol=0.015, rtol=0)  # 4 standard errors


def test_decided_counts_follow_the_likelier_choices():
    go_on = torch.tensor([[0.4, 0.9, 0.9], [0.6, 0.3, 0.9], [0.6, 0.6, 0.51], [1.0, 0.0, 0.7], [0.7, 0.7, 0.3]])
    reached = torch.cat([torch.ones(5, 1), go_on.cumprod(1)], 1)
    posterior = reached - torch.cat([reached[:, 1:], torch.zeros(5, 1)], 1)
    assert decided_counts(posterior).tolist() == [0, 1, 3, 1, 2]


@pytest.mark.parametrize(
    "bias, found, words", [(-8.0, 0, "no object"), (8.0, 2, "infers 2 objects"), (None, None, None)]
)
def test_collapse_is_told_in_words(bias, found, words):
    model, guide = AIR(**AIR_SIZES), AIRGuide(**AIR_SIZES, **AIR_WIDTHS, presence_bias=bias or 0.0)
    scenes = Images((torch.rand(64, 1, 10, 10) * 255).byte())
    if bias is None:  # about half of the scenes get an object
        logits = poutine.trace(guide).get_trace(scenes[:]).nodes["z_pres_1"]["fn"].logits
        guide.presence.bias.data.sub_(logits.detach().median())
    svi = SVI(model, guide, adam(model, guide, 1e-3), PerSite_ELBO())
    svi.step(scenes[:])
    health = gradient_health(svi, scenes, batch_size=16) | scene_metrics(
        partial(log_probs, model, guide), model, guide, scenes
    )
    assert health["score_variance"] >= 0 and health["baseline_explained"] <= 1
    if words is None:
        assert len(decided_counts(count_posterior(guide, scenes[:])).unique()) > 1
        assert "warning" not in health
    else:
        assert (decided_counts(count_posterior(guide, scenes[:])) == found).all()
        assert words in health["warning"] and "100%" in health["warning"]
        assert health["decided_counts"][found] == 1


@pytest.mark.parametrize(
    "true, decided, words",
    [
        (None, [0.01, 0.98, 0.01], "infers 1 object in 98%"),
        ([0, 1, 2, 1], [0.01, 0.98, 0.01], "infers 1 object in 98%"),
        ([1, 1, 1, 1], [0.01, 0.98, 0.01], None),
        ([0, 1, 1, 1], [0.3, 0.01, 0.69], "infers all 2 objects in 99% of the scenes with any object"),
        ([0, 1, 2, 2], [0.3, 0.3, 0.4], None),
    ],
)
def test_a_count_of_nearly_all_scenes_is_a_collapse_unless_it_is_right(true, decided, words):
    found = _collapse(torch.tensor(decided), None if true is None else torch.tensor(true))
    assert found is None if words is None else words in found


def test_baselines_learn_from_their_own_loss_only():
    """Without the baseline's loss its parameters get no gradient; its loss gives nobody else any."""
    model, guide = AIR(**AIR_SIZES), AIRGuide(**AIR_SIZES, **AIR_WIDTHS)
    x = torch.rand(4, 1, 10, 10)
    with local_params():
        trace = poutine.trace(guide).get_trace(x)
        values = [trace.nodes[f"z_pres_{t}"]["infer"]["baseline"]["baseline_value"] for t in (1, 2)]
        replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    loss = sum(value.square().sum() for value in values)
    gradients = torch.autograd.grad(loss, list(guide.parameters()), allow_unused=True, retain_graph=True)
    reached = {name for (name, _), g in zip(guide.named_parameters(), gradients, strict=True) if g is not None}
    assert reached == {name for name, _ in guide.named_parameters() if name.startswith("baseline.")}
    bound = replayed.log_prob_sum() - trace.log_prob_sum()
    gradients = torch.autograd.grad(bound, list(guide.parameters()), allow_unused=True)
    reached = {name for (name, _), g in zip(guide.named_parameters(), gradients, strict=True) if g is not None}
    assert reached == {name for name, _ in guide.named_parameters() if not name.startswith("baseline.")}


def test_the_baseline_is_masked_after_the_stop():
    guide = AIRGuide(**AIR_SIZES, **AIR_WIDTHS, presence_bias=-100.0)  # stops at once
    trace = poutine.trace(guide).get_trace(torch.rand(5, 1, 10, 10))
    first, second = (trace.nodes[f"z_pres_{t}"]["infer"]["baseline"]["baseline_value"] for t in (1, 2))
    assert first.abs().min() > 0
    assert not second.any()


@pytest.mark.parametrize("model", [AIR(), AIR3D()])
def test_the_models_need_scenes_or_their_number(model):
    with pytest.raises(ValueError, match=r"needs either x, .* or n"):
        model()


def test_the_guide_needs_scenes():
    with pytest.raises(ValueError, match="x is required"):
        AIRGuide(**AIR_SIZES)()


def test_scenes_sampled_with_a_count_have_that_many_objects():
    model = AIR(**AIR_SIZES, pixel_scale=0.1)
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.fill_(20.0)  # every object is a white square
    light = [sample_scenes(model, 400, count).flatten(1).sum(1).mean() for count in range(3)]
    assert light[0] == 0
    assert light[2] == pytest.approx(float(2 * light[1]), rel=0.1)
