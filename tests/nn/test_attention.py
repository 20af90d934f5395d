"""The attention's points, marks and mean shifts, by hand."""

import math

import torch

from pplmodels.nn import FeatureMaps, SpatialAttention
from pplmodels.nn.attention import REACHES, STRIDE, SUPPRESSION

FAR = 10.0  # a radius for which mean shifts do nothing


def grid(height, width):
    """The points of the maps of images of STRIDE times this size."""
    return SpatialAttention(1, 6).maps(torch.zeros(1, 1, STRIDE * height, STRIDE * width)).points


def with_points(features, points):
    return FeatureMaps(features, points, points.square().sum(-1))


def attend(saliency, points, marks=None, proposal=(0.0, 0.0), precision=0.0, radius=FAR):
    """Attend to places with a given saliency (P) of at least 0, which is their only feature."""
    attention = SpatialAttention(1, 6, radius)
    with torch.no_grad():
        attention.marked.weight.zero_()
        attention.saliency.weight.copy_(torch.eye(1, 6))
    maps = with_points(torch.nn.functional.pad(saliency[None, :, None], (0, 5)), points)
    marks = torch.zeros(1, len(points), 2) if marks is None else marks
    return attention(maps, marks, torch.tensor([proposal]), torch.tensor([precision]))


def test_points_are_the_centers_of_the_receptive_fields(float64):
    """With even weights, the gradient of a map is symmetric about its point."""
    attention = SpatialAttention(1, 6)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.fill_(0.1)
    x = torch.rand(1, 1, 60, 44, requires_grad=True)
    maps = attention.maps(x)
    assert maps.features.shape == (1, 15 * 11, 6) and maps.points.shape == (15 * 11, 2)
    place = 7 * 11 + 5  # far from the borders
    gradient = torch.autograd.grad(maps.features[0, place, 0], x)[0][0, 0]
    rows, columns = (gradient.sum(dim) / gradient.sum() for dim in (1, 0))
    for weights, point, pixels in ((columns, maps.points[place, 0], 44), (rows, maps.points[place, 1], 60)):
        center = (weights * torch.arange(pixels)).sum()
        torch.testing.assert_close(point, (2 * center + 1) / pixels - 1)


def test_a_glance_is_the_softmaxs_mean():
    points, saliency = grid(2, 3), torch.rand(6)
    glance = attend(saliency, points, radius=1e4)
    weights = saliency.softmax(-1)
    torch.testing.assert_close(glance.point[0], weights @ points)
    torch.testing.assert_close(glance.features[0, 0], weights @ saliency)
    torch.testing.assert_close(glance.features[0, -1], saliency.logsumexp(-1))


def test_a_proposal_chooses_among_equally_salient_points():
    points = grid(3, 3)
    glance = attend(torch.zeros(9), points, proposal=(0.66, -0.66), precision=200.0)
    torch.testing.assert_close(glance.point[0], points[2], atol=1e-3, rtol=0)


def test_mean_shifts_choose_one_of_two_almost_equal_objects():
    points = torch.tensor([[-0.5, 0.0], [-0.45, 0.0], [0.5, 0.0], [0.45, 0.0]])
    saliency = torch.tensor([5.0, 5.0, 5.002, 5.002])
    between = attend(saliency, points, radius=1e4).point[0]
    assert between[0].abs() < 0.06
    torch.testing.assert_close(attend(saliency, points, radius=0.2).point[0, 0], torch.tensor(0.475), atol=0.01, rtol=0)


def test_only_the_last_softmax_has_a_gradient(float64):
    """It is that of a local mean around a fixed center: places far from the attended point get none."""
    points = torch.tensor([[-0.5, 0.0], [-0.45, 0.0], [0.5, 0.0], [0.45, 0.0]])
    saliency = torch.tensor([5.0, 5.0, 5.2, 5.2], requires_grad=True)
    gradient = torch.autograd.grad(attend(saliency, points, radius=0.2).point[0, 0], saliency)[0]
    assert gradient[:2].abs().max() < 0.05 * gradient[2:].abs().min()


def test_marks_are_bumps_of_the_windows_size():
    points = torch.tensor([[0.1, -0.2], [0.1 + 0.3 * REACHES[0], -0.2], [0.1, 0.9]])
    maps = with_points(torch.zeros(1, 3, 6), points)
    found = SpatialAttention.marks(maps, torch.tensor([[math.log(0.3), 0.1, -0.2]]))
    expected = [[math.exp(-((d / 0.3 / reach) ** 2) / 2) for reach in REACHES] for d in (0.0, 0.3 * REACHES[0], 1.1)]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_the_second_glance_finds_the_object_next_to_the_first():
    """Two objects that touch, each as large as 1 / 1.2 of its window: the center of the second stays salient."""
    side = 0.3
    distance = 2 * side / 1.2
    points = torch.tensor([[0.0, 0.0], [distance, 0.0], [-0.8, 0.8]])
    saliency = torch.tensor([9.0, 8.5, 0.0])
    maps = with_points(torch.zeros(1, 3, 6), points)
    marks = SpatialAttention.marks(maps, torch.tensor([[math.log(side), 0.0, 0.0]]))
    assert float(marks[0, 1, 0]) * SUPPRESSION < 0.01
    torch.testing.assert_close(attend(saliency, points, marks).point[0], points[1], atol=1e-2, rtol=0)
