"""Weighted and forgiven KLs: the gradients they stand for."""

import pytest
import torch

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.infer import SVI, FreeBits_ELBO, ScaledKL, adam, cyclical
from pplmodels.metrics import elbo_terms, log_probs

SIZES = {"image": (1, 4, 4), "z_dim": 3, "hidden_dims": (8,)}


def pair():
    torch.manual_seed(0)
    return MLPVAE(**SIZES), MLPGuide(**SIZES)


def step(model, guide, loss=None, modules=None, compile=False):
    """Loss and gradients of one step from one seed."""
    svi = SVI(*(modules or (model, guide)), adam(model, guide, 0.0), loss, compile=compile)
    torch.manual_seed(5)
    value = svi.step(torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).round())
    return value, [p.grad / 6 for p in (*model.parameters(), *guide.parameters())]


def by_hand(model, guide, weigh):
    """Gradients of the mean over images of ``weigh(reconstruction, kl)``, from one seed."""
    torch.manual_seed(5)
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).round()
    log_p, log_q, _ = log_probs(model, guide, x)
    loss = -weigh(log_p["x"].mean(), (log_q["z"] - log_p["z"]).mean())
    return torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_beta_scales_the_kl(beta, compiled):
    model, guide = pair()
    _, gradients = step(model, guide, modules=[ScaledKL(module, beta) for module in (model, guide)], compile=compiled)
    torch.testing.assert_close(gradients, list(by_hand(model, guide, lambda r, kl: r - beta * kl)))


def test_a_changed_beta_is_seen_by_a_compiled_step():
    model, guide = pair()
    modules = [ScaledKL(module) for module in (model, guide)]
    svi = SVI(*modules, adam(model, guide, 0.0), compile=True)
    x = torch.rand(6, 1, 4, 4).round()
    losses = []
    for beta in (1.0, 0.0):
        for module in modules:
            module.beta.fill_(beta)
        torch.manual_seed(2)
        losses.append(float(svi.step(x)))
    torch.manual_seed(2)
    reconstruction = -elbo_terms(lambda x: log_probs(model, guide, x), [x])[0]["reconstruction"]
    assert losses[1] == pytest.approx(reconstruction, rel=1e-5) and losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("free", [0.0, 1e-3, 1e3])
def test_free_bits_cost_no_gradient(free):
    """Above the allowance the gradient is the bound's; below it is the reconstruction's. The value is the bound."""
    model, guide = pair()
    plain, _ = step(model, guide)
    loss, gradients = step(model, guide, FreeBits_ELBO(free))
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    wanted = by_hand(model, guide, lambda r, kl: r if free > 100 else r - kl)
    torch.testing.assert_close(gradients, list(wanted))


def test_a_cyclical_weight_rises_and_begins_anew():
    schedule = cyclical(0.0, 1.0, period=10, ramp=0.4)
    assert [schedule(step) for step in range(12)] == pytest.approx([0, 0.25, 0.5, 0.75, *[1] * 6, 0, 0.25])
