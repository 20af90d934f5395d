"""Images on disk that are read in batches by the worker processes of torch's DataLoader."""

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pplmodels.errors import InputError
from pplmodels.machine import available_memory, processors
from pplmodels.messages import say

AHEAD = 4  # batches that each worker prefetches
SOME = 256  # batch size for reading all images in order
GRACE = 30  # seconds that a worker continues after SIGTERM
FEW = 4096  # number of images below which starting processes does not pay off


class Source(Protocol):
    """Images on disk. Sources can be sent to other processes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, indices: Iterable[int]) -> Tensor:
        """The images at ``indices``, uint8 ``(B, C, H, W)``, deterministically. Raises :class:`InputError`."""


@dataclass(frozen=True)
class DiskPixels:
    """Pixels ``(N, C, H, W)`` on disk that are indexed like a tensor. Results are tensors on ``device``.

    Arguments:
        source: the images on disk.
        order: indices of these images in the source, int64 ``(N)``.
        workers: number of processes that prefetch in :meth:`batched`; 0 reads in this process.
    """

    source: Source
    order: Tensor
    workers: int
    device: torch.device
    dtype = torch.uint8

    @classmethod
    def all_of(cls, source: Source, workers: int, device: torch.device | str = "cpu") -> "DiskPixels":
        """All images of a source in order."""
        return cls(source, torch.arange(len(source), device="cpu"), workers, torch.device(device))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.order)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), *self.source.shape))

    def __getitem__(self, index) -> Tensor:
        """Read the pixels at an index, a slice or indices."""
        chosen = self.order[_on_cpu(index)]
        pixels = self.source.read(chosen.flatten().tolist())
        return pixels.view(*chosen.shape, *self.source.shape).to(self.device)

    def part(self, index: slice | Tensor) -> "DiskPixels":
        """A subset of the pixels, which is not read yet."""
        return replace(self, order=self.order[_on_cpu(index)])

    def to(self, device: torch.device | str) -> "DiskPixels":
        """The same pixels with results on another device."""
        return replace(self, device=torch.device(device))

    def batched(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The pixels at each of ``batches`` of indices, prefetched. ``batches`` may be infinite."""
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            _Batches(self.source),
            batch_size=None,  # each index refers to a whole batch
            sampler=(self.order[_on_cpu(indices)].tolist() for indices in batches),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            pin_memory=pinned,
            worker_init_fn=_leave_signals_alone,
            generator=torch.Generator(),  # for worker seeds, so that torch's global generator does not change
        )
        for pixels in loader:
            if isinstance(pixels, InputError):
                raise pixels
            yield pixels.to(self.device, non_blocking=pinned)


@dataclass(frozen=True)
class Read:
    """The pixels of a source, and the :func:`digests` and the maximum level of each image."""

    pixels: Tensor | DiskPixels
    contents: list[bytes]
    brightest: list[int]


@dataclass(frozen=True)
class Storage:
    """Keeps images in memory if they fit, otherwise on disk.

    Arguments:
        memory: maximum memory of a dataset in bytes (default: half of the available memory).
        workers: number of processes that read from disk (default: number of processors minus one, from 1 to 4).
    """

    memory: int | None = None
    workers: int | None = None

    def holds(self, *sources: Source) -> bool:
        """Whether the images of all sources together fit into memory. Prints a line if they do not."""
        size = sum(len(source) * math.prod(source.shape) for source in sources)
        memory = available_memory() // 2 if self.memory is None else self.memory
        if size > memory:
            say(f"the images need {size:,} bytes, more than {memory:,} (--data-memory), so they are read in batches")
        return size <= memory

    def read(self, source: Source, resident: bool) -> "Read":
        """Read every image once, so that unreadable images raise an error. Keep the pixels if ``resident``."""
        workers = min(4, max(1, processors() - 1)) if self.workers is None else self.workers
        on_disk = DiskPixels.all_of(source, workers)
        in_memory = torch.empty(on_disk.shape, dtype=torch.uint8, device="cpu") if resident else None
        reading = replace(on_disk, workers=workers if len(source) > FEW else 0)
        batches = reading.batched(on_disk.order.split(SOME))
        contents: list[bytes] = []
        brightest: list[int] = []
        with tqdm(total=len(source), desc="reading images", delay=2, leave=False, unit=" images") as bar:
            for start, batch in zip(range(0, len(source), SOME), batches, strict=True):
                if in_memory is not None:
                    in_memory[start : start + len(batch)] = batch
                contents += digests(batch)
                brightest += batch.flatten(1).amax(1).tolist()
                bar.update(len(batch))
        return Read(on_disk if in_memory is None else in_memory, contents, brightest)


class PackedBits:
    """Images of 0 and 255 in memory with one bit per pixel, for fixed binarizations of images on disk.

    ``parts`` are booleans ``(B, C, H, W)`` of all images in order; ``shape`` is (C, H, W).
    """

    def __init__(self, parts: Iterable[np.ndarray], shape: tuple[int, int, int]):
        self.shape = shape
        self._bits = np.concatenate([np.packbits(part.reshape(len(part), -1), axis=1) for part in parts])

    def __len__(self) -> int:
        """The number of images."""
        return len(self._bits)

    def read(self, indices: Iterable[int]) -> Tensor:
        """The images at ``indices``, uint8 ``(B, C, H, W)``."""
        bits = np.unpackbits(self._bits[list(indices)], axis=1, count=math.prod(self.shape))
        return torch.from_numpy(bits * np.uint8(255)).view(-1, *self.shape)


def digests(pixels: Tensor) -> list[bytes]:
    """Digests of the contents of images ``(N, ...)``."""
    return [blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.cpu().numpy()]


class _Batches(Dataset):
    """A dataset of batches. Errors are returned as values, because the loader would change their messages."""

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, indices: Sequence[int]) -> Tensor | InputError:
        try:
            return self.source.read(indices)
        except InputError as error:
            return error


def _leave_signals_alone(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in workers: they reach all processes of a group, but the training ends its workers.

    The training may also send a SIGTERM if a worker does not end otherwise, so workers end after :data:`GRACE` seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


def _on_cpu(index):
    return index.cpu() if isinstance(index, Tensor) else index
