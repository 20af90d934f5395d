"""The scripts, as a person would start them."""

import json
import math
import re
import runpy
import signal
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file
from starting import HANGS, OWN, ROOT, SMALL, start

from pplmodels.errors import InputError
from pplmodels.systems import run_script


@pytest.mark.filterwarnings("default")  # what a user's session has; the libraries' own warnings are not ours
def test_trained_drawn_saved_and_evaluated_again(script, tmp_path, capsys):
    run = tmp_path / "run"
    script("train_air")([*SMALL, "--steps", "6", "--eval-every", "4", "--out", str(run)])
    files = {"config.json", "metrics.jsonl", "result.json", "environment.jsonl", "tensorboard"}
    files |= {f"{role}.{ending}" for role in ("model", "guide") for ending in ("json", "safetensors")}
    files |= {"checkpoint.safetensors", "scenes.png", "samples.png", "curves.png"}
    files |= {"worst-bound.png", "worst-iou.png"}
    assert {path.name for path in run.iterdir()} == files
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [4, 6]
    result = json.loads((run / "result.json").read_text())
    assert np.array(result["metrics"]["confusion"]).shape == (3, 4)
    assert np.sum(result["metrics"]["confusion"]) == 30
    assert {"kl/z_pres", "kl/z_where", "kl/z_what", "elbo", "count_accuracy"} <= set(result["metrics"])
    assert {"all_parts_right", "count_accuracy/0", "expected_calibration_error"} <= set(result["metrics"])
    capsys.readouterr()
    script("evaluate")([str(run), "--iw-samples", "5", "--paths", "3", "--gradient-samples", "3"])
    again = json.loads(capsys.readouterr().out.rpartition("wrote")[0])
    assert again.items() >= result["metrics"].items()  # same weights, same scenes, same seed
    with np.load(run / "evaluation.npz") as arrays:
        assert arrays["count_posterior"].shape == (30, 4)
        assert arrays["count_posterior"].sum(1) == pytest.approx(1, rel=1e-5)
        assert arrays["iw_bound"].mean() == pytest.approx(again["iw_bound"])
    assert 1 <= again["effective_sample_size/with_objects"] <= 5 * (1 + 1e-9)  # equal weights give 5 up to rounding


@pytest.mark.filterwarnings("default")
def test_the_residual_guide_and_unseen_counts_from_the_best_of_two_starts(script, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--guide", "dair", "--estimator", "summed-out", "--counts", "0", "1", "--unseen-counts", "3"]
    options += ["--restarts", "2", "--count-steps", "1", "3", "--steps", "6", "--out", str(run)]
    script("train_air")([*SMALL, *options])
    result = json.loads((run / "result.json").read_text())
    confusion = np.array(result["metrics"]["unseen_confusion"])
    assert confusion.shape == (4, 4) and confusion[3].sum() == confusion.sum() == 30
    starts = json.loads((run / "starts.json").read_text())
    assert [start["seed"] for start in starts["starts"]] == [0, 1] and starts["kept"] in (0, 1)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    script("evaluate")([str(run)])
    assert json.loads((run / "evaluation.json").read_text()) == {"data": "digits", **result["metrics"]}


@pytest.mark.filterwarnings("default")
def test_ready_made_scenes_of_any_size_with_three_channels(script, tmp_path):
    rng = np.random.default_rng(0)
    scenes = {f"x_{split}": rng.random((20, 12, 18, 3)) for split in ("train", "test")}
    np.savez(tmp_path / "scenes.npz", **scenes)
    run = tmp_path / "run"
    script("train_air")([*OWN, "--data", str(tmp_path / "scenes.npz"), "--steps", "2", "--out", str(run)])
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert "elbo" in metrics and "count_accuracy" not in metrics  # nobody said how many objects there are


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("options", [["--estimator", "rloo", "--particles", "3"], ["--estimator", "mvd"]], ids="-".join)
def test_other_estimators_train(script, tmp_path, options):
    run = tmp_path / "run"
    script("train_air")([*SMALL, *options, "--steps", "2", "--out", str(run)])
    assert math.isfinite(json.loads((run / "result.json").read_text())["metrics"]["elbo"])


def test_rloo_with_one_particle_is_refused(script, tmp_path):
    with pytest.raises(InputError, match="--particles must be at least 2"):
        script("train_air")([*SMALL, "--estimator", "rloo", "--particles", "1", "--out", str(tmp_path / "run")])


@pytest.mark.filterwarnings("default")
def test_five_objects_get_the_steps_that_they_need(script, tmp_path):
    run = tmp_path / "run"
    options = ["--max-objects", "5", "--steps", "2", "--canvas", "40", "--out", str(run)]
    script("train_air")([*options, *SMALL[2:]])
    config = json.loads((run / "config.json").read_text())
    assert config["max_objects"] == 5 and config["num_steps"] == 6
    assert (1 - config["explore"][0]) ** 4 == pytest.approx(0.7)  # from the first object to the fifth
    assert np.array(json.loads((run / "result.json").read_text())["metrics"]["confusion"]).shape == (6, 7)


@pytest.mark.filterwarnings("default")
def test_the_guide_that_the_readme_shows_is_trained(script, tmp_path):
    file, run = tmp_path / "my_guide.py", tmp_path / "run"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    file.write_text(blocks[1])
    script("train_air")([*SMALL, "--steps", "2", "--import", str(file), "--out", str(run)])
    assert json.loads((run / "guide.json").read_text())["class"] == "CorrelatedAIRGuide"
    assert load_file(run / "guide.safetensors")["correlations.weight"].shape == (16, 8)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["train_air", "train_air3d"])
def test_a_site_without_its_event_is_named_before_there_is_a_folder(script, tmp_path, capsys, name):
    guide, site = {"train_air": ("AIRGuide", "where"), "train_air3d": ("AIR3DGuide", "place")}[name]
    file, run = tmp_path / "my_guide.py", tmp_path / "run"
    file.write_text(
        f"from pyro.nn import pyro_method\nfrom guides import {guide}\n\n\nclass Mine({guide}):\n    @pyro_method\n"
        f"    def q_z_{site}(self, *seen):\n        return super().q_z_{site}(*seen).base_dist\n"
    )
    small = ["--train-scenes", "40", "--test-scenes", "30", "--import", str(file), "--out", str(run)]
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: script(name)(small))
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert f"{file}: Running the guide fails with ValueError: " in errors and errors.count("\n") == 1
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_killed_and_resumed_is_the_same_as_never_stopped(script, tmp_path):
    """kill -9 somewhere in the middle, resume: the final weights are equal bit for bit and no line is lost."""
    options = [*SMALL, "--steps", "36", "--eval-every", "6"]
    killed = start("train_air", *options, "--out", tmp_path / "killed")
    lines = tmp_path / "killed/metrics.jsonl"
    deadline = time.monotonic() + HANGS
    while not lines.exists() or lines.read_text().count("\n") < 2:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed/result.json").exists()
    script("train_air")([*options, "--out", str(tmp_path / "straight")])
    script("train_air")(["--out", str(tmp_path / "killed"), "--resume"])
    for role in ("model", "guide"):
        first, second = (load_file(tmp_path / run / f"{role}.safetensors") for run in ("straight", "killed"))
        assert all(first[name].equal(second[name]) for name in first | second)
    first, second = (
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("straight", "killed")
    )
    assert first == second and len(first) == 6


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = start("train_air", *SMALL, "--steps", "100000", "--out", tmp_path / "run")
    deadline = time.monotonic() + HANGS
    while not (tmp_path / "run/checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert "--resume" in errors.splitlines()[-1]


BAD = [
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    (["--steps", "0"], "--steps: '0' is not a positive integer"),
    (["--steps", "many"], "is not a positive integer"),
    (["--batch-size", "-3"], "--batch-size: '-3' is not"),
    (["--lr", "0"], "--lr: '0' is not a positive number"),
    (["--lr", "nan"], "--lr: 'nan' is not a positive number"),
    (["--seed", "-1"], "--seed"),
    (["--max-objects", "0"], "--max-objects"),
    (["--canvas", "-50"], "--canvas"),
    (["--explore", "0.7", "0.1"], "below 0.5"),
    (["--device", "tpu"], "--device"),
    (["--data", "cats"], "choose digits, mnist"),
    (["--data", "no-such-file.npz"], "no-such-file.npz is not a file"),
    (["--scenes"], "complete scenes must be in an .npz file"),
    (["--canvas", "10"], "do not fit on a canvas of 10x10"),
    (["--canvas", "14", "--max-objects", "5", "--train-scenes", "5"], "do not fit"),
    (["--restarts", "2", "--restart-steps", "9", "--steps", "5"], "--restart-steps 9 is more than the run's 5 --steps"),
    (["--background", "white"], "digits has no transparency: --background does not apply"),
    (["--data", "no-such-file.npz", "--background", "mauvish"], "'mauvish' is not a color"),
    (["--counts", "1", "2", "--max-objects", "4"], "--counts and --max-objects cannot be combined"),
    (["--restart-steps", "9"], "--restart-steps requires --restarts"),
    (["--white-level", "255"], "--white-level does not apply to digits"),
    (["--extend", "no-such-run"], "is not a run"),
    (["--extend", "a", "--init-from", "b"], "--config, --extend and --init-from cannot be combined"),
    (["--resume"], "--resume needs the run's folder"),
    (["--resume", "--out", "no-such-run"], "is not a run"),
]


@pytest.mark.parametrize(
    "arguments, sentence", BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_ends_with_one_sentence_and_code_2(script, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: script("train_air")(arguments))
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert sentence in errors.splitlines()[-1] and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default")
def test_a_run_keeps_its_options_and_its_folder(script, tmp_path, capsys):
    run = tmp_path / "run"
    script("train_air")([*SMALL, "--steps", "2", "--out", str(run)])
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for arguments, sentence in (
        ([*SMALL, "--steps", "2", "--out", str(run)], "already contains a run"),
        (["--out", str(run), "--resume", "--what-dim", "9"], "--what-dim 4, not 9"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda arguments=arguments: script("train_air")(arguments))
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


PROGRAMS = sorted(
    path
    for folder in ("scripts", "benchmarks", "tools")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_script_explains_itself(capsys, monkeypatch, path):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path))["main"]()
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
