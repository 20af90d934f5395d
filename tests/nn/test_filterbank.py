"""Gaussian windows: what is known of them without training."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from pplmodels.nn.draw_attention import AttentionReader, AttentionWriter
from pplmodels.nn.filterbank import LIMITS, Attention, Window, filterbank, read, write


def random_window(n, spread=1.0):
    """Windows anywhere, far off the canvas and of all sizes too."""
    x, y, log_variance, log_stride, log_intensity = spread * torch.randn(5, n)
    return Window(20 * x, 20 * y, (3 * log_variance).exp(), log_stride.exp(), log_intensity.exp())


def paper_filters(window, size, height, width):
    """Equations 19, 20, 25 and 26, one number at a time, pixels counted from 1."""
    rows, columns = torch.zeros(size, height), torch.zeros(size, width)
    for filters, centre in ((rows, window.y + 1), (columns, window.x + 1)):
        for i in range(1, size + 1):
            mean = centre + (i - size / 2 - 0.5) * window.stride
            for a in range(1, filters.shape[1] + 1):
                filters[i - 1, a - 1] = torch.exp(-((a - mean) ** 2) / (2 * window.variance))
            filters[i - 1] /= filters[i - 1].sum()
    return rows, columns


def pointed(attention, raw):
    """An attention whose five numbers are ``raw``, whatever the state is."""
    with torch.no_grad():
        attention.linear.weight.zero_()
        attention.linear.bias.copy_(torch.as_tensor(raw))
    return attention


def test_the_filters_are_those_of_the_paper(float64):
    window = Window(*torch.tensor([3.3, 5.1, 1.7, 2.2, 0.8]))
    for ours, theirs in zip(filterbank(window, 4, 9, 7), paper_filters(window, 4, 9, 7), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_five_numbers_mean_what_the_paper_says(float64):
    raw = torch.tensor([0.2, -0.3, 0.5, -0.4, 0.1])
    window = pointed(Attention(3, (1, 9, 7), 4), raw).window(torch.zeros(3))
    expected = Window(
        (7 + 1) / 2 * 1.2 - 1, (9 + 1) / 2 * 0.7 - 1, math.exp(0.5), 8 / 3 * math.exp(-0.4), math.exp(0.1)
    )
    torch.testing.assert_close(torch.stack(window), torch.tensor(expected))


def test_rows_sum_to_one_on_the_canvas_and_off_it():
    filters = filterbank(random_window(500, spread=3.0), 5, 28, 20)
    for matrix in filters:
        assert matrix.isfinite().all()
        torch.testing.assert_close(matrix.sum(-1), torch.ones(500, 5))


def test_whatever_a_network_says_windows_and_gradients_are_finite():
    attention = Attention(2, (1, 28, 28), 5)
    for value in (1e4, -1e4, 1e30, -1e30):
        raw = torch.full((5,), value)
        pointed(attention, raw)
        image = torch.rand(1, 28, 28, requires_grad=True)
        window = attention.window(torch.zeros(2))
        filters = attention.filters(window)
        out = write(read(image, window, filters), window, filters)
        assert out.isfinite().all()
        gradients = torch.autograd.grad(out.sum(), [image, attention.linear.bias])
        assert all(gradient.isfinite().all() for gradient in gradients)
    limits = torch.tensor(LIMITS)
    torch.testing.assert_close(attention.window(torch.zeros(2)).variance.log(), -limits[2])


def test_gradients_reach_all_five_numbers_of_either_window(float64):
    image = torch.rand(20, 2, 9, 13)
    reader, writer = AttentionReader((2, 9, 13), 6, 7, 3), AttentionWriter((2, 9, 13), 6, 3)
    h = torch.randn(20, 6)
    state = reader(reader.look(image), image, image - 0.5, h, (torch.zeros(7), torch.zeros(7)))
    for part, out in ((reader, state[0]), (writer, writer(h))):
        (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), [part.attention.linear.bias])
        assert (gradient.abs() > 1e-6).all()


def test_reading_a_ramp_gives_the_ramp(float64):
    """Inside the canvas a narrow filter's mean is its centre: 2 x + 3 y + 1 there."""
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    ramp = (2 * x + 3 * y + 1)[None]
    window = Window(*torch.tensor([19.3, 14.6, 1.1, 2.5, 0.7]))
    seen = read(ramp, window, filterbank(window, 4, 30, 40))
    offsets = (torch.arange(4) - 1.5) * 2.5
    expected = 0.7 * (2 * (19.3 + offsets) + 3 * (14.6 + offsets[:, None]) + 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=1e-6)


def test_the_identity_window_reads_and_writes_the_image(float64):
    attention = pointed(Attention(2, (3, 8, 8), 8), [0.0, 0.0, -5.0, 0.0, math.log(2.0)])
    window = attention.window(torch.zeros(2))
    filters = attention.filters(window)
    image = torch.rand(3, 8, 8)
    torch.testing.assert_close(read(image, window, filters), 2 * image)
    torch.testing.assert_close(write(image, window, filters), image / 2)


def test_transposing_the_image_swaps_the_axes(float64):
    image, window = torch.rand(10, 1, 9, 13), random_window(10, spread=0.3)
    swapped = window._replace(x=window.y, y=window.x)
    seen = read(image, window, filterbank(window, 3, 9, 13))
    torch.testing.assert_close(read(image.mT, swapped, filterbank(swapped, 3, 13, 9)), seen.mT)


def test_writing_is_the_adjoint_of_reading(float64):
    """<read(image), patch> = <image, write(patch)> where the intensity is 1."""
    window = random_window(1, spread=0.3)._replace(intensity=torch.ones(1))
    filters = filterbank(window, 3, 6, 7)
    reading = jacobian(lambda image: read(image, window, filters), torch.zeros(1, 1, 6, 7)).reshape(9, 42)
    writing = jacobian(lambda patch: write(patch, window, filters), torch.zeros(1, 1, 3, 3)).reshape(42, 9)
    torch.testing.assert_close(writing, reading.mT)


def test_a_batch_is_its_images_one_by_one(float64):
    image = torch.rand(6, 2, 9, 13)
    reader, writer = AttentionReader((2, 9, 13), 6, 7, 3), AttentionWriter((2, 9, 13), 6, 3)
    h, start = torch.randn(6, 6), (torch.zeros(7), torch.zeros(7))
    together = reader(reader.look(image), image, image, h, start)[0], writer(h)
    for i in range(6):
        one = image[i : i + 1]
        alone = reader(reader.look(one), one, one, h[i : i + 1], start)[0], writer(h[i : i + 1])
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[i : i + 1], single)


def test_at_first_the_filters_tile_the_canvas():
    attention = Attention(4, (1, 28, 28), 2)
    window = attention.window(torch.zeros(4))
    torch.testing.assert_close(torch.stack(window), torch.tensor([13.5, 13.5, 49.0, 14.0, 1.0]))


def test_at_first_a_constant_patch_paints_the_canvas_with_that_constant():
    writer = AttentionWriter((1, 28, 28), 4, 5)
    torch.nn.init.zeros_(writer.patch.weight)
    torch.nn.init.constant_(writer.patch.bias, 3.0)
    canvas = writer(torch.zeros(4)).detach()
    assert float(canvas.mean()) == pytest.approx(3.0, abs=0.01)
    assert canvas[:, 6:-6, 6:-6].sub(3).abs().max() < 0.5  # at the edges the outermost filters are cut
