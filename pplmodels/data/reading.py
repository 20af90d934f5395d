"""How 8-bit images become what a likelihood is about: functions from uint8 ``(..., C, H, W)`` to floats."""

from collections.abc import Callable

import torch
from torch import Tensor

Reading = Callable[[Tensor], Tensor]


def as_they_are(values: Tensor) -> Tensor:
    """No change, for vectors of floats; as all readings do, it gives torch's default type of floats."""
    return values.to(torch.get_default_dtype())


def intensities(pixels: Tensor) -> Tensor:
    """Levels divided by 255, in [0, 1]."""
    return pixels.to(torch.get_default_dtype()) / 255


def dequantised(pixels: Tensor) -> Tensor:
    """(level + u) / 256 in [0, 1) with u ~ U(0, 1), drawn anew at each reading.

    A density on [0, 1] of such values bounds the probability of the levels: log P(level) >= E_u log p - D log 256
    (Theis et al. 2016, arXiv 1511.01844, section 3.1).
    """
    return (pixels + torch.rand(pixels.shape, device=pixels.device)) / 256


def bernoulli(pixels: Tensor) -> Tensor:
    """1 with a probability that is the intensity, else 0, drawn anew at each reading (dynamic binarisation)."""
    return torch.bernoulli(intensities(pixels))


def thresholded(pixels: Tensor) -> Tensor:
    """1 where the intensity is above a half, else 0."""
    return (pixels > 127).to(torch.get_default_dtype())


def codes(values: Tensor) -> Tensor:
    """Whole numbers as int64."""
    return values.long()


def bits(pixels: Tensor) -> Tensor:
    """Maps of 0 and 1, int64 ``(..., H, W)``: 1 where a grey pixel is above a half."""
    return (pixels > 127).long().squeeze(-3)


def grey_levels(pixels: Tensor) -> Tensor:
    """Maps of 0..255, int64 ``(..., H, W)``, of grey pixels."""
    return pixels.long().squeeze(-3)


READINGS: dict[str, Reading] = {
    "levels": intensities,
    "dequantised": dequantised,
    "dynamic": bernoulli,
    "threshold": thresholded,
    "static": thresholded,  # of images that are black and white already
}
MAPS: dict[str, Reading] = {"codes": codes, "bits": bits, "levels": grey_levels}  # of whole numbers
