"""Estimating the background of scenes, and the pixels that differ from it."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.polynomial.legendre import legvander
from scipy import ndimage
from torch import Tensor

from pplmodels.boxes import INK
from pplmodels.data.images import Images
from pplmodels.defaults import float32_on_cpu

LOOKED_AT = 2000  # maximum number of scenes for an estimate
VALUES = 2**23  # number of values beyond which fewer scenes are used, but not less than FEW
FEW = 50
NORMAL = 0.6745  # median absolute value of a standard normal variable
WITHIN_SCENE = np.zeros((3, 3, 3), bool)  # the neighborhood of a pixel, along (scene, row, column)
WITHIN_SCENE[1] = True
STEADY = 5  # levels by which the backgrounds of scenes may differ and still be the same
ABOVE_NOISE = 4.5  # a difference in units of the noise that one pixel of 100,000 exceeds by chance
WEAKER = 0.7  # the lower of two thresholds, relative to the higher
SMOOTHED = 0.45  # noise after a median filter over rows and columns, relative to before
RUNNING = 5  # pixels at a side whose median is compared between scenes
DEGREE = 2  # of the polynomial that is fitted to a scene's background
FITTED = 30  # maximum number of rows and of columns used for the fit
DECOMPOSED = 500  # minimum number of scenes whose principal components are computed, if there are as many
MOST_PATTERNS, GAP, SHARE = 16, 3.0, 0.2  # maximum number of patterns, ratio of variances, and explained variance
EDGE_ROUNDS, ROUNDS = 5, 12  # of reweighting: those of the outermost pixels only, and all
TUNING = 2.5  # residual in units of its scale, at which a pixel's weight is a quarter


@dataclass(frozen=True)
class Ground:
    """The background of scenes.

    ==========  =========================================================================
    kind        meaning
    ==========  =========================================================================
    "black"     scenes are black outside of objects
    "common"    all scenes have the same background, which is a color or a picture
    "varying"   the scenes' backgrounds differ, for example in level, slope or texture
    ==========  =========================================================================

    Arguments:
        kind: see the table.
        level: median intensity of the outermost pixels, in [0, 1].
        noise: robust standard deviation of a pixel around a smooth background, in [0, 1].
        picture: per-pixel median of the scenes, float ``(C, H, W)`` in [0, 1]; a single color if ``kind`` is "black",
            and the mean if there are ``patterns``. None if no scenes were examined.
        patterns: orthogonal pictures, float ``(P, C, H, W)``, if ``kind`` is "varying" and a few explain how the
            backgrounds differ from ``picture``: principal components, one standard deviation each.
    """

    kind: Literal["black", "common", "varying"] = "black"
    level: float = 0.0
    noise: float = 0.0
    picture: Tensor | None = field(default=None, repr=False, compare=False)
    patterns: Tensor | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """A description for the terminal."""
        found = f"level {self.level:.2f}, pixel noise {self.noise:.2f}"
        how = "" if self.patterns is None else f", as a combination of {len(self.patterns)} pictures"
        return {
            "black": f"the background of the scenes is black ({found}): none is learned",
            "common": f"all scenes have the same background ({found}): one background for all scenes is learned",
            "varying": f"the background varies from scene to scene ({found}): a background per scene is learned{how}",
        }[self.kind] + " (--background-model)"


def examined(scenes: Images) -> Images:
    """The scenes that estimates are based on: up to 2,000, evenly spaced in the dataset."""
    most = min(LOOKED_AT, max(FEW, VALUES // max(1, math.prod(scenes.shape))))
    if len(scenes) <= most:
        return scenes
    return scenes.part(torch.linspace(0, len(scenes) - 1, most, dtype=torch.float64, device="cpu").round().long())


def eight_bits(scenes: Images) -> np.ndarray:
    """The levels of images, int16 ``(N, C, H, W)``, so that differences do not overflow."""
    return torch.cat([levels.cpu() for levels in scenes.levels()]).numpy().astype(np.int16)


@float32_on_cpu()
def ground_of(scenes: Images) -> Ground:
    """The background of scenes, estimated from up to 2,000 of them.

    It is "black" if the median level of the outermost pixels is at most a tenth of full intensity in nine of ten
    scenes. It is "common" if the outermost pixels differ between scenes by no more than neighboring pixels do.
    """
    levels = eight_bits(examined(scenes))
    edge = np.concatenate(_sides(levels), -1)  # (N, C, E)
    level = float(np.median(edge))
    noise = _noise(levels)
    if np.quantile(np.median(edge, -1).max(-1), 0.9) <= INK:
        if noise:  # half of it may be clipped, but not the upper quartile
            noise = max(noise, float(np.quantile(edge, 0.75) - level) / NORMAL)
        color = np.median(edge, (0, 2))[:, None, None]
        return Ground("black", level / 255, noise / 255, _intensities(np.broadcast_to(color, levels.shape[1:])))
    picture = np.median(levels, 0)
    rest = levels - picture.astype(np.int16)
    noise_of_rest = _noise(rest)
    kind: Literal["common", "varying"] = "common" if _agree(rest, noise_of_rest) else "varying"
    patterns = _patterns(levels) if kind == "varying" else None
    if patterns is not None:
        picture = levels.mean(0)
    return Ground(kind, level / 255, min(noise, noise_of_rest) / 255, _intensities(picture), patterns)


def _patterns(levels: np.ndarray) -> Tensor | None:
    """:attr:`Ground.patterns` of scenes; None if no few pictures explain how they differ.

    The variances along the principal components have a gap after the patterns: objects at random places need many
    components with similar variances.
    """
    few = levels[:: max(1, len(levels) // DECOMPOSED)].astype(np.float32) / 255
    rest = (few - few.mean(0)).reshape(len(few), -1)
    variance, directions = (part[..., ::-1] for part in np.linalg.eigh(rest @ rest.T))  # from the largest on
    most = min(MOST_PATTERNS, len(variance) - 1)
    ratios = variance[:most] / np.maximum(variance[1 : most + 1], 1e-12)
    gaps = np.flatnonzero(ratios >= GAP)
    if not len(gaps):
        return None
    number = int(gaps[-1]) + 1
    if variance[:number].sum() < SHARE * variance.sum():
        return None
    pictures = directions[:, :number].T @ rest / len(few) ** 0.5
    return torch.from_numpy(pictures.reshape(number, *levels.shape[1:]))


def _intensities(picture: np.ndarray) -> Tensor:
    return torch.from_numpy((picture / 255).astype(np.float32))


def _sides(levels: np.ndarray) -> list[np.ndarray]:
    """The pixels at each side of the images."""
    return [levels[..., 0, :], levels[..., -1, :], levels[..., 0], levels[..., -1]]


def _noise(levels: np.ndarray) -> float:
    """Robust standard deviation of pixels around a locally linear surface, from second differences of neighbors."""
    second = [np.abs(np.diff(levels, 2, axis)).ravel() for axis in (-1, -2) if levels.shape[axis] > 2]
    if not second:
        return 0.0
    counts = np.bincount(np.concatenate(second))
    below = counts.cumsum() - counts / 2
    below[0] = 0
    median = float(np.interp(counts.sum() / 2, below, np.arange(len(counts)))) if 2 * counts[0] < counts.sum() else 0.0
    return median / (NORMAL * math.sqrt(6))


def _agree(rest: np.ndarray, noise: float) -> bool:
    """Whether scenes, minus their median, show nothing but noise at their sides."""
    windows = [sliding_window_view(side, min(RUNNING, side.shape[-1]), -1) for side in _sides(rest)]
    smooth = np.concatenate([np.median(window, -1) for window in windows], -1)
    if np.median(np.abs(smooth)) / NORMAL > max(STEADY, 0.85 * noise):  # without variation, 0.54 noise
        return False
    pixels = np.abs(np.concatenate(_sides(rest), -1))  # lines and dots disappear in medians of neighbors
    return np.quantile(pixels, 0.7) / 1.036 <= max(STEADY, 1.6 * noise)  # without variation, the noise


def foreground(levels: np.ndarray, ground: Ground) -> np.ndarray:
    """The pixels that differ from the background in any channel, bool ``(N, H, W)``.

    ``levels`` are 8-bit levels, int16 ``(N, C, H, W)``. The background is ``ground.picture``, or if it varies, a
    smooth surface fitted to each scene. The threshold has hysteresis: differences exceed a tenth of full intensity and
    3.15 standard deviations of the background, and are connected to one that exceeds 4.5. Strong noise is reduced by a
    median filter, which blurs noisy edges, so that objects then end where their difference falls to one half.
    """
    assert ground.picture is not None
    rest = levels - (255 * ground.picture.numpy()).round().astype(np.int16)
    if ground.kind == "varying":
        few = slice(None, None, max(1, len(levels) // FEW))
        # scenes may have a texture in common
        rest = min((rest, levels), key=lambda part: _scale(part[few] - smooth_background(part[few])).mean())
        rest = rest - smooth_background(rest)
    noise = ABOVE_NOISE * 255 * ground.noise
    noisy = noise > INK
    if noisy:
        rest = _median_of_three(_median_of_three(rest, -1), -2)
        noise *= SMOOTHED
    difference = np.abs(rest)
    high = np.maximum(noise, ABOVE_NOISE * _scale(rest)) if ground.kind == "varying" else noise
    clear, likely = ((difference > np.maximum(INK, level)).any(1) for level in (high, WEAKER * high))
    differs = ndimage.binary_propagation(clear, WITHIN_SCENE, mask=likely)
    return differs & _above_half(difference.max(1), differs) if noisy else differs


def _above_half(difference: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """Where the difference is more than half of the median in its connected component, bool ``(N, H, W)``."""
    labels, number = ndimage.label(differs, WITHIN_SCENE)
    half = np.full(number + 1, np.inf)
    if number:
        half[1:] = ndimage.median(difference[differs], labels[differs], np.arange(1, number + 1)) / 2
    return difference > half[labels]


def _scale(rest: np.ndarray) -> np.ndarray:
    """Robust standard deviation of the background in each channel of each scene, ``(N, C, 1, 1)``.

    It is computed from the 0.4 quantile of absolute values, so that objects may cover half of a scene.
    """
    return np.quantile(np.abs(rest), 0.4, (2, 3), keepdims=True) / 0.5244


def _median_of_three(values: np.ndarray, axis: int) -> np.ndarray:
    """The median of each value and its two neighbors, which keeps straight edges and corners."""
    width = [(0, 0)] * values.ndim
    width[axis] = (1, 1)
    padded, size = np.pad(values, width, mode="reflect"), values.shape[axis]
    before, at, after = (np.take(padded, range(start, start + size), axis) for start in range(3))
    return np.maximum(np.minimum(before, at), np.minimum(np.maximum(before, at), after))


def smooth_background(levels: np.ndarray) -> np.ndarray:
    """A polynomial surface fitted to the background of each scene, float32 ``(N, C, H, W)``.

    Iteratively reweighted least squares with the weights of Geman and McClure, w = 1 / (1 + (r / c)^2)^2, which fall to
    zero for pixels of objects. The first rounds use only the outermost pixels, most of which belong to the background.
    """
    height, width = levels.shape[-2:]
    rows, columns = (
        np.unique(np.linspace(0, size - 1, min(size, FITTED)).round().astype(int)) for size in (height, width)
    )
    basis = _basis(height, width)  # (K, H, W)
    at = basis[:, rows[:, None], columns].reshape(len(basis), -1).T  # (P, K)
    y = levels[..., rows[:, None], columns].reshape(*levels.shape[:2], -1).astype(np.float32)  # (N, C, P)
    products = (at[:, :, None] * at[:, None]).reshape(len(at), -1)  # (P, K * K)
    edge = np.zeros((len(rows), len(columns)), np.float32)
    edge[[0, -1]] = edge[:, [0, -1]] = 1
    weights = np.broadcast_to(edge.ravel(), y[:, 0].shape)
    for step in range(ROUNDS):
        gram = (weights @ products).reshape(-1, *at.shape[1:] * 2) + 1e-3 * np.eye(at.shape[1], dtype=np.float32)
        coefficients = np.linalg.solve(gram[:, None], ((weights[:, None] * y) @ at)[..., None])[..., 0]  # (N, C, K)
        r = np.abs(y - coefficients @ at.T)  # (N, C, P)
        within = r[..., edge.ravel() > 0] if step < EDGE_ROUNDS else r
        r /= np.maximum(1, np.median(within, -1, keepdims=True) / NORMAL)
        weights = 1 / (1 + (r.max(1) / TUNING) ** 2) ** 2  # (N, P)
        if step < EDGE_ROUNDS - 1:
            weights = weights * edge.ravel()
    return np.tensordot(coefficients, basis, 1)


def _basis(height: int, width: int) -> np.ndarray:
    """Products of Legendre polynomials up to the total degree, float32 ``(K, H, W)``."""
    y, x = (legvander(np.linspace(-1, 1, size), DEGREE) for size in (height, width))
    kept = [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    return np.stack([np.outer(y[:, i], x[:, j]) for i, j in kept]).astype(np.float32)
