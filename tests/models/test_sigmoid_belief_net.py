"""The sigmoid belief network where it can be summed out: log p, both objectives, and what they learn."""

import itertools

import pytest
import torch

from guides import SigmoidBeliefGuide
from pplmodels import SigmoidBeliefNet
from pplmodels.infer import SVI, ImportanceWeighted_ELBO, ReweightedWakeSleep_ELBO, adam
from pplmodels.metrics import importance_weighted, log_probs
from pplmodels.testing import Pair

IMAGE = (1, 2, 2)
PAIRS = {
    "sigmoid belief net": Pair(
        model=lambda: SigmoidBeliefNet(image=(1, 4, 4), hidden_dims=(6, 5, 4)),
        guide=lambda model: SigmoidBeliefGuide(image=(1, 4, 4), hidden_dims=(6, 5, 4)),
        batch=lambda n: torch.rand(n, 1, 4, 4).round(),
    )
}


def build(spread=1.5):
    """A pair of 2 + 2 units with large weights."""
    pair = SigmoidBeliefNet(IMAGE, (2, 2)), SigmoidBeliefGuide(IMAGE, (2, 2))
    for module in pair:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return pair


def states(number):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=number)))


def log_joint(model, x):
    """log p(x, z) ``(N, 16)`` of all states by the logistic regressions of the docstring."""
    units = states(4)
    z1, z2 = units[:, :2], units[:, 2:]
    logits = model.top, model.layers[0](z2), model.decoder[0](z1)

    def bernoulli(value, logit):
        return (value * logit - torch.nn.functional.softplus(logit)).sum(-1)

    return bernoulli(z2, logits[0]) + bernoulli(z1, logits[1]) + bernoulli(x.flatten(1)[:, None], logits[2])


def test_log_p_sums_to_one_over_all_images_and_the_bound_reaches_it(float64):
    model, guide = build()
    for parameter in guide.parameters():
        torch.nn.init.zeros_(parameter)  # each of the 16 states has probability 1/16, so no weight is large
    images = states(4).reshape(16, *IMAGE)
    evidence = log_joint(model, images).logsumexp(1).detach()
    assert float(evidence.exp().sum()) == pytest.approx(1, abs=1e-12)
    samples = 20_000
    bound, ess = importance_weighted(lambda x: log_probs(model, guide, x, 500), [images], samples)
    error = ((samples / ess - 1) / samples).sqrt()  # relative, of a mean of weights
    assert ((bound - evidence).abs() < 5 * error).all()
    assert float(error.max()) < 0.03


@pytest.mark.parametrize("objective", [ImportanceWeighted_ELBO, ReweightedWakeSleep_ELBO])
def test_the_gradient_of_the_model_tends_to_that_of_log_p(float64, objective):
    """With many particles, both have the gradient of log p(x) itself."""
    model, guide = build(spread=0.5)
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(1, *IMAGE)
    expected = torch.autograd.grad(-log_joint(model, x).logsumexp(1).sum(), list(model.parameters()))
    wanted = torch.cat([gradient.flatten() for gradient in expected])
    svi = SVI(model, guide, torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0), objective(400))
    found = [svi.gradients(x.expand(200, *IMAGE))[2][: len(expected)] for _ in range(10)]
    found = torch.stack([torch.cat([gradient.flatten() for gradient in gradients]) for gradients in found]) / 200
    error = found.std(0) / 10**0.5
    bias = 0.01 * wanted.abs().max()  # of the order of 1 / 400, as the variance of the mean weight
    assert ((found.mean(0) - wanted).abs() < 5 * error + bias).all()
    assert float(error.max()) < 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted_ELBO(10),
        ReweightedWakeSleep_ELBO(10),
        ReweightedWakeSleep_ELBO(10, insomnia=0.5),
    ],
    ids=["vimco", "wake", "wake and sleep"],
)
def test_a_net_learns_images_whose_entropy_is_known(objective):
    """Two images, each with probability one half: -log p approaches log 2 = 0.69 from 2.8 nats."""
    model, guide = SigmoidBeliefNet(IMAGE, (4, 2)), SigmoidBeliefGuide(IMAGE, (4, 2))
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]).reshape(2, *IMAGE).repeat(16, 1, 1, 1)
    svi = SVI(model, guide, adam(model, guide, 0.03), objective, compile=True)
    first = float(svi.step(x))
    for _ in range(400):
        svi.step(x)
    last = float(torch.stack([svi.evaluate_loss(x) for _ in range(20)]).mean())
    assert first > 2 and 0.65 < last < 1.0


def test_a_net_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least one layer: hidden_dims is empty"):
        SigmoidBeliefNet(IMAGE, ())
