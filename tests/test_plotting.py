"""Where things are in pictures."""

import numpy as np
import pytest
import xarray
from matplotlib.patches import Rectangle

from pplmodels import plotting

RNG = np.random.default_rng(0)


def corners(figure, patch):
    """The corners of a patch in the coordinates of the figure's axes."""
    return figure.axes[0].transData.inverted().transform(patch.get_transform().transform([[0, 0], [1, 1]]))


@pytest.mark.parametrize("size", [(6, 9), (9, 6), (5, 5)], ids=str)
def test_a_window_lies_on_the_pixels_that_it_covers(size):
    scenes = RNG.random((3, 1, *size))
    whole = np.zeros((3, 2, 3))  # a window of the whole scene, in its middle
    present = np.array([[1, 0], [0, 0], [1, 1]])
    figure = plotting.scenes_with_windows(scenes, scenes, present, whole, np.array([1, 0, 1]))
    axis = figure.axes[0]
    windows = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    for window, number in zip(windows, (0, 2, 2), strict=True):
        left, right, bottom, top = axis.images[number].get_extent()
        assert np.allclose(corners(figure, window), [[left, top], [right, bottom]])
    assert [text.get_text() for text in axis.texts if "of" in text.get_text()] == ["1 of 1", "0 of 0", "2 of 1"]


def test_windows_are_cut_off_and_true_boxes_are_dashed():
    scenes = RNG.random((1, 1, 8, 12))
    where = np.array([[[np.log(0.5), 0.75, -1.0]]])  # 6 x 4 pixels around column 10.5 and row 0: a quarter is inside
    boxes = np.array([[[2.0, 1.0, 5.0, 7.0], [np.nan] * 4]])
    figure = plotting.scenes_with_windows(scenes, scenes, np.ones((1, 1)), where, np.array([1]), boxes, ["-3.5"])
    axis = figure.axes[0]
    dashed, window = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert dashed.get_linestyle() == "--" and window.get_linestyle() == "solid"
    left, right, bottom, top = axis.images[0].get_extent()
    width, height = (right - left) / 12, (bottom - top) / 8
    assert np.allclose(
        corners(figure, dashed), [[left + 2 * width, top + height], [left + 5 * width, top + 7 * height]]
    )
    assert np.allclose(corners(figure, window), [[left + 7.5 * width, top], [right, top + 2 * height]])
    assert "1 of 1\n-3.5" in [text.get_text() for text in axis.texts]


def test_squares_of_a_painting_lie_on_their_canvas():
    canvases, images = RNG.random((2, 3, 1, 8, 8)), RNG.random((3, 1, 8, 8))
    pixel = np.tile([3.0, 5.0, 1.0], (2, 3, 1))  # centre and side of the pixel in column 3 and row 5
    figure = plotting.painting_rows(images, canvases, None, pixel)
    axis = figure.axes[0]
    shown = np.reshape(axis.images, (3, 3))[:, 1:].flatten()  # the first of a row is the image
    for square, image in zip(axis.patches, shown, strict=True):
        left, right, bottom, top = image.get_extent()
        width, height = (right - left) / 8, (bottom - top) / 8
        found = corners(figure, square)
        assert np.allclose(found, [[left + 3 * width, top + 5 * height], [left + 4 * width, top + 6 * height]])


def test_boxes_lie_on_the_pixels_that_they_enclose():
    rows = [RNG.random((2, 1, 6, 9)), RNG.random((2, 3, 8, 8))]
    box = np.array([2.0, 1.0, 5.0, 4.0])  # columns 2 to 4 and rows 1 to 3
    boxes = [np.stack([[box, np.full(4, np.nan)]] * 2), np.stack([[box], [np.full(4, np.nan)]])]
    axis = (figure := plotting.scenes_with_boxes(rows, boxes, ["a", "b"])).axes[0]
    sizes = [(9, 6), (9, 6), (8, 8)]  # the last scene has no box
    for patch, image, (columns, lines) in zip(axis.patches, axis.images[:3], sizes, strict=True):
        left, right, bottom, top = image.get_extent()
        width, height = (right - left) / columns, (bottom - top) / lines
        found = corners(figure, patch)
        assert np.allclose(found, [[left + 2 * width, top + height], [left + 5 * width, top + 4 * height]])


def test_rows_of_other_sizes_have_the_same_columns():
    figure = plotting.image_rows([RNG.random((4, 3, 8, 8)), RNG.random((4, 1, 2, 2))], ["image", "codes"])
    extents = [image.get_extent() for image in figure.axes[0].images]
    assert np.allclose([extent[:2] for extent in extents[:4]], [extent[:2] for extent in extents[4:]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["image", "codes"]


def test_pareto_shapes_are_counted_above_their_threshold():
    shapes = [-0.5, 0.1, 0.2, 0.65, 0.8, np.inf, np.nan]
    diagnostics = xarray.Dataset({"pareto_k": ("image", shapes)}, attrs={"threshold": 0.6})
    axis = plotting.pareto_shapes(diagnostics).axes[0]
    assert axis.get_title() == "3 of 7 images above the threshold"
    assert list(axis.lines[0].get_xdata()) == [0.6, 0.6]
    assert sum(bar.get_height() for bar in axis.patches) == 5


def test_ranks_have_a_panel_per_coordinate_with_a_band():
    """Of the 80 bars of uniform ranks, each is in its band with probability 0.99: more than 4 outside are rare."""
    dims, coords = ("dataset", "step", "where"), {"step": [1, 2], "where": ["x", "y"]}
    uniform = RNG.integers(0, 100, (2000, 2, 2)).astype(float)
    uniform[:500, 1] = np.nan
    attributes = {"num_samples": 99, "num_bins": 20}
    ranks = xarray.Dataset({"z": (dims, uniform), "n": ("dataset", np.zeros(2000))}, coords, attributes)
    figure = plotting.rank_histograms(ranks)
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["z[1, x]", "z[1, y]", "z[2, x]", "z[2, y]", "n"]
    outside = 0
    for label, axis in panels.items():
        band, stairs = axis.patches
        low, high = band.get_y(), band.get_y() + band.get_height()
        counts = stairs.get_data().values
        assert counts.sum() == (1500 if "2" in label else 2000) and low < counts.sum() / 20 < high
        if label == "n":
            assert list(counts) == [2000] + [0] * 19
        else:
            outside += ((counts < low) | (counts > high)).sum()
    assert outside <= 4


def test_noise_has_a_bar_per_objective_and_module():
    values = np.array([[1.0, 10.0, np.nan], [0.1, 100.0, 3.0]])
    coords = {"objective": ["a", "b"], "module": ["model.f", "guide.g", "guide.h"]}
    axis = plotting.noise_bars(xarray.DataArray(values, coords, ("objective", "module"))).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == coords["module"]
    assert [bars.get_label() for bars in axis.containers] == ["a", "b"] and axis.get_xscale() == "log"
    np.testing.assert_array_equal([[bar.get_width() for bar in bars] for bars in axis.containers], values)
