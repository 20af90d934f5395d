"""train_air.py on scenes that its user brings."""

import json

import numpy as np
import pytest
from starting import OWN, SMALL

from pplmodels.training import cli


def squares(path, most, counts=True):
    """Scenes of up to ``most`` squares side by side; every count is there."""
    scenes = np.zeros((40, 16, 8 * most), np.uint8)
    numbers = np.arange(40) % (most + 1)
    for scene, number in zip(scenes, numbers, strict=True):
        for place in range(number):
            scene[4:9, 8 * place + 1 : 8 * place + 6] = 255
    known = {f"n_{split}": numbers for split in ("train", "test")} if counts else {}
    np.savez(path, x_train=scenes, x_test=scenes, **known)
    return path


def refused(main, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run_script(main)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.filterwarnings("default")
def test_the_number_of_steps_follows_the_true_counts(script, tmp_path, capsys):
    run, data = tmp_path / "run", squares(tmp_path / "scenes.npz", 4)
    script("train_air")([*OWN, "--data", str(data), "--steps", "2", "--out", str(run)])
    assert json.loads((run / "config.json").read_text())["num_steps"] == 5
    assert len(json.loads((run / "result.json").read_text())["metrics"]["inferred_counts"]) == 6
    assert "the prior's object size is 5 pixels" in capsys.readouterr().err
    script("train_air")(["--resume", "--out", str(run)])  # what was completed can be read again
    script("evaluate")([str(run)])


@pytest.mark.parametrize("option", ["--max-objects", "--num-steps"])
def test_fewer_objects_than_the_scenes_have_are_refused(script, tmp_path, capsys, option):
    data = squares(tmp_path / "scenes.npz", 4)
    arguments = [*OWN, "--data", str(data), option, "3", "--out", str(tmp_path / "run")]
    sentence = refused(lambda: script("train_air")(arguments), capsys)
    assert f"{option} 3 is less than 4, the largest object count in" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--canvas", "9"],
        ["--counts", "1"],
        ["--unseen-counts", "5"],
        ["--image-size", "8"],
        ["--data-memory", "1"],
        ["--workers", "2"],
    ],
)
def test_options_of_scenes_that_are_made_are_refused(script, tmp_path, capsys, option):
    data = squares(tmp_path / "scenes.npz", 2)
    sentence = refused(lambda: script("train_air")([*OWN, "--data", str(data), *option]), capsys)
    assert f"{option[0]} does not apply to --scenes" in sentence


@pytest.mark.filterwarnings("default")
def test_scenes_may_have_more_objects_than_these_ones(script, tmp_path):
    data, run = squares(tmp_path / "scenes.npz", 2), tmp_path / "run"
    script("train_air")([*OWN, "--data", str(data), "--max-objects", "4", "--steps", "1", "--out", str(run)])
    assert json.loads((run / "config.json").read_text())["num_steps"] == 5


@pytest.mark.filterwarnings("default")
def test_unknown_counts_are_assumed_aloud(script, tmp_path, capsys):
    data = squares(tmp_path / "scenes.npz", 2, counts=False)
    run = tmp_path / "run"
    script("train_air")([*OWN, "--data", str(data), "--max-objects", "3", "--steps", "1", "--out", str(run)])
    assert "a maximum of 3 objects is assumed (--max-objects)" in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["num_steps"] == 4


@pytest.mark.filterwarnings("default")
def test_what_is_not_given_is_estimated_from_the_scenes(script, tmp_path, capsys):
    data, run = squares(tmp_path / "scenes.npz", 4, counts=False), tmp_path / "run"
    without_window = [word for word in OWN if word not in ("--window", "8")]
    script("train_air")([*without_window, "--data", str(data), "--steps", "1", "--out", str(run)])
    assert "a maximum of 4 objects is estimated from the scenes (--max-objects)" in capsys.readouterr().err
    config = json.loads((run / "config.json").read_text())
    assert (config["num_steps"], config["window"]) == (5, 8)


@pytest.mark.filterwarnings("default")
def test_restarts_are_as_brief_as_they_say(script, tmp_path, capsys):
    run = tmp_path / "run"
    script("train_air")([*SMALL, "--restarts", "2", "--steps", "6", "--eval-every", "6", "--out", str(run)])
    assert "training 2 restarts of 3 steps; 9 steps in total" in capsys.readouterr().err
    for seed in (0, 1):
        lines = (run / "starts" / str(seed) / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 3
