"""The renderer: gradients, occlusion, and what must and must not change a picture."""

import math

import pytest
import torch

from pplmodels.nn.renderer import KINDS, PERIODS, SPHERE, Renderer

SPHERES, CUBES, CYLINDERS, CUPS = range(4)


def picture(kind, place, yaw=None, renderer=None, light=None):
    """One picture ``(3, H, W)`` of solids ``kind (T)`` at ``place (T, 2)``."""
    kind, place = torch.tensor(kind), torch.tensor(place)
    yaw = torch.zeros(len(kind)) if yaw is None else torch.tensor(yaw)
    return (renderer or Renderer())(torch.ones(len(kind)), kind, place, yaw, light)


def changed(one, other):
    """Which pixels differ, ``(H, W)``."""
    return (one - other).abs().amax(-3) > 0.02


def centre(mask):
    """(x, y) of a set of pixels in [-1, 1], to the right and down."""
    y, x = mask.nonzero().double().mean(0)
    return torch.stack([(2 * x + 1) / mask.shape[1] - 1, (2 * y + 1) / mask.shape[0] - 1])


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_gradients_are_finite_differences(kind, float64):
    """Of the squared distance to another picture, in x, y and yaw, for three solids that hide one another in part."""
    torch.manual_seed(kind)
    renderer = Renderer()
    kinds = torch.tensor([kind, (kind + 1) % 4, CUBES])
    place = torch.tensor([[0.0, -0.2], [0.25, 0.2], [-0.6, 0.1]])
    yaw = torch.tensor([0.3, 1.2, 0.5])
    target = renderer(torch.ones(3), kinds, place + 0.1 * torch.randn(3, 2), yaw + 0.3)

    def loss(pose):
        return (renderer(torch.ones(3), kinds, pose[:, :2], pose[:, 2]) - target).square().sum()

    pose = torch.cat([place, yaw[:, None]], 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(pose), pose)
    differences = torch.zeros_like(gradient)
    for index in range(9):
        step = torch.zeros(9)
        step[index] = 1e-5
        step = step.view(3, 3)
        differences.view(-1)[index] = (loss(pose.detach() + step) - loss(pose.detach() - step)) / 2e-5
    turning = [PERIODS[int(k)] > 0 for k in kinds]
    assert gradient[turning, 2].abs().min() > 1e-3  # there is something to compare
    torch.testing.assert_close(gradient, differences, rtol=1e-2, atol=1e-6)


def test_an_empty_table_is_the_table(float64):
    renderer = Renderer()
    nothing = renderer(torch.zeros(2), torch.tensor([0, 3]), torch.randn(2, 2), torch.randn(2))
    torch.testing.assert_close(nothing, renderer.empty(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_a_solid_is_seen_where_it_stands_and_moves(kind):
    renderer = Renderer((64, 64))
    for place in ([0.0, 0.0], [0.6, -0.5], [-0.5, 0.6]):
        mask = changed(picture([kind], [place], renderer=renderer), renderer.empty())
        expected = renderer.seen_at(torch.tensor(place)).double()
        assert (centre(mask) - expected).abs().max() < 0.1
        assert not mask[(renderer.around(torch.tensor(place), 0.5) < 0.5)[0]].any()  # and nowhere else


def test_places_and_points_of_the_picture_undo_each_other(float64):
    renderer, place = Renderer(azimuth=0.4), torch.randn(20, 2)
    torch.testing.assert_close(renderer.standing_at(renderer.seen_at(place)), place)


def test_the_nearer_solid_hides_the_farther_whatever_their_order():
    renderer = Renderer((64, 64))
    place = [[0.0, -0.45], [0.0, 0.05]]  # the camera looks from negative y
    both = picture([SPHERES, CYLINDERS], place, renderer=renderer)
    swapped = picture([CYLINDERS, SPHERES], place[::-1], renderer=renderer)
    torch.testing.assert_close(both, swapped)
    near, far = (picture([k], [p], renderer=renderer) for k, p in zip((SPHERES, CYLINDERS), place, strict=True))
    shared = changed(near, renderer.empty()) & changed(far, renderer.empty())
    assert shared.sum() > 30
    middle = shared & (renderer.around(torch.tensor(place[0]), 0.8 * SPHERE) > 0.9)[0]
    assert middle.sum() > 10
    assert not changed(both, near)[middle].any()
    assert changed(both, far)[middle].all()


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_turned_by_its_period_a_solid_looks_the_same(kind, float64):
    upright = picture([kind], [[0.2, 0.1]], [0.3])
    period = PERIODS[kind] or 0.7
    torch.testing.assert_close(picture([kind], [[0.2, 0.1]], [0.3 + period]), upright)
    if PERIODS[kind]:
        assert changed(picture([kind], [[0.2, 0.1]], [0.3 + period / 2]), upright).sum() > 5


def test_camera_and_scene_turned_together_give_the_same_picture(float64):
    quarter = math.pi / 2  # by which the table itself looks the same
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    still, turned = Renderer(), Renderer(azimuth=quarter)
    place = torch.tensor([[0.3, 0.2], [-0.4, 0.1], [0.1, -0.5]])
    kind, yaw = torch.tensor([CUBES, CUPS, CYLINDERS]), torch.tensor([0.2, 1.0, 2.0])
    one = still(torch.ones(3), kind, place, yaw)
    other = turned(torch.ones(3), kind, place @ turn[:2, :2].T, yaw + quarter, turn @ still.light)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(still.empty(), turned.empty(turn @ still.light))


def test_a_brighter_light_makes_a_brighter_picture():
    renderer = Renderer()
    assert (picture([CUPS], [[0.0, 0.0]], light=1.2 * renderer.light) >= picture([CUPS], [[0.0, 0.0]])).all()


def test_a_cup_is_hollow():
    """Its inside is darker than the cylinder's top, and shows the far wall's hue."""
    renderer = Renderer((64, 64))
    cup = picture([CUPS], [[0.0, 0.0]], renderer=renderer)
    top = (renderer.around(torch.tensor([0.0, 0.0]), 0.12) > 0.5)[0]
    rim = changed(cup, renderer.empty()) & ~(renderer.around(torch.tensor([0.0, 0.0]), 0.28) > 0.5)[0]
    assert cup.amax(0)[top].mean() < 0.8 * cup.amax(0)[rim].mean()


def test_a_batch_is_its_scenes_and_poses_are_shared_by_kinds(float64):
    renderer = Renderer((16, 20))
    place, yaw = torch.randn(5, 2, 2), torch.randn(5, 2)
    kind = torch.randint(4, (3, 5, 2))
    together = renderer(torch.ones(5, 2), kind, place, yaw)
    assert together.shape == (3, 5, 3, 16, 20)
    one = renderer(torch.ones(2), kind[2, 4], place[4], yaw[4])
    torch.testing.assert_close(together[2, 4], one)


@pytest.mark.gpu
def test_on_cuda_it_is_the_same_picture():
    kind, place, yaw = torch.randint(4, (8, 3)), torch.randn(8, 3, 2), torch.randn(8, 3)
    on_cpu = Renderer()(torch.ones(8, 3), kind, place, yaw)
    on_gpu = Renderer().cuda()(torch.ones(8, 3).cuda(), kind.cuda(), place.cuda(), yaw.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
