"""make_scenes.py writes files that train_air.py reads."""

import json

import numpy as np
import pytest
from PIL import Image
from starting import OWN

from pplmodels.data import load_scenes
from pplmodels.training import cli

FEW = ["--train", "40", "--test", "30"]


def refused(main, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run_script(main)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_file_and_a_picture_are_written(script, tmp_path, capsys):
    path = tmp_path / "new" / "scenes.npz"
    options = ["--max-objects", "2", "--canvas", "40", "--object-size", "9", "--ground", "textured", "--grey"]
    script("make_scenes")(["shapes-constant", "--out", str(path), *FEW, *options, "--seed", "3"])
    assert f"wrote 40 training scenes and 30 held-out scenes to {path}" in capsys.readouterr().err
    assert sorted(file.name for file in path.parent.iterdir()) == ["scenes.npz", "scenes.png"]
    with np.load(path) as arrays:
        assert arrays["x_train"].shape == (40, 40, 40) and arrays["x_train"].dtype == np.uint8
        assert set(arrays["n_test"]) == {0, 1, 2}
    train, test = load_scenes(path)
    assert train.boxes.shape == (40, 2, 4) and len(test) == 30
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.width > 0
    script("make_scenes")(["shapes-constant", "--out", str(tmp_path / "again.npz"), *FEW, *options, "--seed", "3"])
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


@pytest.mark.filterwarnings("default")
def test_air_trains_on_them(script, tmp_path):
    path, run = tmp_path / "scenes.npz", tmp_path / "run"
    small = ["--canvas", "30", "--object-size", "8", "--counts", "0", "1", "3"]
    script("make_scenes")(["digits-5", "--objects", "digits", *small, "--out", str(path), *FEW])
    script("train_air")([*OWN, "--data", str(path), "--steps", "2", "--out", str(run)])
    assert json.loads((run / "config.json").read_text())["num_steps"] == 4


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["coins", "--max-objects", "3"], "--max-objects does not apply to coins."),
        (["coins", "--grey"], "--grey does not apply to coins."),
        (["coins", "--ground", "grid"], "--ground does not apply to coins."),
        (["coins", "--data-dir", "data"], "--data-dir does not apply to coins."),
        (["digits-grid", "--grey"], "--grey does not apply to digits-grid."),
        (["shapes-9", "--objects", "digits"], "--objects does not apply to shapes-9."),
        (["shapes-9", "--grey", "--overlap"], "--overlap does not apply to gray shapes"),
        (["shapes-9", "--counts", "1", "--max-objects", "2"], "--counts and --max-objects cannot be combined"),
        (["shapes-9", "--counts", "-1"], "is not a non-negative integer"),
        (["shapes-9", "--object-size", "100"], "objects of 100 pixels (up to 116%) do not fit on a canvas of 96x96"),
        (["shapes-9", "--train", "0"], "'0' is not a positive integer"),
        (["cubes"], "invalid choice: 'cubes'"),
        (["digits-5", "--objects", "none.npz"], "none.npz is not a file."),
    ],
    ids=" ".join,
)
def test_options_that_do_not_apply_are_refused(script, tmp_path, capsys, arguments, sentence):
    main = script("make_scenes")
    assert sentence in refused(lambda: main([*arguments, "--out", str(tmp_path / "scenes.npz")]), capsys)
    assert not list(tmp_path.iterdir())


def test_only_npz_files_are_written(script, tmp_path, capsys):
    main = script("make_scenes")
    assert "--out must be an .npz file" in refused(lambda: main(["coins", "--out", str(tmp_path / "a.npy")]), capsys)


def test_a_folder_that_cannot_be_made_is_named(script, tmp_path, capsys):
    (tmp_path / "file").touch()
    main = script("make_scenes")
    with pytest.raises(SystemExit) as stopped:
        cli.run_script(lambda: main(["shapes-black", *FEW, "--out", str(tmp_path / "file" / "scenes.npz")]))
    assert stopped.value.code == 1
    assert f"{tmp_path / 'file'} could not be written" in capsys.readouterr().err
