"""Sets of images, for training and held out: built in, from public archives, from a file, from a folder."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pplmodels.data.arrays import read_npz, to_pixels
from pplmodels.data.images import Images, ImageSet
from pplmodels.data.reading import thresholded
from pplmodels.errors import InputError, refused_as

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# whatever a file is called: other readers are little used, and that of EPS starts a program
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
PIXELS = 2**24  # of an image, such as 4096 x 4096: about 200 MB while it is read, and a file of 1 KB can claim more
HELD_OUT = 10  # every tenth image of a folder
BINARISED = "binarised-mnist"
BINARISED_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
PARTS = ("train", "valid", "test")


def load_images(data: str, data_dir: str | Path = "data") -> ImageSet:
    """Images to train on and to measure on, which share none.

    ``data`` is one of

    - ``digits``: scikit-learn's 8x8 digits, built in;
    - ``mnist``, ``cifar10``, ``svhn``: torchvision's, under ``data_dir``, downloaded where that is possible;
    - ``binarised-mnist``: MNIST binarised for good (Larochelle & Murray 2011), with a validation part of its own, under
      ``data_dir``, downloaded where that is possible;
    - an .npz file with ``x_train``, ``x_test`` and perhaps ``x_valid`` (:func:`pplmodels.data.arrays.to_pixels`), or
      with ``train``, ``valid`` and ``test``, binarised MNIST as rows of packed bits (:func:`numpy.packbits`);
    - a folder of images of one size (PNG, JPEG, BMP, WebP; grey or colour, at most 2**24 pixels
      each), of which every tenth is held out.
    """
    if data == "digits":
        return _digits()
    if data == BINARISED:
        return _binarised_mnist(Path(data_dir))
    if data in TORCHVISION:
        return _from_torchvision(data, Path(data_dir))
    if data.endswith(".npz"):
        return _from_npz(data)
    if Path(data).is_dir():
        return _from_folder(Path(data))
    known = ", ".join(["digits", *TORCHVISION, BINARISED])
    raise InputError(f"there is no data set {data!r}: choose {known}, an .npz file or a folder.")


def _digits() -> ImageSet:
    """1,797 real handwritten digits (UCI, Alpaydin & Kaynak 1998), in the order of their 13 writers."""
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)  # 17 grey levels
    pixels = torch.from_numpy(images)[:, None]
    return ImageSet(Images(pixels[:1400]), Images(pixels[1400:]))  # whole writers are held out


def _from_npz(path: str) -> ImageSet:
    bits = read_npz(path, optional=PARTS)
    if len(bits) == len(PARTS):
        return _of_parts({name: _unpacked(array, f"{name} in {path}") for name, array in bits.items()})
    arrays = read_npz(path, required=("x_train", "x_test"), optional=("x_valid",))
    parts = [Images(to_pixels(array, f"{name} in {path}")) for name, array in arrays.items()]
    for name, part in zip(arrays, parts, strict=True):
        if part.shape != parts[0].shape:
            raise InputError(f"x_train and {name} in {path} differ in size: {parts[0].shape} and {part.shape}.")
    return ImageSet(*parts)


def _of_parts(pixels: dict[str, Tensor]) -> ImageSet:
    parts = {name: Images(array * 255, reading=thresholded) for name, array in pixels.items()}
    return ImageSet(parts["train"], parts["test"], parts["valid"])


def _unpacked(array: np.ndarray, name: str) -> Tensor:
    """Rows of packed bits as images of 0 and 1."""
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != 28 * 28 // 8 or not len(array):
        raise InputError(f"{name} is not binarised MNIST: rows of {28 * 28 // 8} bytes of packed bits.")
    return torch.from_numpy(np.unpackbits(array, axis=1)).view(-1, 1, 28, 28)


def _binarised_mnist(data_dir: Path) -> ImageSet:
    from torchvision.datasets.utils import download_url

    paths = {name: data_dir / f"binarized_mnist_{name}.amat" for name in PARTS}
    for path in paths.values():
        if not path.exists():
            try:
                download_url(BINARISED_URL + path.name, data_dir)
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"{BINARISED} is not in {data_dir} and could not be downloaded: put "
                    f"{', '.join(p.name for p in paths.values())} there, or name another folder with --data-dir."
                ) from error
    return _of_parts({name: _read_amat(path) for name, path in paths.items()})


def _read_amat(path: Path) -> Tensor:
    """Images of 0 and 1 from lines of 784 numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of text that is no number
            pixels = np.fromfile(path, dtype=np.float32, sep=" ")
        images = pixels.reshape(-1, 1, 28, 28)
    except (OSError, ValueError, DeprecationWarning) as error:
        raise InputError(f"{path} does not hold binarised MNIST, or was cut short.") from error
    if not len(images) or not np.isin(images, (0, 1)).all():
        raise InputError(f"{path} does not hold binarised MNIST: its numbers are not 0 and 1.")
    return torch.from_numpy(images.astype(np.uint8))


def _from_folder(folder: Path) -> ImageSet:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
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
    return ImageSet(Images(pixels[~held_out]), Images(pixels[held_out]))


def _read_image(path: Path) -> np.ndarray:
    """One image as uint8, ``(H, W)`` if it is grey and ``(H, W, 3)`` else."""
    with refused_as(f"{path} is not a readable image."), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is a lower one
        if path.stat().st_size > 8 * PIXELS:  # bytes a pixel, of 16 bits in four channels
            raise InputError(f"{path} has more bytes than an image of {PIXELS:,} pixels, which are the most.")
        # from memory: of a file Pillow asks for as many bytes as a part of it claims to have, there or not
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise InputError(f"{path} has {image.height}x{image.width} pixels; {PIXELS:,} are the most.")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16", "LA") else "RGB"))


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


def _from_torchvision(name: str, data_dir: Path) -> ImageSet:
    load, files = TORCHVISION[name]
    there = all((data_dir / file).exists() for file in files)
    broken = (RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, AssertionError)  # torchvision's answers
    try:
        return ImageSet(*(Images(load(data_dir, train, not there)) for train in (True, False)))
    except broken as error:
        if there:
            raise InputError(
                f"the files in {(data_dir / files[0]).parent} are not those of {name}, or were cut short."
            ) from error
        raise InputError(
            f"{name} is not in {data_dir} and could not be downloaded: put {', '.join(files)} "
            "there, name another folder with --data-dir, or use --data digits."
        ) from error
