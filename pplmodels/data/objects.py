"""Single objects, for training and held out, that scenes are composed of."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplmodels.data.arrays import read_npz, to_pixels
from pplmodels.data.images import Images
from pplmodels.errors import InputError

MNIST_FILES = tuple(f"{half}-{kind}-ubyte" for half in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def load_objects(data: str, data_dir: str | Path = "data") -> tuple[Images, Images]:
    """(train, test) images of single objects, which share none.

    ``data`` is ``digits`` (scikit-learn's 8x8 digits, built in), ``mnist`` (torchvision's, under ``data_dir``,
    downloaded where that is possible) or an .npz file with ``x_train`` and ``x_test``
    (see :func:`pplmodels.data.arrays.to_pixels`).
    """
    if data == "digits":
        return _digits()
    if data == "mnist":
        return _mnist(Path(data_dir))
    if not data.endswith(".npz"):
        raise InputError(f"there is no data set {data!r}: choose digits, mnist or an .npz file.")
    arrays = read_npz(data, required=("x_train", "x_test"))
    train, test = (Images(to_pixels(arrays[name], f"{name} in {data}")) for name in ("x_train", "x_test"))
    if train.shape != test.shape:
        raise InputError(f"x_train and x_test in {data} differ in size: {train.shape} and {test.shape}.")
    return train, test


def _digits() -> tuple[Images, Images]:
    """1,797 real handwritten digits (UCI, Alpaydin & Kaynak 1998), in the order of their 13 writers."""
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)  # 17 grey levels
    pixels = torch.from_numpy(images)[:, None]
    return Images(pixels[:1400]), Images(pixels[1400:])  # whole writers are held out


def _mnist(data_dir: Path) -> tuple[Images, Images]:
    from torchvision.datasets import MNIST

    def load(download: bool) -> tuple[Images, Images]:
        return tuple(Images(MNIST(data_dir, train, download=download).data[:, None]) for train in (True, False))

    raw = data_dir / "MNIST" / "raw"
    there = all((raw / name).exists() for name in MNIST_FILES)
    broken = (RuntimeError, OSError, EOFError, ValueError, TypeError, AssertionError)  # what torchvision answers with
    try:
        return load(download=not there)
    except broken as error:
        if there:
            raise InputError(f"the files in {raw} are not MNIST's, or were cut short.") from error
        raise InputError(
            f"MNIST is not in {raw} and could not be downloaded: put the four files {', '.join(MNIST_FILES)} "
            "there, name the folder above MNIST with --data-dir, or use --data digits."
        ) from error


def ink_extent(objects: Images) -> float:
    """The mean side of the objects' bounding boxes as a fraction of the frame (pixels over a tenth of full)."""
    ink = objects.pixels.amax(1) > 25  # (N, h, w)
    sides = [_extent(ink.any(dim)) for dim in (1, 2)]
    return float(torch.stack(sides).amax(0).mean())


def _extent(occupied: Tensor) -> Tensor:
    """Length from the first to the last True of each row of ``(N, size)``, as a fraction of the size."""
    size = occupied.shape[1]
    positions = torch.arange(size)
    first = torch.where(occupied, positions, size).amin(1)
    last = torch.where(occupied, positions, -1).amax(1)
    return (last - first + 1).clamp(min=0) / size
