"""What each position depends on, and the same logits one position at a time."""

import pytest
import torch
from torch.autograd.functional import jacobian

from pplmodels.nn.masked_conv import CausalConv2d, GatedPixelCNNNetwork, PixelCNNNetwork

NETWORKS = {
    "plain": lambda: PixelCNNNetwork(5, channels=8, blocks=3, size=3, embedding=4, hidden=16),
    "plain, wide": lambda: PixelCNNNetwork(5, channels=8, blocks=2, size=7, embedding=4, hidden=16),
    "gated": lambda: GatedPixelCNNNetwork(5, channels=8, layers=4, size=3, embedding=4, hidden=16),
    "gated, wide": lambda: GatedPixelCNNNetwork(5, channels=8, layers=3, size=7, embedding=4, hidden=16),
}
SIDE = 6


@pytest.fixture(params=NETWORKS)
def network(request, float64):
    return NETWORKS[request.param]().eval()


def influence(network):
    """Largest derivative of any logit of a position in the embedding at another, ``(positions, positions)``."""
    embedded = torch.randn(1, SIDE, SIDE, 4)
    network.embedding = torch.nn.Identity()  # takes embeddings in place of codes
    derivative = jacobian(network, embedded)[0, :, :, :, 0]  # (K, H, W, H, W, E)
    return derivative.abs().amax((0, -1)).reshape(SIDE**2, SIDE**2)


def test_no_position_depends_on_itself_or_a_later_one(network):
    assert (influence(network).triu() == 0).all()


def test_gated_layers_see_every_earlier_position_and_masked_blocks_do_not(float64):
    """Six layers reach across the map. What plain PixelCNN misses is above and to the right: its blind spot."""
    earlier = torch.ones(SIDE**2, SIDE**2).tril(-1) > 0
    gated = influence(GatedPixelCNNNetwork(5, channels=8, layers=SIDE, size=3, embedding=4, hidden=16))
    assert torch.equal(gated > 0, earlier)
    plain = influence(PixelCNNNetwork(5, channels=8, blocks=2 * SIDE, size=3, embedding=4, hidden=16))
    missed = earlier & (plain == 0)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    rows = row.flatten()[:, None] - row.flatten()
    right = column.flatten() - column.flatten()[:, None]
    assert missed.any() and torch.equal(missed, earlier & (right > rows))


def test_changing_a_position_leaves_the_logits_up_to_it_as_they_are(network):
    codes = torch.randint(5, (1, SIDE, SIDE))
    before = network(codes).flatten(2)
    for position in range(SIDE**2):
        other = codes.clone().flatten(1)
        other[:, position] = (other[:, position] + 1) % 5
        after = network(other.view_as(codes)).flatten(2)
        assert torch.equal(before[..., : position + 1], after[..., : position + 1])


def test_one_position_at_a_time_gives_the_logits_of_the_full_pass(network):
    codes = torch.randint(5, (3, SIDE, SIDE + 1))
    steps, logits = network.steps(3, SIDE, SIDE + 1), []
    with torch.no_grad():
        logits.append(next(steps))
        for values in codes.flatten(1).mT[:-1]:
            logits.append(steps.send(values))
        torch.testing.assert_close(torch.stack(logits, -1), network(codes).flatten(2))


def test_classes_change_both_ways_alike(float64):
    network = GatedPixelCNNNetwork(5, channels=8, layers=3, size=3, embedding=4, hidden=16, classes=3)
    codes, label = torch.randint(5, (3, 4, 4)), torch.tensor([0, 1, 2])
    full = network(codes, label)
    assert not torch.allclose(full, network(codes, label.flip(0)))
    steps = network.steps(3, 4, 4, label)
    logits = [next(steps), *(steps.send(values) for values in codes.flatten(1).mT[:-1])]
    torch.testing.assert_close(torch.stack(logits, -1), full.flatten(2))


@pytest.mark.parametrize("centre", [True, False])
def test_a_causal_convolution_is_a_masked_one(float64, centre):
    conv = CausalConv2d(2, 3, 5, centre)
    mask = torch.zeros(25)
    mask[: 12 + centre] = 1
    full = torch.zeros(3, 2, 5, 5)
    full[:, :, :3] = conv.weight
    x = torch.randn(2, 2, 6, 7)
    expected = torch.nn.functional.conv2d(x, full * mask.view(5, 5), conv.bias, padding=2)
    torch.testing.assert_close(conv(x), expected)
