"""Windows: against torch's own sampler, and against each other."""

import torch
from torch.nn.functional import affine_grid, grid_sample

from pplmodels.nn import read_window, write_window


def random_windows(n):
    return torch.stack([torch.empty(n).uniform_(-1.5, 0.3), *torch.empty(2, n).uniform_(-1.2, 1.2)], -1)


def grid_sampled(image, scale, shift, size):
    zero = torch.zeros_like(scale)
    theta = torch.stack([torch.stack([scale, zero, shift[:, 0]], -1), torch.stack([zero, scale, shift[:, 1]], -1)], -2)
    grid = affine_grid(theta, [len(image), image.shape[1], *size], align_corners=False)
    return grid_sample(image, grid, padding_mode="zeros", align_corners=False)


def test_reading_is_grid_sample(float64):
    image, where = torch.rand(20, 3, 9, 13), random_windows(20)
    expected = grid_sampled(image, where[:, 0].exp(), where[:, 1:], (6, 6))
    torch.testing.assert_close(read_window(image, where, 6), expected)


def test_writing_is_grid_sample_of_the_inverse(float64):
    glimpse, where = torch.rand(20, 3, 6, 6), random_windows(20)
    scale = where[:, 0].exp()
    expected = grid_sampled(glimpse, 1 / scale, -where[:, 1:] / scale[:, None], (9, 13))
    torch.testing.assert_close(write_window(glimpse, where, 9, 13), expected)


def test_gradients_are_those_of_grid_sample(float64):
    image = torch.rand(5, 1, 8, 8)
    gradients = []
    for read in (
        lambda w: read_window(image, w, 4),
        lambda w: grid_sampled(image, w[:, 0].exp(), w[:, 1:], (4, 4)),
    ):
        where = (random_windows(5).mul(0).add(torch.tensor([-0.7, 0.13, -0.21]))).requires_grad_()
        (read(where) * torch.linspace(0, 1, 16).view(4, 4)).sum().backward()
        gradients.append(where.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().min() > 0


def test_the_whole_canvas_as_a_window_copies(float64):
    image, whole = torch.rand(2, 1, 8, 8), torch.zeros(2, 3)
    torch.testing.assert_close(read_window(image, whole, 8), image)
    torch.testing.assert_close(write_window(image, whole, 8, 8), image)


def test_reading_undoes_writing_where_pixels_coincide(float64):
    """A 4x4 object on a 16x16 canvas at a quarter of its side lands on whole pixels: nothing is lost."""
    glimpse = torch.rand(3, 2, 4, 4)
    # pixel edges at multiples of 1/8 in canvas coordinates: centres of 4-pixel windows that start on one
    where = torch.tensor([[0.25, 0.0, 0.0], [0.25, -0.5, 0.375], [0.25, 0.75, -0.75]])
    where[:, 0] = where[:, 0].log()
    canvas = write_window(glimpse, where, 16, 16)
    torch.testing.assert_close(read_window(canvas, where, 4), glimpse)
    torch.testing.assert_close(canvas.sum((-1, -2)), glimpse.sum((-1, -2)))


def test_reading_undoes_writing_of_a_smooth_object(float64):
    """Between pixels bilinear interpolation is exact for what is linear: a ramp comes back inside its border."""
    ramp = (torch.arange(12.0)[:, None] + 2 * torch.arange(12.0)).expand(1, 1, 12, 12)
    where = torch.tensor([[-0.3, 0.11, -0.07]])
    back = read_window(write_window(ramp, where, 64, 64), where, 12)
    torch.testing.assert_close(back[..., 1:-1, 1:-1], ramp[..., 1:-1, 1:-1])


def test_a_window_off_the_canvas_is_black_and_finite():
    far = torch.tensor([[-1.0, 9.0, -9.0]], requires_grad=True)
    glimpse = read_window(torch.rand(1, 1, 8, 8), far, 4)
    assert not glimpse.any()
    glimpse.sum().backward()
    assert far.grad.isfinite().all()


def test_leading_dimensions_are_free(float64):
    image, where = torch.rand(4, 1, 8, 8), random_windows(12).view(3, 4, 3)
    together = read_window(image, where, 5)
    assert together.shape == (3, 4, 1, 5, 5)
    torch.testing.assert_close(together[1], read_window(image, where[1], 5))
