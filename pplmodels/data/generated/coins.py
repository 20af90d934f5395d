"""Scenes cut from a photograph of coins.

The photograph comes with scikit-image (``skimage.data.coins()``, from the Brooklyn Museum's collection): 24 Greek coins
in 4 rows of 6 on a dark, unevenly lit ground, 303 x 384 gray pixels. The lit upper part of the ground is about as
bright as the darker coins, so no single threshold separates them.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pplmodels.errors import InputError

DARK, BRIGHT = 30, 150  # levels that are certainly ground, and certainly coins
OPENING = 2  # iterations of the opening that removes what is thinner than a coin
SHADOW = 8  # pixels around a coin that are painted over with it
LOCAL = 12.0  # standard deviation in pixels of the Gaussian that averages the ground
GRAIN = 1.0  # standard deviation in pixels of the Gaussian that correlates the noise of painted ground
BORDER = 150  # the row of pixels between the second and the third row of coins
REDUCED = 2  # pixels of the photograph per pixel of a scene, in each direction
CHUNK = 500  # number of scenes that are cut at once


@dataclass(frozen=True)
class Photograph:
    """The photograph of coins. All arrays are ``(H, W)``.

    photo: levels from 0 to 255; coins: the number of the coin, 0 for the ground; around: the number of the coin whose
    surroundings contain the pixel, or 0; empty: the photograph with ground in place of the coins.
    """

    photo: np.ndarray
    coins: np.ndarray
    around: np.ndarray
    empty: np.ndarray

    def rows(self, part: slice) -> "Photograph":
        """Some rows of the photograph."""
        return Photograph(self.photo[part], self.coins[part], self.around[part], self.empty[part])


def load_coins() -> Photograph:
    """The photograph with its segmented coins.

    The coins are segmented by a watershed of the gradient (Sobel) from markers below level 30 and above level 150, as
    in scikit-image's tutorial; holes are filled and fragments are removed. The ground under a coin and its shadow is a
    normalized Gaussian average of the ground nearby with noise of the ground's standard deviation. Raises
    :class:`InputError` if scikit-image is not installed.
    """
    try:
        from skimage import data, filters, segmentation
    except ImportError as error:
        raise InputError(
            "the photograph of coins comes with scikit-image, which is not installed: pip install scikit-image."
        ) from error
    photo = data.coins()
    markers = np.where(photo < DARK, 1, np.where(photo > BRIGHT, 2, 0))
    coin = segmentation.watershed(filters.sobel(photo), markers) == 2
    coin = ndimage.binary_opening(ndimage.binary_fill_holes(coin), iterations=OPENING)
    coins, _ = ndimage.label(coin)
    around = segmentation.expand_labels(coins, SHADOW)
    return Photograph(photo, coins, around, _without(photo, around > 0))


def _without(photo: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """The photograph with ground in place of the ``painted`` pixels."""
    ground = (~painted).astype(float)
    mean = ndimage.gaussian_filter(photo * ground, LOCAL) / ndimage.gaussian_filter(ground, LOCAL)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(photo.shape), GRAIN)
    noise *= (photo - mean)[~painted].std() / noise.std()
    return np.where(painted, (mean + noise).clip(0, 255), photo)


def cut_coins(
    photograph: Photograph, number: int, canvas: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random square crops, reduced to half their side: scenes, counts ``(N)`` and boxes ``(N, K, 4)``.

    Scenes are uint8 ``(N, canvas, canvas, 1)``, and are mirrored at random in both directions. A coin is counted if at
    least half of its pixels are in the crop; other coins are painted over with ground. Boxes are the extents of the
    visible pixels of the coins, in pixels of the scene, with rows of NaN behind the last coin.
    """
    side = REDUCED * canvas
    height, width = photograph.photo.shape
    if side > min(height, width):
        raise InputError(
            f"--canvas must be at most {min(height, width) // REDUCED} for coins, whose photograph has {height} rows "
            "of pixels for each part of the data."
        )
    parts = [_cut(photograph, min(CHUNK, number - start), side, rng) for start in range(0, number, CHUNK)]
    scenes, counts, boxes = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.isnan(boxes[..., 0]).argsort(1, kind="stable")[..., None]
    return scenes, counts, np.take_along_axis(boxes, order, 1)[:, : counts.max()]


def _cut(
    photograph: Photograph, number: int, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like :func:`cut_coins`, with a box per coin of the photograph, NaN if it is not in the crop."""
    height, width = photograph.photo.shape
    rows = rng.integers(height - side + 1, size=(number, 1)) + np.arange(side)
    columns = rng.integers(width - side + 1, size=(number, 1)) + np.arange(side)
    mirrored = rng.integers(2, size=(2, number, 1)).astype(bool)
    rows = np.where(mirrored[0], rows[:, ::-1], rows)[:, :, None]
    columns = np.where(mirrored[1], columns[:, ::-1], columns)[:, None, :]

    coins = photograph.coins[rows, columns]
    total = np.bincount(photograph.coins.ravel(), minlength=photograph.around.max() + 1)
    scene = np.arange(number)[:, None, None]
    visible = np.bincount((scene * len(total) + coins).ravel(), minlength=number * len(total))
    kept = 2 * visible.reshape(number, -1) >= np.maximum(total, 1)
    kept[:, 0] = True  # the ground
    pixels = np.where(
        kept[scene, photograph.around[rows, columns]], photograph.photo[rows, columns], photograph.empty[rows, columns]
    )
    canvas = side // REDUCED
    scenes = pixels.reshape(number, canvas, REDUCED, canvas, REDUCED).mean((2, 4), dtype=np.float64)

    boxes = np.full((number, len(total) - 1, 4), np.nan)
    for coin in range(1, len(total)):
        there = np.flatnonzero(kept[:, coin])
        shown = coins[there] == coin
        for axis, line in ((0, shown.any(1)), (1, shown.any(2))):
            boxes[there, coin - 1, axis] = line.argmax(1)
            boxes[there, coin - 1, axis + 2] = side - line[:, ::-1].argmax(1)
    return np.rint(scenes).astype(np.uint8)[..., None], kept[:, 1:].sum(1), boxes / REDUCED
