"""The container of every image data set here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pplmodels.data.reading import Reading, intensities, thresholded
from pplmodels.errors import InputError


@dataclass(frozen=True)
class Images:
    """A set of 8-bit images and, where it is known, how many objects each shows.

    ``pixels`` is uint8 ``(N, C, H, W)``, a quarter of the memory of floats; indexing gives what ``reading`` makes of
    them, float32 intensities in [0, 1] unless told otherwise. ``counts`` is int64 ``(N)`` or None.
    """

    pixels: Tensor
    counts: Tensor | None = None
    reading: Reading = intensities

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pixels)

    def __getitem__(self, index) -> Tensor:
        """Images as float32: ``(C, H, W)`` for a number, ``(B, C, H, W)`` for a slice or indices."""
        return self.reading(self.pixels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        counts = None if self.counts is None else self.counts.to(device)
        return replace(self, pixels=self.pixels.to(device), counts=counts)

    def part(self, indices: slice | Tensor) -> "Images":
        """Some of the images."""
        counts = None if self.counts is None else self.counts[indices]
        return replace(self, pixels=self.pixels[indices], counts=counts)

    def head(self, n: int) -> "Images":
        """The first ``n`` images."""
        return self.part(slice(n))

    def read_as(self, reading: Reading) -> "Images":
        """The same images, read in another way."""
        return replace(self, reading=reading)

    def frozen(self, seed: int = 0) -> "Images":
        """The same images with one drawing of a random binarisation (:func:`bernoulli`) for good."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = self.reading(self.pixels.cpu())
        return Images((drawn * 255).byte().to(self.pixels.device), self.counts, thresholded)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images once, in order, as float batches; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclass(frozen=True)
class ImageSet:
    """Images to train on, to measure on at the end, and to choose by, which is None where a source has no such part."""

    train: Images
    test: Images
    valid: Images | None = None

    def with_validation(self, number: int | None = None) -> "ImageSet":
        """The set's own validation images, or ``number`` of the training images (a tenth), the same ones every time."""
        if self.valid is not None:
            return self
        number = number or max(1, len(self.train) // 10)
        if number >= len(self.train):
            raise InputError(f"{number} validation images leave none of the {len(self.train)} to train on.")
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return replace(self, train=self.train.part(order[number:]), valid=self.train.part(order[:number]))

    def map(self, change: Callable[[Images], Images]) -> "ImageSet":
        """The set with each of its parts changed."""
        parts = (self.train, self.test, self.valid)
        return ImageSet(*(None if part is None else change(part) for part in parts))
