"""Backgrounds of generated scenes.

Each pixel of a background is a mixture ``a + t (b - a)`` of two colors of its scene, so the colors of a background are
the line segment from a to b in RGB. Colors are in [0, 1], with one channel for gray scenes and three for color scenes.
"""

from dataclasses import dataclass

import numpy as np

GROUNDS = ("black", "constant", "graded", "textured", "noise", "grid")
BRIGHTEST_GRAY = 0.5  # largest level of gray backgrounds, so that white objects are visible
WAVES = 6  # number of sinusoids of a texture
FREQUENCY = 3.0  # maximum number of periods of a sinusoid across the canvas, in each direction
SPACING = 5  # pixels from one line of a grid to the next
GRID_LEVEL = 0.4  # level of the lines of a gray grid


@dataclass(frozen=True)
class Grounds:
    """Backgrounds ``pixels (N, H, W, C)``, and the two colors of each scene, ``ends (N, 2, C)``."""

    pixels: np.ndarray
    ends: np.ndarray


def ground_colours(number: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Random colors of backgrounds ``(number, channels)``, uniform over gray levels of at most 0.5 or over RGB."""
    brightest = BRIGHTEST_GRAY if channels == 1 else 1.0
    return rng.uniform(0, brightest, (number, channels)).astype(np.float32)


def make_grounds(kind: str, number: int, canvas: int, palette: np.ndarray, rng: np.random.Generator) -> Grounds:
    """``number`` backgrounds of ``canvas`` x ``canvas`` pixels.

    ``palette (2, C)`` has the two colors that all scenes of a dataset share.

    ==========  =====================================================================================================
    black       level 0
    constant    the first color of ``palette``
    graded      two random colors per scene, mixed linearly along a random direction
    textured    two random colors per scene, mixed by a sum of sinusoids with random directions and low frequencies
    noise       like constant, or black if gray; the noise is added to the complete scenes (:func:`add_noise`)
    grid        lines every 5 pixels with a random offset per scene. Gray lines have level 0.4 on black, as in SuPAIR
                (Stelzner et al. 2019); lines in color have the second color of ``palette`` on the first
    ==========  =====================================================================================================
    """
    channels = palette.shape[1]
    mixed = np.zeros((number, canvas, canvas), np.float32)
    if kind in ("graded", "textured"):
        ends = ground_colours(2 * number, channels, rng).reshape(number, 2, channels)
        mixed = _stretched((_gradients if kind == "graded" else _textures)(number, canvas, rng))
    else:
        if kind == "grid":
            mixed = _grids(number, canvas, rng)
            colours = np.array([[0], [GRID_LEVEL]]) if channels == 1 else palette
        elif kind == "black" or (kind == "noise" and channels == 1):
            colours = np.zeros_like(palette)
        else:
            colours = palette[[0, 0]]
        ends = np.broadcast_to(colours.astype(np.float32), (number, 2, channels))
    first, second = ends[:, None, None, 0], ends[:, None, None, 1]
    return Grounds(first + mixed[..., None] * (second - first), ends)


def add_noise(scenes: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Scenes in [0, 1] with Gaussian noise, after a mapping of their levels to 0.1..0.9 (as in SuPAIR)."""
    noise = rng.standard_normal(scenes.shape, dtype=np.float32)
    return (0.1 + 0.8 * scenes + deviation * noise).clip(0, 1)


def _gradients(number: int, canvas: int, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi, (number, 1)).astype(np.float32)
    position = np.linspace(-1, 1, canvas, dtype=np.float32)
    return (np.sin(angle) * position)[:, :, None] + (np.cos(angle) * position)[:, None, :]


def _textures(number: int, canvas: int, rng: np.random.Generator) -> np.ndarray:
    # cos(u + v) = cos u cos v - sin u sin v, where u depends on the row and v on the column: a product of matrices
    position = np.arange(canvas, dtype=np.float32) / canvas
    frequency = rng.uniform(-FREQUENCY, FREQUENCY, (2, number, WAVES, 1)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (number, WAVES, 1)).astype(np.float32)
    rows, columns = 2 * np.pi * frequency * position
    columns += phase
    rows = np.concatenate([np.cos(rows), -np.sin(rows)], 1)  # (N, 2 WAVES, H)
    return rows.swapaxes(1, 2) @ np.concatenate([np.cos(columns), np.sin(columns)], 1)


def _grids(number: int, canvas: int, rng: np.random.Generator) -> np.ndarray:
    offset = rng.integers(SPACING, size=(2, number, 1))
    rows, columns = np.arange(canvas) % SPACING == offset
    return (rows[:, :, None] | columns[:, None, :]).astype(np.float32)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Each of ``(N, H, W)`` scaled and shifted to 0..1."""
    low, high = (end(axis=(1, 2), keepdims=True) for end in (values.min, values.max))
    return (values - low) / (high - low)
