"""Images that stay on disk are the images that are in memory, in the same order, from the same random numbers."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pplmodels.data import dequantize, dynamic_binarize, load_images
from pplmodels.data.streams import DiskPixels
from pplmodels.errors import InputError
from pplmodels.training.loop import _orders

SCRIPTS = Path(__file__).parents[2] / "scripts"
CPU = torch.device("cpu")
COLOURS = np.random.default_rng(0).integers(0, 256, (300, 6, 5, 3)).astype(np.uint8)


@pytest.fixture(params=["npy", "pictures"], scope="module")
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "npy":
        np.save(folder / "x_train.npy", COLOURS[:250] / np.float32(255))
        np.save(folder / "x_test.npy", COLOURS[250:])
    else:
        for number, colours in enumerate(COLOURS):  # grey ones among them
            image = Image.fromarray(colours)
            (image.convert("L") if number % 7 == 0 else image).save(folder / f"{number:03}.png")
        Image.fromarray(COLOURS[3]).save(folder / "copy.tif")
    return folder


@pytest.fixture(params=[0, 2], ids=["in this process", "by workers"])
def pair(source, request):
    """The same images in memory and on disk."""
    sets = [load_images(source, **options) for options in ({}, {"memory": 1000, "workers": request.param})]
    in_memory, on_disk = (images.with_validation() for images in sets)
    assert isinstance(in_memory.train.pixels, torch.Tensor) and isinstance(on_disk.train.pixels, DiskPixels)
    return in_memory, on_disk


@pytest.mark.parametrize("transform", [dynamic_binarize, dequantize], ids=lambda transform: transform.__name__)
def test_training_sees_the_same_numbers(pair, transform):
    def batches(images, start):
        torch.manual_seed(1)
        stream = images.train.with_transform(transform).batched(_orders(len(images.train), 32, 5, start, CPU))
        return list(itertools.islice(stream, 12))

    expected, found = (batches(images, 3) for images in pair)  # from the middle of an epoch into the next
    assert all(torch.equal(*both) for both in zip(expected, found, strict=True))
    assert len({len(batch) for batch in found}) == 2  # an epoch's last batch is smaller


def test_reading_ahead_draws_no_random_numbers(pair):
    state = torch.get_rng_state()
    list(pair[1].train.batches(50))
    assert torch.equal(torch.get_rng_state(), state)


def test_they_are_indexed_alike(pair):
    for expected, found in zip(*(vars(images).values() for images in pair), strict=True):
        assert len(found) == len(expected) and found.shape == expected.shape
        for index in (3, slice(2, 9), torch.tensor([4, 1]), torch.tensor([[0, 1], [2, 3]])):
            assert torch.equal(found[index], expected[index])
        some = slice(1, 8), torch.tensor([5, 0, 2])
        assert torch.equal(found.part(some[0]).part(some[1])[:], expected.part(some[0]).part(some[1])[:])
        assert torch.equal(torch.cat(list(found.batches(7))), expected[:])
        assert found.mean() == expected.mean()


def test_a_binarisation_for_good_is_the_same(pair):
    expected, found = (images.test.with_transform(dynamic_binarize).frozen(seed=4) for images in pair)
    assert torch.equal(found[:], expected[:]) and torch.equal(found[:], found[:])
    assert set(found[:].unique().tolist()) == {0.0, 1.0}


def test_what_does_not_fit_is_said(source, capsys):
    load_images(source, memory=1000)
    assert "bytes, more than 1,000 (--data-memory), so they are read in batches" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_is_said_in_one_sentence(tmp_path, workers):
    for number in range(10):
        Image.fromarray(COLOURS[number]).save(tmp_path / f"{number}.png")
    images = load_images(tmp_path, memory=10, workers=workers)
    (tmp_path / "4.png").unlink()
    with pytest.raises(InputError, match=r"4\.png is not a readable image\.$"):
        list(images.train.batches(3))


def test_a_picture_that_has_changed_its_size_is_refused(tmp_path):
    for number in range(10):
        Image.fromarray(COLOURS[number]).save(tmp_path / f"{number}.png")
    images = load_images(tmp_path, memory=10)
    Image.fromarray(COLOURS[4][:4]).save(tmp_path / "4.png")
    with pytest.raises(InputError, match=r"4\.png has changed"):
        images.train[:]


def test_a_schedulers_sigterm_to_the_whole_group_ends_reading_in_one_sentence(source):
    process = subprocess.run(
        [sys.executable, "-c", TERMINATED, source], capture_output=True, text=True, start_new_session=True
    )
    assert process.returncode == 143
    said = process.stderr.splitlines()
    assert "interrupted; continue with: " in said[-1] and "Traceback" not in process.stderr


TERMINATED = """
import os, signal, sys
from pplmodels.data import load_images, streams
from pplmodels.training import cli

digests = streams.digests

def terminated(batch):
    os.killpg(0, signal.SIGTERM)
    return digests(batch)

streams.FEW, streams.SOME, streams.digests = 0, 8, terminated
cli.run_script(lambda: load_images(sys.argv[1], workers=2))
"""


def peak_of_training(folder, run):
    """The most memory, in bytes, of train_vae.py on colour images of 64x64 pixels that may take 1 GiB."""
    sizes = ["--hidden", "64", "--z-dim", "8", "--valid", "1000", "--batch-size", "64", "--steps", "60"]
    command = [sys.executable, str(SCRIPTS / "train_vae.py"), "--data", str(folder), "--data-memory", "1", *sizes]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--out", str(run)], **output)
    with process.stderr:
        errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, errors
    assert (run / "result.json").exists()
    return 1024 * used.ru_maxrss, errors


@pytest.mark.slow
def test_more_images_than_the_memory_they_may_take_are_trained_on(tmp_path):
    """200,000 of 64x64x3, which are 2.46 GB, with 1 GiB for images: little more memory than for 4,000 of them."""
    peaks = []
    for number in (4000, 200_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        rng = np.random.default_rng(0)
        for name, part in (("x_train", number - 2000), ("x_test", 2000)):
            with open(folder / f"{name}.npy", "wb") as file:  # not mapped: a new process begins with this one's peak
                header = {"descr": "|u1", "fortran_order": False, "shape": (part, 64, 64, 3)}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(0, part, 1000):
                    file.write(rng.integers(0, 256, (1000, 64, 64, 3), dtype=np.uint8).tobytes())
        peak, said = peak_of_training(folder, tmp_path / f"run{number}")
        assert ("are read in batches" in said) == (number == 200_000)
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 2**28  # 256 MiB: a tenth of the images
