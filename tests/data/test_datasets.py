"""Images: real ones, files, and files that are wrong."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pplmodels.data import dequantize, dynamic_binarize, load_images, threshold
from pplmodels.data.images import Images, ValidatedImageSet
from pplmodels.errors import InputError

GOOD = np.zeros((4, 6, 6), np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def splits(*source):
    images = load_images(*source)
    return images.train, images.test


def test_digits_are_real_whole_and_split():
    train, test = splits("digits")
    assert (len(train), len(test), train.shape) == (1400, 397, (1, 8, 8))
    assert train.pixels.max() == 255
    assert len(np.unique(train.pixels.numpy())) == 17
    known = {image.tobytes() for image in train.pixels.numpy()}
    assert not any(image.tobytes() in known for image in test.pixels.numpy())


@pytest.mark.parametrize(
    "array",
    [
        np.full((3, 6, 6), 255, np.uint8),
        np.full((3, 6, 6, 1), 255, np.uint8),
        np.ones((3, 6, 6), np.float32),
        np.ones((3, 6, 6, 3), np.float64),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_files_of_all_promised_kinds_load(tmp_path, array):
    train, test = splits(save(tmp_path / "a.npz", x_train=array, x_test=array[:2]))
    channels = array.shape[3] if array.ndim == 4 else 1
    assert train.pixels.shape == (3, channels, 6, 6) and len(test) == 2
    assert train.pixels.dtype == torch.uint8 and train.pixels.eq(255).all()


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"x_train": GOOD}, "has no array named x_test"),
        ({"x_train": GOOD[0], "x_test": GOOD}, "has shape"),
        ({"x_train": np.zeros((4, 6, 6, 2), np.uint8), "x_test": GOOD}, "has shape"),
        ({"x_train": GOOD[:0], "x_test": GOOD}, "has shape"),
        ({"x_train": GOOD.astype(np.int32) + 2, "x_test": GOOD}, "has type int32"),
        ({"x_train": GOOD + np.nan, "x_test": GOOD}, "NaN"),
        ({"x_train": GOOD + 1.5, "x_test": GOOD}, r"values from 1\.5 to 1\.5"),
        ({"x_train": GOOD - 0.5, "x_test": GOOD}, "values from -0.5"),
        ({"x_train": GOOD, "x_test": np.zeros((4, 7, 6), np.uint8)}, "differ in size"),
        ({"x_train": np.array([{}], object), "x_test": GOOD}, "not a readable"),
    ],
    ids=str,
)
def test_wrong_arrays_get_one_sentence(tmp_path, arrays, sentence):
    with pytest.raises(InputError, match=sentence):
        load_images(save(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "npy", "empty", "folder"])
def test_wrong_files_get_one_sentence(tmp_path, damage):
    path = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    save(path, x_train=rng.integers(0, 255, (40, 6, 6)).astype(np.uint8), x_test=GOOD)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:700])
    elif damage == "text":
        path.write_text("no archive")
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, GOOD)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(InputError, match="is not a"):
        load_images(str(path))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        InputError, match=r"choose digits, mnist, cifar10, svhn, binarised-mnist, an \.npz or \.npy file or a folder"
    ):
        load_images("cats")


def test_mnist_that_is_not_there_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def refuse(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(MNIST, "download", refuse)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.*--data-dir.*--data digits") as caught:
        load_images("mnist", tmp_path)
    assert str(tmp_path) in str(caught.value) and "MNIST/raw" in str(caught.value)


def write_mnist(folder):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    for split in ("train", "t10k"):
        head = [0x803, 5, 28, 28]
        (raw / f"{split}-images-idx3-ubyte").write_bytes(np.array(head, ">i4").tobytes() + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(np.array([0x801, 5], ">i4").tobytes() + bytes(5))
    return raw, images


def test_mnist_in_torchvisions_layout_loads(tmp_path):
    _, images = write_mnist(tmp_path)
    train, _ = splits("mnist", tmp_path)
    assert np.array_equal(train.pixels[:, 0].numpy(), images)


@pytest.mark.parametrize("size", [0, 3, 10, 1000])
def test_mnist_that_was_cut_short_is_refused(tmp_path, size):
    raw, _ = write_mnist(tmp_path)
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match="are truncated"):
        load_images("mnist", tmp_path)


def write_folder(folder, number=12, size=(6, 5), mode="L"):
    for i in range(number):
        (folder / f"part{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, i if mode == "L" else (i, 2 * i, 3 * i)).save(folder / f"part{i % 2}" / f"{i:02}.png")
    return sorted(folder.rglob("*.png"))


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_a_folder_of_images_loads_and_every_tenth_is_held_out(tmp_path, mode, channels):
    write_folder(tmp_path, 20, mode=mode)
    train, test = splits(str(tmp_path))
    assert (len(train), len(test), train.shape) == (18, 2, (channels, 5, 6))
    together = torch.cat([train.pixels, test.pixels])[:, 0, 0, 0]
    assert sorted(together.tolist()) == list(range(20))


def test_a_folder_of_grey_and_coloured_images_is_coloured(tmp_path):
    paths = write_folder(tmp_path)
    Image.new("RGB", (6, 5), (255, 0, 0)).save(paths[3])
    assert load_images(str(tmp_path)).train.shape == (3, 5, 6)


@pytest.mark.parametrize(
    "damage, sentence",
    [
        ("empty", "has 0 images"),
        ("text", "03.png is not a readable image"),
        ("cut", "03.png is not a readable image"),
        ("size", "differ in size: 00.png is 5x6, .*03.png is 5x7"),
    ],
)
def test_wrong_folders_get_one_sentence(tmp_path, damage, sentence):
    if damage == "empty":
        (tmp_path / "notes.txt").write_text("nothing here")
    else:
        write_folder(tmp_path)
        path = tmp_path / "part1" / "03.png"
        if damage == "text":
            path.write_text("no image")
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:40])
        elif damage == "size":
            Image.new("L", (7, 5)).save(path)
    with pytest.raises(InputError, match=sentence):
        load_images(str(tmp_path))


def test_cifar10_in_torchvisions_layout_loads(tmp_path, monkeypatch):
    """Files of the real format, with their own checksums in place of the real ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name):
        images[name] = rng.integers(0, 256, (4, 3072)).astype(np.uint8)
        return write(name, {"data": images[name], "labels": [0] * 4})

    monkeypatch.setattr(CIFAR10, "train_list", [list(batch(f"data_batch_{i}")) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [list(batch("test_batch"))])
    name, checksum = write("batches.meta", {"label_names": ["a"]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    train, test = splits("cifar10", tmp_path)
    assert (len(train), len(test), train.shape) == (20, 4, (3, 32, 32))
    assert np.array_equal(test.pixels.numpy().reshape(4, -1), images["test_batch"])


def test_svhn_in_torchvisions_layout_loads(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    rng = np.random.default_rng(0)
    lists = dict(SVHN.split_list)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": rng.integers(0, 256, (32, 32, 3, 5)).astype(np.uint8), "y": np.ones((5, 1), np.uint8)})
        lists[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", lists)
    train, test = splits("svhn", tmp_path)
    assert (len(train), len(test), train.shape) == (5, 5, (3, 32, 32))


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_what_is_not_there_says_what_to_do(tmp_path, monkeypatch, name):
    import torchvision.datasets as datasets

    def refuse(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)
    monkeypatch.setattr(datasets.svhn, "download_url", refuse)
    with pytest.raises(InputError, match=f"{name} is not in .*--data-dir.*--data digits"):
        load_images(name, tmp_path)


def test_readings_are_what_they_say():
    images = Images((torch.arange(256, dtype=torch.uint8)).view(256, 1, 1, 1))
    assert images[:].max() == 1 and images.with_transform(threshold)[:].sum() == 128
    draws = torch.stack([images.with_transform(dynamic_binarize)[:] for _ in range(2000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), images[:], atol=0.06, rtol=0)  # 5 standard errors
    noisy = images.with_transform(dequantize)
    first, second = noisy[:], noisy[:]
    assert not torch.equal(first, second)  # drawn anew
    assert torch.equal((first * 256).floor().byte(), images.pixels)  # and within its level
    frozen = images.with_transform(dynamic_binarize).frozen(seed=1)
    assert torch.equal(frozen[:], frozen[:]) and set(frozen[:].unique().tolist()) == {0.0, 1.0}


def test_validation_images_are_training_images_no_longer():
    images = load_images("digits").with_validation()
    assert (len(images.train), len(images.valid), len(images.test)) == (1260, 140, 397)
    known = {image.tobytes() for image in images.train.pixels.numpy()}
    assert not any(image.tobytes() in known for image in images.valid.pixels.numpy())
    again = load_images("digits").with_validation()
    assert torch.equal(again.valid.pixels, images.valid.pixels)
    few = images.map(lambda part: part.head(3))
    assert type(few) is ValidatedImageSet and (len(few.train), len(few.valid), len(few.test)) == (3, 3, 3)
    with pytest.raises(InputError, match="leave none"):
        load_images("digits").with_validation(1400)
