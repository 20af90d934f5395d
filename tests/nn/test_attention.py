"""The attention's points and suppression, by hand."""

import math

import torch

from pplmodels.nn import FeatureMaps, SpatialAttention
from pplmodels.nn.attention import REACH, STRIDE, SUPPRESSION


def grid(height, width):
    """The points of maps of images of STRIDE times this size, and no features."""
    return SpatialAttention(1, 6).maps(torch.zeros(1, 1, STRIDE * height, STRIDE * width)).points


def attend(saliency, points, seen=None, proposal=(0.0, 0.0), precision=0.0):
    attention = SpatialAttention(1, 6)
    maps = FeatureMaps(torch.eye(saliency.shape[-1])[None], saliency, points)
    seen = torch.zeros_like(saliency) if seen is None else seen
    return attention(maps, seen, torch.tensor([proposal]), torch.tensor([precision]))


def test_points_are_the_centers_of_the_receptive_fields(float64):
    """The gradient of a map with even weights is symmetric about the point."""
    attention = SpatialAttention(1, 6)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.fill_(0.1)
    x = torch.rand(1, 1, 60, 44, requires_grad=True)
    maps = attention.maps(x)
    assert maps.features.shape == (1, 15 * 11, 6) and maps.points.shape == (15 * 11, 2)
    place = 7 * 11 + 5  # far from the borders
    gradient = torch.autograd.grad(maps.saliency[0, place], x)[0][0, 0]
    rows, columns = (gradient.sum(dim) / gradient.sum() for dim in (1, 0))
    for weights, point, pixels in ((columns, maps.points[place, 0], 44), (rows, maps.points[place, 1], 60)):
        center = (weights * torch.arange(pixels)).sum()
        torch.testing.assert_close(point, (2 * center + 1) / pixels - 1)


def test_a_glance_is_the_softmaxs_mean():
    points, saliency = grid(2, 3), torch.randn(1, 6)
    glance = attend(saliency, points)
    weights = saliency.softmax(-1)
    torch.testing.assert_close(glance.point, weights @ points)
    torch.testing.assert_close(glance.features, torch.cat([weights, saliency.logsumexp(-1, keepdim=True)], -1))


def test_a_proposal_chooses_among_equally_salient_points():
    points = grid(3, 3)
    glance = attend(torch.zeros(1, 9), points, proposal=(0.66, -0.66), precision=200.0)
    torch.testing.assert_close(glance.point[0], points[2], atol=1e-3, rtol=0)


def test_suppression_is_a_bump_of_the_windows_size():
    points = torch.tensor([[0.1, -0.2], [0.1 + 0.3 * REACH, -0.2], [0.1, 0.9]])
    maps = FeatureMaps(torch.zeros(1, 3, 6), torch.zeros(1, 3), points)
    found = SpatialAttention.suppression(maps, torch.tensor([[math.log(0.3), 0.1, -0.2]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, math.exp(-0.5), math.exp(-((1.1 / 0.3 / REACH) ** 2) / 2)]]))


def test_the_second_glance_finds_the_object_next_to_the_first():
    """Two objects that touch, each as large as 1 / 1.2 of its window: the center of the second stays salient."""
    side = 0.3
    distance = 2 * side / 1.2
    points = torch.tensor([[0.0, 0.0], [distance, 0.0], [-0.8, 0.8]])
    saliency = torch.tensor([[9.0, 8.5, 0.0]])
    maps = FeatureMaps(torch.zeros(1, 3, 6), saliency, points)
    seen = SpatialAttention.suppression(maps, torch.tensor([[math.log(side), 0.0, 0.0]]))
    assert float(seen[0, 1]) * SUPPRESSION < 0.01
    torch.testing.assert_close(attend(saliency, points, seen).point[0], points[1], atol=1e-2, rtol=0)
