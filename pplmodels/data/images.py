"""The containers of image datasets."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pplmodels.data.streams import SOME, DiskPixels, PackedBits
from pplmodels.data.transforms import Transform, threshold, to_float
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11

BATCH = 500  # batch size of evaluation
LARGE = 3 * 32 * 32  # values per image above which evaluation uses smaller batches


@dataclass(frozen=True)
class Images:
    """A set of 8-bit images with optional object counts, or of other data that a model is trained on.

    ``pixels`` of images is uint8 ``(N, C, H, W)``, which needs a quarter of the memory of floats, or an object that
    reads such pixels from disk. Other data, such as points ``(N, D)`` of floats or maps of codes ``(N, H, W)``, is a
    tensor of any dtype, for which :meth:`frozen`, :meth:`levels` and :meth:`mean` have no meaning. Indexing applies
    ``transform``, by default to intensities in [0, 1]. ``counts`` is int64 ``(N)`` or None. ``copies_of``,
    int64 ``(N)``, has the same number for all copies of an image, or is None if there are no copies. ``boxes`` are the
    objects' bounding boxes, float32 ``(N, K, 4)``, or None (:func:`pplmodels.data.load_scenes`).
    """

    pixels: Tensor | DiskPixels
    counts: Tensor | None = None
    transform: Transform = to_float
    copies_of: Tensor | None = None
    boxes: Tensor | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pixels)

    def __getitem__(self, index) -> Tensor:
        """The transformed images: ``(C, H, W)`` for an integer, ``(B, C, H, W)`` for a slice or indices."""
        return self.transform(self.pixels[index])

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, or the shape of one item of other data."""
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> "Self":
        """The same images on another device."""
        return self._each(lambda rows: rows.to(device))

    def part(self, indices: slice | Tensor) -> "Self":
        """A subset of the images."""
        return self._each(lambda rows: rows.part(indices) if isinstance(rows, DiskPixels) else rows[indices])

    def _each(self, change: Callable) -> "Self":
        names = [field.name for field in fields(self) if field.name != "transform"]
        rows = {name: getattr(self, name) for name in names}
        return replace(self, **{name: change(value) for name, value in rows.items() if value is not None})

    def head(self, n: int) -> "Self":
        """The first ``n`` images."""
        return self.part(slice(n))

    def with_transform(self, transform: Transform) -> "Self":
        """The same images with another transform."""
        return replace(self, transform=transform)

    @float32_on_cpu()
    def frozen(self, seed: int = 0) -> "Self":
        """The same images, with random binarization sampled once and then fixed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(self.pixels, DiskPixels):
                drawn = (self.transform(pixels).bool().numpy() for pixels in self.to("cpu").levels())
                bits = PackedBits(drawn, self.pixels.source.shape)
                return replace(self, pixels=DiskPixels.all_of(bits, 0, self.pixels.device), transform=threshold)
            levels = (self.transform(self.pixels.cpu()) * 255).byte().to(self.pixels.device)
            return replace(self, pixels=levels, transform=threshold)

    def levels(self) -> Iterator[Tensor]:
        """All 8-bit levels in order, in batches uint8 ``(B, C, H, W)``."""
        return self._rows(torch.arange(len(self), device="cpu").split(SOME))

    def batched(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images at each of ``batches`` of indices. Images on disk are prefetched."""
        return map(self.transform, self._rows(batches))

    def _rows(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.pixels, DiskPixels):
            return self.pixels.batched(batches)
        return (self.pixels[indices] for indices in batches)

    def at_once(self, most: int) -> int:
        """A batch size: ``most``, or less for large images, which need more memory."""
        values = math.prod(self.shape)
        return most if values <= LARGE else min(most, max(64, 2**19 // values))

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """All images in order, in float batches of ``size`` (default: :data:`BATCH`). The last may be smaller."""
        size = size or self.at_once(BATCH)
        if isinstance(self.pixels, DiskPixels):
            return self.batched(torch.arange(len(self), device="cpu").split(size))
        return (self[start : start + size] for start in range(0, len(self), size))

    def mean(self) -> float:
        """The mean intensity of all pixels."""
        levels = sum(int(pixels.sum(dtype=torch.int64)) for pixels in self.levels())
        return levels / (255 * len(self) * math.prod(self.shape))


@dataclass(frozen=True)
class ImageSet:
    """Training, test and validation images. ``valid`` is None if a source has no validation images."""

    train: Images
    test: Images
    valid: Images | None = None

    def with_validation(self, number: int | None = None) -> "ValidatedImageSet":
        """The dataset with its own validation images, or with ``number`` (default: a tenth) of the training images.

        The same training images are selected each time.
        """
        if self.valid is not None:
            return ValidatedImageSet(self.train, self.test, self.valid)
        number = number or max(1, len(self.train) // 10)
        if number >= len(self.train):
            raise InputError(f"{number} validation images leave none of the {len(self.train)} images for training.")
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0), device="cpu")
        chosen, others = order[:number], order[number:]
        if (copies_of := self.train.copies_of) is not None:  # copies must not stay in the training set
            others = others[~torch.isin(copies_of[others], copies_of[chosen])]
            if not len(others):
                raise InputError(f"{number} validation images and their copies leave no images for training.")
        return ValidatedImageSet(self.train.part(others), self.test, self.train.part(chosen))

    def map(self, change: Callable[[Images], Images]) -> "Self":
        """The dataset with ``change`` applied to each part."""
        valid = {} if self.valid is None else {"valid": change(self.valid)}
        return replace(self, train=change(self.train), test=change(self.test), **valid)


@dataclass(frozen=True)
class ValidatedImageSet(ImageSet):
    """Training, test and validation images."""

    valid: Images = field()  # required, unlike that of ImageSet
