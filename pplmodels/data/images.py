"""The container of every image data set here."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A set of 8-bit images and, where it is known, how many objects each shows.

    ``pixels`` is uint8 ``(N, C, H, W)``, a quarter of the memory of floats; indexing with a tensor of indices gives
    float32 intensities in [0, 1]. ``counts`` is int64 ``(N)`` or None.
    """

    pixels: Tensor
    counts: Tensor | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pixels)

    def __getitem__(self, index) -> Tensor:
        """Images as float32 in [0, 1]: ``(C, H, W)`` for a number, ``(B, C, H, W)`` for a slice or indices."""
        return self.pixels[index].float() / 255

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return Images(self.pixels.to(device), None if self.counts is None else self.counts.to(device))

    def head(self, n: int) -> "Images":
        """The first ``n`` images."""
        return Images(self.pixels[:n], None if self.counts is None else self.counts[:n])

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images once, in order, as float batches; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]
