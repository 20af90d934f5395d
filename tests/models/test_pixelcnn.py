"""PixelCNN where the answer is known."""

import itertools
import math

import pytest
import torch

from guides import EmptyGuide
from pplmodels import GatedPixelCNN, PixelCNN
from pplmodels.infer import SVI, adam
from pplmodels.testing import Pair

PAIRS = {
    "pixelcnn": Pair(
        model=lambda: PixelCNN((3, 4), levels=5, channels=6, layers=2, size=3, embedding=4, hidden=7),
        guide=lambda model: EmptyGuide(),
        batch=lambda n: torch.randint(5, (n, 3, 4)),
    ),
    "gated pixelcnn": Pair(
        model=lambda: GatedPixelCNN((3, 4), levels=5, channels=6, layers=2, size=3, embedding=4, hidden=7),
        guide=lambda model: EmptyGuide(),
        batch=lambda n: torch.randint(5, (n, 3, 4)),
    ),
}
SMALL = {"channels": 8, "size": 3, "embedding": 4, "hidden": 8}
KINDS = {"plain": lambda **sizes: PixelCNN(layers=2, **SMALL, **sizes)}
KINDS["gated"] = lambda **sizes: GatedPixelCNN(layers=2, **SMALL, **sizes)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_probabilities_sum_to_one_over_all_maps(kind, float64):
    model = kind(grid=(2, 2), levels=3)
    maps = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    assert len(maps) == 81
    torch.testing.assert_close(model.p_x().log_prob(maps).exp().sum(), torch.tensor(1.0))


def test_samples_come_as_often_as_their_probability_says(kind):
    model = kind(grid=(2, 2), levels=2)
    for parameter in model.network.parameters():  # untrained, all maps are nearly as likely as each other
        torch.nn.init.normal_(parameter, std=0.5)
    drawn = model(n=20_000)
    maps = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    expected = model.p_x().log_prob(maps).exp()
    found = (drawn[:, None] == maps).all(-1).all(-1).double().mean(0)
    assert (found - expected).abs().max() < 5 * (0.25 / 20_000) ** 0.5
    assert expected.max() > 2 * expected.min()


def test_at_temperature_zero_each_position_is_the_likeliest(kind):
    model = kind(grid=(3, 3), levels=4)
    model.temperature = 0.0
    first, second = model(n=2)
    assert torch.equal(first, second)
    logits = model.network(first[None])[0].movedim(0, -1)
    assert torch.equal(logits.argmax(-1), first)


def test_independent_codes_cost_their_entropy(kind):
    """Nothing can be learned of the next code from the others: the loss comes down to the entropy, and not below."""
    probs = torch.tensor([0.6, 0.25, 0.1, 0.05])
    entropy = float(-(probs * probs.log()).sum())
    model, guide = kind(grid=(4, 4), levels=4), EmptyGuide()
    svi = SVI(model, guide, adam(model, guide, 1e-2), compile=True)
    for step in range(300):
        if step == 200:
            svi.optim.param_groups[0]["lr"].fill_(1e-3)
        svi.step(torch.multinomial(probs, 128 * 16, replacement=True).view(128, 4, 4))
    fresh = torch.multinomial(probs, 4000 * 16, replacement=True).view(4000, 4, 4)
    found = -float(model.p_x().log_prob(fresh).mean().detach()) / 16
    noise = float((probs * (probs.log() + entropy) ** 2).sum() / 64_000) ** 0.5
    assert entropy - 4 * noise < found < entropy + 0.01 + 4 * noise
    assert found < math.log(4)


def test_a_class_decides_what_is_drawn(float64):
    model, guide = GatedPixelCNN(grid=(2, 3), levels=3, layers=2, classes=2, **SMALL), EmptyGuide()
    svi = SVI(model, guide, adam(model, guide, 1e-2), compile=True)
    values = torch.tensor([2, 1])  # of all positions, by class
    for _ in range(100):
        label = torch.randint(2, (32,))
        svi.step(values[label][:, None, None].expand(32, 2, 3), label=label)
    label = torch.tensor([0, 1, 0])
    model.temperature = 0.0
    assert torch.equal(model(n=3, label=label), values[label][:, None, None].expand(3, 2, 3))
    maps = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 1, 2, 3)
    scores = model.p_x(torch.tensor([0, 1])).log_prob(maps)
    assert scores.shape == (729, 2)
    torch.testing.assert_close(scores.exp().sum(0), torch.ones(2))
    assert scores[-1, 0] > -1 > -5 > scores[-1, 1]  # the map of twos


@pytest.mark.parametrize("classes", [0, 2])
def test_labels_go_with_classes(classes):
    model = GatedPixelCNN(grid=(2, 2), levels=3, layers=1, classes=classes, **SMALL)
    with pytest.raises(ValueError, match=f"a model with {classes} classes {'needs' if classes else 'takes no'} labels"):
        model(n=1, label=None if classes else torch.tensor([0]))
