"""Binarised MNIST from packed bits and from its published text files."""

import numpy as np
import pytest

from pplmodels.data import load_images
from pplmodels.errors import InputError


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def packed(number, seed=0):
    return np.packbits(np.random.default_rng(seed).integers(0, 2, (number, 784)).astype(np.uint8), axis=1)


def test_binarised_mnist_loads_from_packed_bits_with_its_own_parts(tmp_path):
    parts = {name: packed(number) for name, number in (("train", 5), ("valid", 3), ("test", 2))}
    images = load_images(save(tmp_path / "a.npz", **parts))
    assert [len(part) for part in (images.train, images.valid, images.test)] == [5, 3, 2]
    assert images.with_validation(1).valid is images.valid
    assert np.array_equal(images.valid[:].numpy().reshape(3, 784), np.unpackbits(parts["valid"], axis=1))


@pytest.mark.parametrize("wrong", [packed(3)[:, :-1], packed(3).astype(np.int64), packed(3)[:0]], ids=str)
def test_bits_that_are_no_mnist_are_refused(tmp_path, wrong):
    path = save(tmp_path / "a.npz", train=packed(5), valid=wrong, test=packed(2))
    with pytest.raises(InputError, match=r"valid in .* is not binarized MNIST"):
        load_images(path)


def test_binarised_mnist_loads_from_its_text_files(tmp_path):
    for number, name in enumerate(("train", "valid", "test"), start=2):
        np.savetxt(tmp_path / f"binarized_mnist_{name}.amat", np.unpackbits(packed(number), axis=1), fmt="%d")
    images = load_images("binarised-mnist", tmp_path)
    assert [len(part) for part in (images.train, images.valid, images.test)] == [2, 3, 4]
    assert np.array_equal(images.test[:].numpy().reshape(4, 784), np.unpackbits(packed(4), axis=1))


@pytest.mark.parametrize("text", ["0 1 1", "0 2 " * 392, "0 1 cat " * 392, ""], ids=["cut", "levels", "words", "empty"])
def test_text_files_that_are_no_mnist_are_refused(tmp_path, text):
    for name in ("train", "valid", "test"):
        (tmp_path / f"binarized_mnist_{name}.amat").write_text(text)
    with pytest.raises(InputError, match=r"binarized_mnist_train\.amat does not contain binarized MNIST"):
        load_images("binarised-mnist", tmp_path)


def test_binarised_mnist_that_is_not_there_says_what_to_do(tmp_path, monkeypatch):
    def refuse(url, root):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    with pytest.raises(InputError, match=r"put binarized_mnist_train\.amat.*--data-dir"):
        load_images("binarised-mnist", tmp_path)
