"""Image datasets with training and held-out parts: built-in, from public archives, from files or from folders."""

import itertools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplmodels.data.arrays import NpyFile, NpyImages, array_formats, pixels_of, read_npz
from pplmodels.data.folders import load_folder
from pplmodels.data.images import Images, ImageSet
from pplmodels.data.levels import Decoding
from pplmodels.data.streams import Storage, digests
from pplmodels.data.transforms import threshold
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError
from pplmodels.messages import say

BINARISED = "binarised-mnist"
BINARISED_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
PARTS = ("train", "valid", "test")
# common names of training, held-out and validation images in files
NAMES = (
    ("x_train", "x_test", "x_valid"),
    ("train", "test", "valid"),
    ("train_images", "test_images", "val_images"),
    ("X_train", "X_test", "X_valid"),
)


@float32_on_cpu()
def load_images(
    data: str | Path,
    data_dir: str | Path = "data",
    *,
    background: str = "white",
    image_size: int | None = None,
    white_level: float | None = None,
    memory: int | None = None,
    workers: int | None = None,
) -> ImageSet:
    """Load a dataset of training and held-out images. Prints a line to stderr about what was read and how.

    ``data`` is one of

    - ``digits``: scikit-learn's built-in 8x8 digits;
    - ``mnist``, ``cifar10``, ``svhn``: torchvision's datasets under ``data_dir``, downloaded if possible;
    - ``binarised-mnist``: statically binarized MNIST (Larochelle & Murray 2011) with its own validation images, under
      ``data_dir``, downloaded if possible;
    - an .npz file with training and held-out images, named as in :data:`NAMES`, or with ``train``, ``valid`` and
      ``test``, which contain binarized MNIST as rows of packed bits (:func:`numpy.packbits`);
    - one of two .npy files in the same folder whose names differ in ``train`` and ``test`` (and ``valid``);
    - a folder of .npy files named as in :data:`NAMES`, or of image files (PNG, JPEG, TIFF, BMP, WebP; gray or color, at
      most 2**24 pixels each). The held-out images are those in its subfolder ``test`` or else every tenth image.

    All images are converted to 8 bits per channel (:mod:`pplmodels.data.levels`). Datasets that do not fit into
    ``memory`` are read from disk in batches, which is only supported for .npy files and folders of image files.

    Arguments:
        background: color under transparent pixels.
        image_size: resize images and center-crop them to squares of this side.
        white_level: pixel value of full intensity, if it is not determined by dtype and file format.
        memory: maximum memory for the images in bytes (default: half of the available memory).
        workers: number of data-loading processes (default: 1 to 4).

    Raises:
        InputError: if the data cannot be read as images.
    """
    decoding = Decoding(background, image_size, white_level)
    path, data = Path(data), str(data)
    if path.suffix.lower() == ".npz":
        return _from_npz(path, decoding)
    if data not in BUILT_IN and (path.suffix.lower() == ".npy" or path.is_dir()):
        storage = Storage(memory, workers)
        arrays = _npy_files(path)
        return _from_npy(arrays, decoding, storage) if arrays else load_folder(path, decoding, storage)
    if white_level is not None:
        raise InputError(f"--white-level does not apply to {data}, but only to your own files.")
    images = _built_in(data, Path(data_dir))
    return images.map(lambda part: replace(part, pixels=decoding.fitted(part.pixels[:])))  # [:] is a tensor


def _built_in(data: str, data_dir: Path) -> ImageSet:
    if data == "digits":
        return _digits()
    if data == BINARISED:
        return _binarised_mnist(data_dir)
    if data in TORCHVISION:
        return _from_torchvision(data, data_dir)
    raise InputError(
        f"there is no dataset {data!r}: choose {', '.join(BUILT_IN)}, an .npz or .npy file or a folder of images."
    )


def _digits() -> ImageSet:
    """1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998), in the order of their 13 writers."""
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)  # 17 gray levels
    pixels = torch.from_numpy(images)[:, None]
    return ImageSet(Images(pixels[:1400]), Images(pixels[1400:]))  # the split is by writer


def _from_npz(path: Path, decoding: Decoding) -> ImageSet:
    found = read_npz(path, optional=(*itertools.chain(*NAMES), "x_val", "X_val", "val"))
    if found.keys() == set(PARTS) and any(map(_is_packed, found.values())):
        if decoding.image_size or decoding.white_level:
            raise InputError(f"--image-size and --white-level do not apply to the binarized MNIST in {path}.")
        return _of_parts({name: _unpacked(array, f"{name} in {path}") for name, array in found.items()})
    names = _names(found) or NAMES[0][:2]
    arrays = read_npz(path, required=names)  # raises an error if arrays are missing
    pixels = pixels_of(arrays, str(path), decoding)
    _refuse_sizes(pixels, str(path))
    _say_shared([digests(part) for part in pixels.values()], str(path))
    return ImageSet(*map(Images, pixels.values()))


def _from_npy(paths: list[Path], decoding: Decoding, storage: Storage) -> ImageSet:
    files = {path.name: NpyFile(path) for path in paths}
    source = str(paths[0].parent)
    kinds = {name: (file.stored, file.dtype) for name, file in files.items()}
    formats = array_formats(kinds, {name: file.chunks() for name, file in files.items()}, source, decoding)
    images = {name: NpyImages(file, formats[name]) for name, file in files.items()}
    _refuse_sizes(images, source)
    resident = storage.holds(*images.values())
    read = [storage.read(part, resident) for part in images.values()]
    _say_shared([part.contents for part in read], source)
    return ImageSet(*(Images(part.pixels) for part in read))


def _npy_files(path: Path) -> list[Path]:
    """The .npy files of training, held-out and optional validation images: in a folder, or next to a given file."""
    if path.is_dir():
        names = _names({file.stem for file in path.glob("*.npy")}) or ()
        return [path / f"{name}.npy" for name in names]
    use = "train" if "train" in path.stem else "test"
    before, _, after = path.stem.rpartition(use)
    files = [path.with_stem(f"{before}{other}{after}") for other in ("train", "test", "valid", "val")]
    if files[0] == files[1]:
        raise InputError(f"{path} must be one of two files such as x_train.npy and x_test.npy.")
    return [*files[:2], *[file for file in files[2:] if file.is_file()][:1]]


def _names(found: Collection[str]) -> tuple[str, ...] | None:
    """The names in ``found`` of training, held-out and optional validation images."""
    for train, test, valid in NAMES:
        if train in found and test in found:
            used = [name for name in (valid, valid.replace("valid", "val")) if name in found]
            return (train, test, *used[:1])
    return None


def _refuse_sizes(parts: Mapping[str, Tensor | NpyImages], source: str) -> None:
    shapes = {name: tuple(part.shape[-3:]) for name, part in parts.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise InputError(f"{first} and {name} in {source} differ in size: {shapes[first]} and {shape}.")


def _say_shared(parts: Sequence[list[bytes]], source: str) -> None:
    """Print how many held-out images are also training images, as given by the files."""
    known = set(parts[0])
    if shared := sum(digest in known for part in parts[1:] for digest in part):
        say(
            f"warning: {shared:,} held-out images in {source} are also training images, so held-out metrics are "
            "too optimistic"
        )


def _of_parts(pixels: dict[str, Tensor]) -> ImageSet:
    parts = {name: Images(array * 255, transform=threshold) for name, array in pixels.items()}
    return ImageSet(parts["train"], parts["test"], parts["valid"])


def _is_packed(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 2 and array.shape[1] == 28 * 28 // 8 and len(array) > 0


def _unpacked(rows: np.ndarray, name: str) -> Tensor:
    """Unpack rows of bits to images of 0 and 1."""
    if not _is_packed(rows):
        raise InputError(f"{name} is not binarized MNIST, whose rows are {28 * 28 // 8} bytes of packed bits.")
    return torch.from_numpy(np.unpackbits(rows, axis=1)).view(-1, 1, 28, 28)


def _binarised_mnist(data_dir: Path) -> ImageSet:
    from torchvision.datasets.utils import download_url

    paths = {name: data_dir / f"binarized_mnist_{name}.amat" for name in PARTS}
    for path in paths.values():
        if not path.exists():
            try:
                with _no_empty_folders(data_dir):
                    download_url(BINARISED_URL + path.name, data_dir)
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"{BINARISED} is not in {data_dir} and could not be downloaded: put "
                    f"{', '.join(p.name for p in paths.values())} there, or give another folder with --data-dir."
                ) from error
    return _of_parts({name: _read_amat(path) for name, path in paths.items()})


def _read_amat(path: Path) -> Tensor:
    """Read images of 0 and 1 from lines of 784 numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns about text that is not a number
            pixels = np.fromfile(path, dtype=np.float32, sep=" ")
        images = pixels.reshape(-1, 1, 28, 28)
    except (OSError, ValueError, DeprecationWarning) as error:
        raise InputError(f"{path} does not contain binarized MNIST, or is truncated.") from error
    if not len(images) or not np.isin(images, (0, 1)).all():
        raise InputError(f"{path} does not contain binarized MNIST, because it has values other than 0 and 1.")
    return torch.from_numpy(images.astype(np.uint8))


def _mnist(root: Path, train: bool, download: bool) -> Tensor:
    from torchvision.datasets import MNIST

    return MNIST(root, train, download=download).data[:, None]


def _cifar10(root: Path, train: bool, download: bool) -> Tensor:
    from torchvision.datasets import CIFAR10  # it verifies checksums before unpickling

    return torch.from_numpy(CIFAR10(root, train, download=download).data).permute(0, 3, 1, 2).contiguous()


def _svhn(root: Path, train: bool, download: bool) -> Tensor:
    from torchvision.datasets import SVHN

    return torch.from_numpy(SVHN(root, "train" if train else "test", download=download).data)


MNIST_FILES = tuple(
    f"MNIST/raw/{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
CIFAR10_FILES = tuple(
    f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)
# a loader, and the files in the data folder that it reads
TORCHVISION: dict[str, tuple[Callable[[Path, bool, bool], Tensor], tuple[str, ...]]] = {
    "mnist": (_mnist, MNIST_FILES),
    "cifar10": (_cifar10, CIFAR10_FILES),
    "svhn": (_svhn, ("train_32x32.mat", "test_32x32.mat")),
}


BUILT_IN = ("digits", *TORCHVISION, BINARISED)


def _from_torchvision(name: str, data_dir: Path) -> ImageSet:
    load, files = TORCHVISION[name]
    there = all((data_dir / file).exists() for file in files)
    broken = (RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, AssertionError)  # raised by torchvision
    try:
        with _no_empty_folders((data_dir / files[0]).parent):
            return ImageSet(*(Images(load(data_dir, train, not there)) for train in (True, False)))
    except broken as error:
        if there:
            raise InputError(
                f"the files in {(data_dir / files[0]).parent} are not those of {name}, or are truncated."
            ) from error
        raise InputError(
            f"{name} is not in {data_dir} and could not be downloaded: put {', '.join(files)} "
            "there, give another folder with --data-dir, or use --data digits."
        ) from error


@contextmanager
def _no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove ``folder`` and its parents on exit if they were created inside this context and are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()
