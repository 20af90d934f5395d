"""Figures drawn from arrays, independent of any model. Returned figures are not attached to a GUI backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import networkx
import numpy as np
import scipy.stats
import xarray
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Affine2D, Transform

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # ticks of a stretched axis
FILLED = 0.95  # fraction of a tile that its image fills; the rest is a gap
TRUE = "0.6"  # color of true boxes, a gray that is visible on black and on white
STEP_COLOURS = ("tab:red", "tab:green", "tab:blue", "tab:orange", "tab:purple", "tab:cyan")


def image_rows(rows: Sequence[np.ndarray], labels: Sequence[str], inches: float = 1.1) -> Figure:
    """Rows of images, each ``(B, C, H, W)`` in [0, 1], with a label per row."""
    return _tiled(rows, labels, inches)[0]


def scenes_with_windows(
    scenes: np.ndarray,
    reconstruction: np.ndarray,
    z_pres: np.ndarray,
    z_where: np.ndarray,
    counts: np.ndarray | None,
    boxes: np.ndarray | None = None,
    notes: Sequence[str] | None = None,
) -> Figure:
    """Scenes with their inferred windows, numbered and colored by step, above their reconstructions.

    Shapes: ``scenes, reconstruction (B, C, H, W)``, ``z_pres (B, T)``, ``z_where (B, T, 3)`` and true ``counts (B)``.
    True ``boxes (B, K, 4)`` in pixels, with unused rows of NaN, are dashed. ``notes`` are shown below the counts.
    Windows are cut off at the edges of the scene.
    """
    figure, axis, places = _tiled([scenes, reconstruction], ["scene", "reconstruction"], 1.1)
    height, width = scenes.shape[2:]
    for i, place in enumerate(places[0]):
        if boxes is not None:
            for box in boxes[i][np.isfinite(boxes[i]).all(-1)]:
                _draw_box(axis, box - 0.5, place, color=TRUE, linewidth=0.8, linestyle="--")
        for t in np.flatnonzero(z_pres[i]).tolist():
            _draw_window(axis, z_where[i, t], t, height, width, place)
        found = int(z_pres[i].sum())
        wrong = counts is not None and found != counts[i]
        title = f"{found}" if counts is None else f"{found} of {counts[i]}"
        title += "" if notes is None else f"\n{notes[i]}"
        middle, above = width / 2, -0.06 * height
        colour = "tab:red" if wrong else "black"
        axis.text(middle, above, title, fontsize=8, color=colour, ha="center", va="bottom", transform=place)
    return figure


def scenes_with_boxes(rows: Sequence[np.ndarray], boxes: Sequence[np.ndarray], labels: Sequence[str]) -> Figure:
    """Rows of scenes, each ``(B, C, H, W)`` in [0, 1], with bounding boxes ``(B, K, 4)`` and a label per row.

    Boxes are the left, top, right and bottom edges in pixels, with 0 at the outer edge of the first pixel. Boxes of NaN
    are not drawn.
    """
    figure, axis, places = _tiled(rows, labels, 0.9)
    for line, row in zip(places, boxes, strict=True):
        for place, scene in zip(line, row, strict=True):
            for left, top, right, bottom in (
                scene[~np.isnan(scene[:, 0])] - 0.5
            ):  # the center of the first pixel is at 0
                look: dict[str, Any] = {"color": STEP_COLOURS[0], "linewidth": 0.8, "transform": place}
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **look))
    return figure


READ, WRITE = "tab:green", "tab:red"


def painting_rows(
    images: np.ndarray | None, canvases: np.ndarray, reading: np.ndarray | None, writing: np.ndarray | None
) -> Figure:
    """One row per image: the image, if any, followed by its canvas at each step.

    ``images (B, C, H, W)`` and ``canvases (T, B, C, H, W)`` are in [0, 1]. ``reading, writing (T, B, 3)`` are the
    windows used to draw each canvas, given by center and side in pixels, and shown in green and red.
    """
    rows = canvases.swapaxes(0, 1)
    if images is not None:
        rows = np.concatenate([images[:, None], rows], 1)
    figure, axis, places = _tiled(list(rows), [""] * len(rows), 0.8)
    for windows, colour in ((reading, READ), (writing, WRITE)):
        if windows is not None:
            for b, line in enumerate(places):
                for place, where in zip(line[-len(canvases) :], windows[:, b], strict=True):
                    _draw_square(axis, where, colour, place)
    return figure


def canvas_gif(
    path: Path, canvases: np.ndarray, reading: np.ndarray | None, writing: np.ndarray | None, seconds: float = 5.0
) -> None:
    """Write a GIF of canvases ``(T + 1, B, C, H, W)`` over time, side by side, with their windows ``(T, B, 3)``."""
    count = len(canvases) - 1
    figure, axes = _grid(1, canvases.shape[1], canvases.shape[1], 1.3, layout=None)
    figure.subplots_adjust(0, 0, 1, 0.8, wspace=0.05)

    def show(frame: int) -> None:
        t = min(frame, count)  # the last canvas stays for a while
        figure.suptitle(f"step {t} of {count}", fontsize=8)
        for b, axis in enumerate(axes[0]):
            axis.clear()
            _show_image(axis, canvases[t, b])
            for windows, colour in ((reading, READ), (writing, WRITE)):
                if windows is not None and 0 < frame <= count:
                    _draw_square(axis, windows[t - 1, b], colour, axis.transData)

    film = FuncAnimation(figure, show, frames=count + 1 + max(1, count // 3))
    film.save(path, PillowWriter(fps=max(1, round(count / seconds))), dpi=100)


def _draw_square(axis: Axes, where: np.ndarray, colour: str, place: Transform) -> None:
    x, y, side = where
    corner = x - side / 2, y - side / 2
    axis.add_patch(Rectangle(corner, side, side, fill=False, color=colour, linewidth=0.8, transform=place))


def _draw_window(axis: Axes, where: np.ndarray, step: int, height: int, width: int, place: Transform) -> None:
    sizes, centre, half = np.array([width, height]), where[1:], np.exp(where[0])
    ends = np.stack([centre - half, centre + half]).clip(-1, 1)  # left and top, right and bottom
    box = ((ends + 1) * sizes / 2 - 0.5).flatten()
    colour = STEP_COLOURS[step % len(STEP_COLOURS)]
    _draw_box(axis, box, place, color=colour)
    axis.text(box[0], box[1], str(step + 1), fontsize=7, va="bottom", color=colour, clip_on=False, transform=place)


def _draw_box(axis: Axes, box: np.ndarray, place: Transform, **look: Any) -> None:
    """Draw (left, top, right, bottom), in coordinates in which the center of the first pixel is at 0."""
    left, top, right, bottom = box
    corner, width, height = (left, top), right - left, bottom - top
    axis.add_patch(Rectangle(corner, width, height, fill=False, clip_on=False, transform=place, **look))


def _show_image(axis: Axes, image: np.ndarray, extent: tuple[float, float, float, float] | None = None) -> None:
    pixels = image.transpose(1, 2, 0).squeeze()
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    axis.set(xticks=[], yticks=[])


def curves(metrics: Sequence[dict], groups: Sequence[Sequence[str]], x: str = "step") -> Figure:
    """One panel per group of metric names, plotted against step or seconds, from the lines of metrics.jsonl."""
    figure, axes = _grid(1, len(groups), 4 * len(groups), 3)
    for names, axis in zip(groups, axes[0], strict=True):
        for name in names:
            points = [(line[x], line[name]) for line in metrics if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name)
        axis.set_xlabel(x)
        if axis.lines:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def curves_by_run(runs: Mapping[str, Sequence[Sequence[dict]]], metric: str, x: str = "seconds") -> Figure:
    """One metric of several runs, from their lines of metrics.jsonl, with one line per run and one color per label.

    The axis of a metric between 0 and 1, such as an accuracy, has a logit scale.
    """
    figure, axis = _one(7, 4)
    for colour, (label, curves_) in enumerate(runs.items()):
        for number, lines in enumerate(curves_):
            points = [(line[x], line[metric]) for line in lines if metric in line]
            name = label if number == 0 else None
            axis.plot(*zip(*points, strict=True), color=f"C{colour}", alpha=0.7, linewidth=1, label=name)
    values = np.concatenate([line.get_ydata() for line in axis.lines])
    axis.set(xlabel=x, ylabel=metric)
    if values.min() > 0 and values.max() < 1:
        axis.set_yscale("logit")
        axis.set_yticks(SHARES, [f"{share:g}" for share in SHARES])
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(values.min(), values.max() + 0.2 * (1 - values.max()))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def image_plane(images: np.ndarray, labels: tuple[str, str]) -> Figure:
    """A grid of images ``(R, C, channels, H, W)`` in [0, 1]. ``labels`` are the labels of the y-axis and the x-axis."""
    rows, columns, channels, height, width = images.shape
    tiled = images.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    figure, axis = _one(7, 7 * tiled.shape[1] / tiled.shape[2])
    _show_image(axis, tiled)
    axis.set(ylabel=labels[0], xlabel=labels[1])
    return figure


def histogram(counts: np.ndarray, kind: str, of: str) -> Figure:
    """A bar chart of the frequencies ``(K)`` of items, sorted in descending order."""
    figure, axis = _one(6, 3)
    axis.bar(np.arange(len(counts)), np.sort(counts)[::-1], width=1.0)
    axis.set(xlabel=f"{kind}, by frequency", ylabel=of, title=f"{(counts > 0).sum()} of {len(counts)} in use")
    return figure


def scatter(
    points: Mapping[str, np.ndarray], mean: np.ndarray | None = None, covariance: np.ndarray | None = None
) -> Figure:
    """Sets of points ``(N, 2)`` side by side, with ellipses of 1 to 3 standard deviations of the truth if given."""
    figure, axes = _grid(1, len(points), 4 * len(points), 4, sharex=True, sharey=True)
    for axis, (label, cloud) in zip(axes[0], points.items(), strict=True):
        axis.plot(*cloud.T, ".", markersize=2, alpha=0.4)
        if covariance is not None:
            angles = np.linspace(0, 2 * np.pi, 200)
            circle = np.linalg.cholesky(np.asarray(covariance)) @ np.stack([np.cos(angles), np.sin(angles)])
            for deviations in (1, 2, 3):
                axis.plot(*(np.asarray(mean)[:, None] + deviations * circle), color="tab:red", linewidth=1)
        axis.set_title(label)
        axis.set_aspect("equal")
    return figure


def angle_histograms(images: np.ndarray, angles: np.ndarray, true: np.ndarray, titles: Sequence[str]) -> Figure:
    """Images ``(B, C, H, W)`` above polar histograms of ``angles (B, S)``. A line shows the ``true (B)`` angle.

    Angles are in radians, counterclockwise from the right.
    """
    figure = Figure(figsize=(1.5 * len(images), 3.2), layout="constrained")
    for column, (image, drawn, truth, title) in enumerate(zip(images, angles, true, titles, strict=True), start=1):
        axis = figure.add_subplot(2, len(images), column)
        _show_image(axis, image)
        axis.set_title(title, fontsize=8)
        axis = figure.add_subplot(2, len(images), len(images) + column, projection="polar")
        bins = np.linspace(-np.pi, np.pi, 37)
        heights, _ = np.histogram(drawn, bins)
        axis.bar(bins[:-1], heights / max(1, heights.max()), width=np.diff(bins), align="edge")
        axis.plot([truth, truth], [0, 1], color="tab:red", linewidth=1)
        axis.set(xticks=np.arange(4) * np.pi / 2, xticklabels=[], yticks=[])
    return figure


def probability_bars(probabilities: np.ndarray, titles: Sequence[str], of: str) -> Figure:
    """A small bar chart for each row of ``probabilities (B, K)``, over the values 0, 1, ... K - 1."""
    figure, axes = _grid(1, len(probabilities), 1.3 * len(probabilities), 1.6, sharey=True)
    for axis, row, title in zip(axes[0], probabilities, titles, strict=True):
        axis.bar(np.arange(len(row)), row)
        axis.set(xticks=np.arange(len(row)), ylim=(0, 1), xlabel=of)
        axis.set_title(title, fontsize=8)
    return figure


def pareto_shapes(diagnostics: xarray.Dataset) -> Figure:
    """A histogram of Pareto's k over the images, from :func:`pplmodels.inspect.weight_diagnostics`.

    Images above the threshold, which is marked, are counted in the title.
    """
    shapes, threshold = diagnostics["pareto_k"].values, diagnostics.attrs["threshold"]
    finite = shapes[np.isfinite(shapes)]
    figure, axis = _one(5, 3)
    axis.hist(finite, bins="auto")
    axis.axvline(threshold, color="tab:red", label=f"threshold {threshold:.2f}")
    above = int((shapes > threshold).sum())
    axis.set(xlabel="Pareto k", ylabel="images", title=f"{above} of {len(shapes)} images above the threshold")
    axis.legend(fontsize=8)
    return figure


def rank_histograms(ranks: xarray.Dataset, columns: int = 4) -> Figure:
    """A histogram of the ranks of each coordinate, from :func:`pplmodels.inspect.calibration`.

    The band contains each bar with probability 0.99 if the ranks are uniform (binomial distribution). Ranks that are
    NaN are left out. ``ranks`` may be a part of the result, such as ``ranks[["z_pres"]]``.
    """
    number, bins = ranks.attrs["num_samples"] + 1, ranks.attrs["num_bins"]
    panels = {}
    for name, variable in ranks.items():
        dims = variable.dims[1:]
        for index in np.ndindex(variable.shape[1:]):
            place = ", ".join(str(variable[dim].values[i]) for dim, i in zip(dims, index, strict=True))
            panels[f"{name}[{place}]" if place else str(name)] = variable.values[(slice(None), *index)]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _grid(rows, columns, 2.5 * columns, 2 * rows, sharex=True)
    edges = np.linspace(0, number, bins + 1) - 0.5
    for axis, (label, values) in zip(axes.flat, panels.items(), strict=False):
        counts, _ = np.histogram(values[np.isfinite(values)], edges)
        low, high = scipy.stats.binom.interval(0.99, counts.sum(), 1 / bins)
        axis.axhspan(low, high, color="0.85")
        axis.stairs(counts, edges, fill=True, alpha=0.7)
        axis.set_ylim(bottom=0)
        axis.set_title(label, fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("rank of the true value")
    return figure


def noise_bars(noise: xarray.DataArray) -> Figure:
    """The gradient variances of :func:`pplmodels.inspect.gradient_noise`, on a logarithmic axis.

    There is a group of bars for each module or site, with a bar for each objective.
    """
    objectives, labels = noise["objective"].values, noise[noise.dims[1]].values
    height = 0.8 / len(objectives)
    figure, axis = _one(6, 1 + 0.2 * noise.size)
    for number, (objective, variances) in enumerate(zip(objectives, noise.values, strict=True)):
        axis.barh(np.arange(len(labels)) + number * height, variances, height, align="edge", label=objective)
    axis.set(xscale="log", xlabel="variance of the gradient")
    axis.set_yticks(np.arange(len(labels)) + 0.4, labels)
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure


def graph(modules: Mapping[str, Mapping[str, Sequence[str]]]) -> Figure:
    """The dependency graphs of each module side by side, with arrows from parents to sites, in topological order."""
    drawn: dict[str, networkx.DiGraph[str]] = {module: networkx.DiGraph() for module in modules}
    rows = {}
    for module, parents in modules.items():
        drawn[module].add_nodes_from(parents)
        drawn[module].add_edges_from((parent, site) for site, others in parents.items() for parent in others)
        rows[module] = list(networkx.topological_generations(drawn[module]))
    deepest = max(map(len, rows.values()))
    figure, axes = _grid(1, len(modules), 5 * len(modules), 1.2 * deepest)
    for axis, (module, arrows) in zip(axes[0], drawn.items(), strict=True):
        for row, sites in enumerate(rows[module]):
            for site in sites:
                arrows.nodes[site]["row"] = -row
        places = networkx.multipartite_layout(arrows, subset_key="row", align="horizontal")
        curved = "arc3,rad=0.25"  # keeps arrows that pass a site visible
        colours: dict[str, Any] = {"node_color": "white", "edgecolors": "tab:blue", "edge_color": "gray"}
        networkx.draw_networkx(arrows, places, ax=axis, node_size=1500, font_size=8, connectionstyle=curved, **colours)
        axis.margins(y=0.7 / deepest)
        axis.set(title=module, xlim=(-1.4, 1.4))
        axis.axis("off")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _tiled(
    rows: Sequence[np.ndarray], labels: Sequence[str], inches: float
) -> tuple[Figure, Axes, list[list[Transform]]]:
    """Rows of images in a single Axes, because Axes are slow, and each image's transform from pixels to its place."""
    columns = len(rows[0])
    tall = max(row.shape[2] / row.shape[3] for row in rows)
    figure, axis = _one(inches * columns + 0.3, inches * tall * len(rows))
    places = []
    for number, row in enumerate(rows):
        height, width = row.shape[2:]
        pixel, top = FILLED / width, number * tall
        for column, image in enumerate(row):
            _show_image(axis, image, (column, column + FILLED, top + pixel * height, top))
        shift = Affine2D().translate(0.5, 0.5).scale(pixel)  # the center of the first pixel is at 0
        places.append([shift.frozen().translate(column, top) + axis.transData for column in range(columns)])
    axis.set(xlim=(FILLED - 1, columns), ylim=(tall * len(rows), FILLED - 1), facecolor="0.8")
    axis.set_yticks(tall * (np.arange(len(rows)) + FILLED / 2), labels, rotation=90, va="center")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure, axis, places


def _grid(
    rows: int,
    columns: int,
    width: float,
    height: float,
    layout: Literal["constrained"] | None = "constrained",
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of the given size in inches, and its axes ``(rows, columns)``."""
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = _grid(1, 1, width, height)
    return figure, axes[0, 0]
