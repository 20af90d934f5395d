"""Arrays as people have them: types, layouts, names; .npz and .npy."""

import numpy as np
import pytest
import torch

from pplmodels.data import load_images
from pplmodels.errors import InputError

LEVELS = np.random.default_rng(0).integers(0, 256, (20, 6, 5)).astype(np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (20, 6, 5, 3)).astype(np.uint8)


def saved(tmp_path, train, test=None, names=("x_train", "x_test"), **more):
    test = train[:5] if test is None else test
    np.savez(tmp_path / "a.npz", **dict(zip(names, (train, test), strict=True)), **more)
    return tmp_path / "a.npz"


KINDS = {
    "uint16": LEVELS.astype(np.uint16) * 257,
    "float16": (LEVELS / 255).astype(np.float16),
    "float64": LEVELS / 255,
    "big-endian": (LEVELS / 255).astype(">f4"),
    "columns first": np.asfortranarray(LEVELS),
    "rounding errors": (LEVELS / 255 * (1 + 1e-7) - 1e-9).astype(np.float32),
    "(N, H, W, 1)": LEVELS[..., None],
    "(N, 1, H, W)": LEVELS[:, None],
}


@pytest.mark.parametrize("ending", ["npz", "npy"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_of_any_kind_are_the_same_pixels(tmp_path, kind, ending):
    if ending == "npz":
        path = saved(tmp_path, KINDS[kind])
    elif kind == "columns first":
        pytest.skip("refused in .npy files")
    else:
        np.save(tmp_path / "x_train.npy", KINDS[kind])
        np.save(tmp_path / "x_test.npy", KINDS[kind][:5])
        path = tmp_path
    assert torch.equal(load_images(path).train.pixels[:, 0], torch.from_numpy(LEVELS))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.uint16, np.float32], ids=lambda kind: kind.__name__)
def test_0_and_1_are_black_and_white(tmp_path, kind, capsys):
    images = load_images(saved(tmp_path, (LEVELS > 127).astype(kind)))
    assert torch.equal(images.train.pixels[:, 0], torch.from_numpy((LEVELS > 127) * np.uint8(255)))
    assert "0..1, white is 1" in capsys.readouterr().err


def test_parts_of_two_scales_are_refused_unless_white_is_given(tmp_path):
    path = saved(tmp_path, LEVELS, (LEVELS > 127).astype(np.uint8))
    with pytest.raises(InputError, match=r"x_test in .* has values 0 and 1, but x_train has values up to 255: convert"):
        load_images(path)
    images = load_images(path, white_level=255)
    assert torch.equal(images.train.pixels[:, 0], torch.from_numpy(LEVELS)) and images.test.pixels.max() == 1


@pytest.mark.parametrize("layout", ["last", "first"])
def test_channels_first_and_last_are_the_same_pixels_and_it_is_said(tmp_path, layout, capsys):
    images = load_images(saved(tmp_path, COLOURS if layout == "last" else COLOURS.transpose(0, 3, 1, 2)))
    assert torch.equal(images.train.pixels, torch.from_numpy(COLOURS.transpose(0, 3, 1, 2).copy()))
    said = capsys.readouterr().err
    assert f"read 20 images (6x5x3, uint8, {COLOURS.min()}..{COLOURS.max()}, channels {layout}) from x_train" in said


def test_an_alpha_channel_is_laid_over_the_background(tmp_path):
    drawing = np.zeros((20, 6, 5, 4), np.uint8)
    drawing[:, 2, 2, 3] = 255
    path = saved(tmp_path, drawing)
    assert load_images(path).train.pixels[0, :, 2, 2].eq(0).all() and load_images(path).train.pixels[0, 0, 0, 0] == 255
    assert load_images(path, background="#800000").train.pixels[0, :, 0, 0].tolist() == [128, 0, 0]


@pytest.mark.parametrize(
    "array, sentence",
    [
        (LEVELS.astype(np.int64), "has type int64 and values up to 255, .*--white-level"),
        (
            LEVELS.astype(np.float64),
            r"values from 0 to 255, but they must be from 0 \(black\) to 1 \(white\).*--white-level",
        ),
        (LEVELS.astype(np.complex64), "has type complex64"),
        (LEVELS / 127.5 - 1, "values from -1 to 1"),
        (LEVELS.reshape(20, -1), r"has shape \(20, 30\); images must be \(N, H, W\)"),
        (LEVELS[:, :, :, None].repeat(2, 3), r"has shape \(20, 6, 5, 2\)"),
    ],
    ids=["int64", "float to 255", "complex", "-1 to 1", "rows", "two channels"],
)
def test_what_the_rule_does_not_say_is_refused_with_a_remedy(tmp_path, array, sentence):
    with pytest.raises(InputError, match=sentence):
        load_images(saved(tmp_path, array))


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.uint16], ids=lambda kind: kind.__name__)
def test_a_given_white_level_is_the_remedy(tmp_path, kind):
    images = load_images(saved(tmp_path, LEVELS.astype(kind)), white_level=255)
    assert torch.equal(images.train.pixels[:, 0], torch.from_numpy(LEVELS))


def test_16_bits_of_few_levels_are_pointed_at(tmp_path, capsys):
    load_images(saved(tmp_path, LEVELS.astype(np.uint16)))
    assert "white is assumed to be 65535" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("train", "test"), ("train_images", "test_images"), ("X_train", "X_test")], ids=str)
def test_usual_names_are_known(tmp_path, names):
    assert len(load_images(saved(tmp_path, LEVELS, names=names)).test) == 5


def test_an_ending_in_capitals_and_a_path_are_the_same_file(tmp_path):
    path = saved(tmp_path, LEVELS).rename(tmp_path / "A.NPZ")
    assert torch.equal(load_images(path).train.pixels, load_images(str(path)).train.pixels)


def test_held_out_images_that_are_training_images_are_counted(tmp_path, capsys):
    load_images(saved(tmp_path, LEVELS[:15], LEVELS[12:]))
    assert "3 held-out images" in capsys.readouterr().err


def test_npy_files_are_found_by_their_neighbours_names(tmp_path):
    for name, part in (("my_train", LEVELS), ("my_test", LEVELS[:4]), ("my_val", LEVELS[:3])):
        np.save(tmp_path / f"{name}.npy", part)
    images = load_images(tmp_path / "my_test.npy")
    assert [len(part) for part in (images.train, images.test, images.valid)] == [20, 4, 3]


@pytest.mark.parametrize("damage", ["cut", "longer", "pickled", "columns", "neighbour", "name", "text", "zip"])
def test_wrong_npy_files_get_one_sentence(tmp_path, damage):
    path = tmp_path / ("images.npy" if damage == "name" else "x_train.npy")
    np.save(tmp_path / "x_test.npy", LEVELS)
    np.save(path, np.asfortranarray(LEVELS) if damage == "columns" else LEVELS)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    elif damage == "pickled":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif damage == "neighbour":
        (tmp_path / "x_test.npy").unlink()
    elif damage == "text":
        path.write_text("no array")
    elif damage == "zip":
        with open(path, "wb") as file:
            np.savez(file, LEVELS)
    with pytest.raises(InputError, match=r"is not a|Fortran order|must be one of two files"):
        load_images(path)


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_x_val_is_for_validation_in_any_file(tmp_path, ending):
    parts = {"x_train": LEVELS, "x_test": LEVELS[:4], "x_val": LEVELS[:3]}
    if ending == "npz":
        np.savez(tmp_path / "a.npz", **parts)
    else:
        for name, part in parts.items():
            np.save(tmp_path / f"{name}.npy", part)
    assert len(load_images(tmp_path / "a.npz" if ending == "npz" else tmp_path).valid) == 3


def test_the_last_use_in_a_name_is_replaced(tmp_path):
    for name in ("strain_train", "strain_test"):
        np.save(tmp_path / f"{name}.npy", LEVELS)
    assert len(load_images(tmp_path / "strain_train.npy").test) == 20
