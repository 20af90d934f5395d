"""Folders as people have them: editors' folders, copies, parts, sizes, and what is said of them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from pplmodels.data import load_images
from pplmodels.errors import InputError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (60, 6, 5)).astype(np.uint8)


def fill(folder, numbers, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(PICTURES[number]).save(folder / f"{number:02}.{ending}")


def contents(images):
    return [] if images is None else [image.tobytes() for image in images.pixels[:].numpy()]


def disjoint(*parts):
    found = [set(contents(part)) for part in parts]
    return sum(map(len, found)) == len(set().union(*found))


def test_hidden_and_editors_folders_are_no_data_and_it_is_said(tmp_path, capsys):
    fill(tmp_path, range(20))
    for place in (".ipynb_checkpoints", "__MACOSX", ".thumbnails", "sub/@eaDir"):
        fill(tmp_path / place, range(20, 24))
    (tmp_path / "._03.png").write_bytes(b"\x00\x05\x16\x07 Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    for name in ("labels.csv", "notes.txt", "more.txt", "README"):
        (tmp_path / name).write_text("x")
    images = load_images(tmp_path)
    assert sorted(contents(images.train) + contents(images.test)) == sorted(p.tobytes() for p in PICTURES[:20])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    for part in ("1 ._*", "1 .DS_Store", "1 .csv", "2 .txt", "1 without an extension", "4 in .ipynb_checkpoints"):
        assert part in line
    assert all(f"4 in {name}" in line for name in ("__MACOSX", ".thumbnails", "@eaDir"))


def test_a_folder_below_a_hidden_one_is_data(tmp_path):
    fill(tmp_path / ".cache" / "images", range(20))
    assert len(load_images(tmp_path / ".cache" / "images").train) == 18


def test_the_split_of_pictures_without_copies_is_every_tenth(tmp_path):
    fill(tmp_path, range(30))
    images = load_images(tmp_path)
    assert contents(images.test) == [PICTURES[number].tobytes() for number in (9, 19, 29)]
    assert images.train.copies_of is None


@pytest.mark.parametrize("seed", range(5))
def test_no_picture_is_trained_on_and_held_out(tmp_path, seed, capsys):
    """Copies under other names and in other formats, wherever they come in the order of names."""
    fill(tmp_path, range(30))
    copied = np.random.default_rng(seed).choice(30, 12, replace=False)
    fill(tmp_path / "again", copied, "tif")
    fill(tmp_path / "00", copied[:3], "bmp")
    images = load_images(tmp_path).with_validation()
    assert disjoint(images.train, images.valid, images.test)
    assert len(set(contents(images.test))) == 3 and set(contents(images.valid))
    every = contents(images.train) + contents(images.valid) + contents(images.test)
    assert len(set(every)) == 30
    assert "15 images are copies of others" in capsys.readouterr().err


def test_subfolders_for_training_and_test_are_what_they_are_called(tmp_path, capsys):
    fill(tmp_path / "train", range(20))
    fill(tmp_path / "Test" / "cats", range(20, 30))
    fill(tmp_path / "val", range(30, 35))
    images = load_images(tmp_path)
    assert [len(part) for part in (images.train, images.test, images.valid)] == [20, 10, 5]
    assert contents(images.test) == [picture.tobytes() for picture in PICTURES[20:30]]
    fill(tmp_path / "Test", [3, 4])
    again = load_images(tmp_path)
    assert len(again.train) == 18 and disjoint(again.train, again.test)
    assert "2 are omitted, because they are in another part" in capsys.readouterr().err
    fill(tmp_path / "other", [40])  # not all pictures are in the parts: then subfolders mean nothing
    assert len(load_images(tmp_path).test) == 3


def test_training_images_that_are_all_held_out_are_refused(tmp_path):
    for part in ("train", "test"):
        fill(tmp_path / part, range(10))
    with pytest.raises(InputError, match=r"every image in train of .* is also a held-out image"):
        load_images(tmp_path)


def test_a_folder_of_one_picture_says_so(tmp_path, capsys):
    for number in range(10):
        Image.fromarray(PICTURES[0]).save(tmp_path / f"{number}.png")
    load_images(tmp_path)
    assert "are identical, so held-out images are also training images" in capsys.readouterr().err


def test_sizes_may_differ_where_an_image_size_is_given(tmp_path, capsys):
    """A white middle stays in the middle whatever the shape; what is cropped is at the ends of the longer side."""
    for number in range(10):
        height, width = 16 + 4 * (number % 2), 16 + 8 * (number % 3)
        array = np.zeros((height, width), np.uint8)
        array[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4] = 255 - number
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=r"differ in size.*use --image-size N to resize and crop all of them to NxN"):
        load_images(tmp_path)
    images = load_images(tmp_path, image_size=8)
    assert images.train.shape == (1, 8, 8)
    together = torch.cat([images.train.pixels, images.test.pixels])
    assert (together[:, 0, 3:5, 3:5] > 200).all() and (together[:, 0, 0, 0] < 20).all()
    assert "resized and cropped images of 6 sizes, (16, 16) to (20, 32), to 8x8" in capsys.readouterr().err


def test_an_image_size_holds_for_arrays_and_built_in_images_too(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=PICTURES, x_test=PICTURES[:5])
    assert load_images(tmp_path / "a.npz", image_size=12).test.shape == (1, 12, 12)
    assert load_images("digits", image_size=12).train.shape == (1, 12, 12)


def test_what_a_background_hides_is_refused_and_shown_over_another(tmp_path):
    for number in range(10):
        drawing = np.full((8, 8, 4), 255, np.uint8)
        drawing[..., 3] = 0
        drawing[number % 8, 2:6, 3] = 255  # white ink
        Image.fromarray(drawing).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=r"the transparent images in .* are invisible over white"):
        load_images(tmp_path)
    images = load_images(tmp_path, background="black")
    assert images.train.pixels.amax((1, 2, 3)).eq(255).all()


def test_what_was_read_is_said(tmp_path, capsys):
    for number in range(10):
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(PICTURES[number].astype(np.uint16) * 16).save(tmp_path / f"{number}.png", exif=exif)
    load_images(tmp_path)
    said = capsys.readouterr().err
    assert f"read 10 images (6x5x1, 8 bits) from {tmp_path}" in said
    assert "9 of the images are for training, 1 are held out" in said
    for line in (
        "10 of the images were rotated or flipped according to their EXIF orientation",
        "10 of the images have more than 8 bits per channel and were converted to 8 bits",
        "images with more than 8 bits were converted to levels of at most 16 of 255",
    ):
        assert line in said


def test_of_train_and_val_alone_val_is_held_out(tmp_path):
    fill(tmp_path / "train", range(20))
    fill(tmp_path / "val", range(20, 30))
    images = load_images(tmp_path)
    assert contents(images.test) == [picture.tobytes() for picture in PICTURES[20:30]] and images.valid is None


def test_parts_that_are_not_used_are_said(tmp_path, capsys):
    fill(tmp_path / "train", range(20))
    fill(tmp_path / "test", range(20, 30))
    fill(tmp_path, [40])
    assert len(load_images(tmp_path).test) == 3
    assert f"warning: the split of {tmp_path} into test, train is ignored" in capsys.readouterr().err


def test_bins_of_other_systems_are_no_data(tmp_path):
    fill(tmp_path, range(10))
    for name in ("$Recycle.Bin", "#recycle", "lost+found"):
        fill(tmp_path / name, range(10, 20))
    assert len(load_images(tmp_path).train) == 9


def test_validation_shares_no_picture_with_the_other_parts(tmp_path, capsys):
    fill(tmp_path / "train", range(20))
    fill(tmp_path / "test", [*range(20, 30), 1])
    fill(tmp_path / "val", [*range(30, 35), 2, 20, 21, 22])
    images = load_images(tmp_path)
    assert disjoint(images.train, images.test, images.valid)
    assert [len(part) for part in (images.train, images.test, images.valid)] == [18, 11, 6]
    assert "5 are omitted" in capsys.readouterr().err
    fill(tmp_path / "test", range(30, 35))
    fill(tmp_path / "test", [2])
    with pytest.raises(InputError, match="every image in valid of"):
        load_images(tmp_path)


def test_links_to_folders_are_followed_and_other_kinds_of_files_are_said(tmp_path, capsys):
    data = tmp_path / "data"
    fill(tmp_path / "elsewhere" / "cats", range(10))
    fill(data / "dogs", range(10, 20))
    (data / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (data / "dogs" / "back").symlink_to(data)
    (data / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(data / "pipe.png")
    images = load_images(data)
    assert sorted(contents(images.train) + contents(images.test)) == sorted(p.tobytes() for p in PICTURES[:20])
    assert "1 broken links, 1 special files" in capsys.readouterr().err


def test_a_bright_picture_of_8_bits_does_not_hide_that_deep_ones_are_dark(tmp_path, capsys):
    for number in range(10):
        Image.fromarray(PICTURES[number].astype(np.uint16) * 16).save(tmp_path / f"{number}.png")
    Image.fromarray(PICTURES[10]).save(tmp_path / "10.png")
    load_images(tmp_path)
    assert "images with more than 8 bits were converted to levels of at most 16 of 255" in capsys.readouterr().err
