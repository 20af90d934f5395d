"""Sets of images, for training and held out: built in, from torchvision, from a file, from a folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pplmodels.data.arrays import read_npz, to_pixels
from pplmodels.data.images import Images
from pplmodels.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
HELD_OUT = 10  # every tenth image of a folder


def load_images(data: str, data_dir: str | Path = "data") -> tuple[Images, Images]:
    """(train, test) images, which share none.

    ``data`` is one of

    - ``digits``: scikit-learn's 8x8 digits, built in;
    - ``mnist``, ``cifar10``, ``svhn``: torchvision's, under ``data_dir``, downloaded where that is possible;
    - an .npz file with ``x_train`` and ``x_test`` (see :func:`pplmodels.data.arrays.to_pixels`);
    - a folder of images of one size (PNG, JPEG, BMP, WebP; grey or colour), of which every tenth is held out.
    """
    if data == "digits":
        return _digits()
    if data in TORCHVISION:
        return _from_torchvision(data, Path(data_dir))
    if data.endswith(".npz"):
        return _from_npz(data)
    if Path(data).is_dir():
        return _from_folder(Path(data))
    raise InputError(
        f"there is no data set {data!r}: choose digits, {', '.join(TORCHVISION)}, an .npz file or a folder."
    )


def _digits() -> tuple[Images, Images]:
    """1,797 real handwritten digits (UCI, Alpaydin & Kaynak 1998), in the order of their 13 writers."""
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)  # 17 grey levels
    pixels = torch.from_numpy(images)[:, None]
    return Images(pixels[:1400]), Images(pixels[1400:])  # whole writers are held out


def _from_npz(path: str) -> tuple[Images, Images]:
    arrays = read_npz(path, required=("x_train", "x_test"))
    train, test = (Images(to_pixels(arrays[name], f"{name} in {path}")) for name in ("x_train", "x_test"))
    if train.shape != test.shape:
        raise InputError(f"x_train and x_test in {path} differ in size: {train.shape} and {test.shape}.")
    return train, test


def _from_folder(folder: Path) -> tuple[Images, Images]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if len(paths) < HELD_OUT:
        raise InputError(f"{folder} holds {len(paths)} images ({', '.join(ENDINGS)}); at least {HELD_OUT} are needed.")
    arrays = [_read_image(path) for path in paths]
    colour = any(array.ndim == 3 for array in arrays)
    first = arrays[0].shape[:2]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape[:2] != first:
            sizes = [f"{height}x{width}" for height, width in (first, array.shape[:2])]
            raise InputError(
                f"the images in {folder} differ in size: {paths[0].name} is {sizes[0]}, {path} is {sizes[1]}."
            )
    arrays = [array if array.ndim == 3 or not colour else np.stack([array] * 3, -1) for array in arrays]
    pixels = to_pixels(np.stack(arrays), str(folder))
    held_out = torch.arange(len(pixels)) % HELD_OUT == HELD_OUT - 1
    return Images(pixels[~held_out]), Images(pixels[held_out])


def _read_image(path: Path) -> np.ndarray:
    """One image as uint8, ``(H, W)`` if it is grey and ``(H, W, 3)`` else."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16", "LA") else "RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image.") from error


def _mnist(root: Path, train: bool, download: bool) -> Tensor:
    from torchvision.datasets import MNIST

    return MNIST(root, train, download=download).data[:, None]


def _cifar10(root: Path, train: bool, download: bool) -> Tensor:
    from torchvision.datasets import CIFAR10  # which compares checksums before it unpickles

    return torch.from_numpy(CIFAR10(root, train, download=download).data).permute(0, 3, 1, 2).contiguous()


def _svhn(root: Path, train: bool, download: bool) -> Tensor:
    from torchvision.datasets import SVHN

    return torch.from_numpy(SVHN(root, "train" if train else "test", download=download).data)


MNIST_FILES = tuple(
    f"MNIST/raw/{half}-{kind}-ubyte" for half in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
CIFAR10_FILES = tuple(
    f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)
# a loader, and the files that it reads under the data folder
TORCHVISION: dict[str, tuple[Callable[[Path, bool, bool], Tensor], tuple[str, ...]]] = {
    "mnist": (_mnist, MNIST_FILES),
    "cifar10": (_cifar10, CIFAR10_FILES),
    "svhn": (_svhn, ("train_32x32.mat", "test_32x32.mat")),
}


def _from_torchvision(name: str, data_dir: Path) -> tuple[Images, Images]:
    load, files = TORCHVISION[name]
    there = all((data_dir / file).exists() for file in files)
    broken = (RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, AssertionError)  # torchvision's answers
    try:
        return tuple(Images(load(data_dir, train, not there)) for train in (True, False))
    except broken as error:
        if there:
            raise InputError(
                f"the files in {(data_dir / files[0]).parent} are not those of {name}, or were cut short."
            ) from error
        raise InputError(
            f"{name} is not in {data_dir} and could not be downloaded: put {', '.join(files)} "
            "there, name another folder with --data-dir, or use --data digits."
        ) from error
