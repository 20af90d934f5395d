"""VQ-VAE where the answer is known."""

import math
from functools import partial

import pytest
import torch
from pyro import poutine

from guides import VQGuide
from pplmodels import VQVAE, PixelCNN
from pplmodels.infer import SVI, adam
from pplmodels.infer.traces import local_params
from pplmodels.metrics import elbo_terms, log_probs
from pplmodels.testing import Pair

PAIRS = {
    "vq-vae": Pair(
        model=lambda: VQVAE((3, 8, 8), codes=5, dim=4, channels=6, blocks=1, decay=None),
        guide=lambda model: VQGuide(model, channels=6, blocks=1),
        batch=lambda n: torch.rand(n, 3, 8, 8).mul(255).round() / 255,
    ),
    "vq-vae, running means": Pair(
        model=lambda: VQVAE((1, 8, 8), codes=5, dim=4, channels=6, blocks=1, likelihood="bernoulli", decay=0.9),
        guide=lambda model: VQGuide(model, channels=6, blocks=1),
        batch=lambda n: torch.rand(n, 1, 8, 8).round(),
    ),
}
SIZES = {"image": (3, 8, 8), "codes": 5, "dim": 4, "channels": 6, "blocks": 1, "decay": None}


def pair(**sizes):
    model = VQVAE(**{**SIZES, **sizes})
    return model, VQGuide(model, channels=6, blocks=1)


def images(n):
    return torch.rand(n, 3, 8, 8).mul(255).round() / 255


def test_the_reconstructions_gradient_goes_straight_through(float64):
    """d log p(x | z) / d z_e is d log p(x | z) / d z_q, and the codebook gets none of it."""
    model, guide = pair()
    x, kept = images(3), {}
    guide.encoder.register_forward_hook(lambda module, inputs, z: kept.update(z_e=z))
    with local_params():
        trace = poutine.trace(guide).get_trace(x)
        log_p = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    log_p.compute_log_prob()
    reconstruction = log_p.nodes["x"]["log_prob"].sum()
    z = trace.nodes["z"]["value"]
    to_e, to_z, to_book = torch.autograd.grad(
        reconstruction, [kept["z_e"], z, model.codebook.vectors], allow_unused=True
    )
    assert torch.equal(to_e, to_z) and to_e.abs().max() > 0 and to_book is None
    assert torch.equal(z, model.codebook.embed(trace.nodes["codes"]["value"]))


def test_a_loss_is_that_of_its_images_whatever_the_batch(float64):
    model, guide = (module.eval() for module in pair())
    x = images(64)
    svi = SVI(model, guide, adam(model, guide, 0.0))
    together = float(svi.evaluate_loss(x))
    alone = sum(float(svi.evaluate_loss(one)) for one in x.split(1)) / 64
    assert together == pytest.approx(alone, rel=1e-10)


def test_the_objective_is_the_bound_and_both_distances(float64):
    model, guide = (module.eval() for module in pair())
    x = images(6)
    terms, _ = elbo_terms(partial(log_probs, model, guide), [x])
    assert terms["kl"] == pytest.approx(4 * math.log(5))  # a map of 2 x 2 under the uniform prior
    apart = guide.encoder(x) - model.codebook.embed(model.codebook.nearest(guide.encoder(x)))
    distance = float(apart.detach().square().sum()) / 6
    loss = float(SVI(model, guide, adam(model, guide, 0.0)).evaluate_loss(x))
    assert loss == pytest.approx(-terms["elbo"] + 1.25 * distance)


@pytest.mark.parametrize("decay", [None, 0.99])
def test_what_learns_the_codebook(float64, decay):
    """By gradient: only the distance moves it. As running means: no gradient, but the steps move it."""
    model, guide = pair(decay=decay)
    x = images(8)
    guide.init_codebook(x)
    before = model.codebook.vectors.detach().clone()
    svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0))
    svi.step(x)
    if decay is None:
        z_e = guide.encoder(x).detach()
        vectors = before.requires_grad_()
        e = vectors[model.codebook.nearest(z_e)].movedim(-1, -3)
        (expected,) = torch.autograd.grad((z_e - e).square().sum(), [vectors])
        torch.testing.assert_close(model.codebook.vectors.grad, expected)
    else:
        assert not torch.equal(model.codebook.vectors, before)


def test_in_evaluation_the_codebook_stays_as_it_is():
    model, guide = (module.eval() for module in pair(decay=0.9))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guide(images(8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_code_says_nothing_of_the_image():
    model, guide = pair(codes=1)
    terms, _ = elbo_terms(partial(log_probs, model, guide), [images(4)])
    assert terms["kl"] == 0 and (guide(images(4)) == 0).all()


def test_a_learned_prior_takes_the_uniform_ones_place(float64):
    prior = PixelCNN(grid=(2, 2), levels=5, channels=4, layers=1, size=3, embedding=3, hidden=4)
    model, guide = pair()
    model.use_prior(prior)
    x = images(5)
    log_p, _, latents = log_probs(model.eval(), guide.eval(), x)
    torch.testing.assert_close(log_p["codes"], prior.p_x().log_prob(latents["codes"]))
    assert model(n=3).shape == (3, 3, 8, 8)
    assert not any(name.startswith("prior") for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match=r"maps of 5 values, but .* maps of 6 values"):
        VQVAE(**{**SIZES, "codes": 6}).use_prior(prior)


def test_sides_that_cannot_be_quartered_are_refused():
    with pytest.raises(ValueError, match="6x8 images are not multiples of 4"):
        pair(image=(3, 6, 8))
