"""Runs that go on from other runs, and what can be looked at before a run has ended."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from starting import OWN, SMALL

from pplmodels.registry import load_pair
from pplmodels.systems import run_script, train
from pplmodels.training.checkpoint import step_of

VAE = ["--hidden", "8", "--z-dim", "3", "--batch-size", "64", "--no-compile", "--hold", "1", "--eval-every", "2"]


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("pplmodels.systems.images.image_pictures", lambda *_: None)


def weights(run):
    return {f"{role}.{k}": v for role in ("model", "guide") for k, v in load_file(run / f"{role}.safetensors").items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("default")
def test_an_extended_run_is_the_longer_run_bit_for_bit(script, tmp_path, no_pictures):
    """With a rate that stays: 4 steps and then 3 more are 7 steps, and the first run stays as it is."""
    train_vae = script("train_vae")
    short, longer, straight = (tmp_path / name for name in ("short", "longer", "straight"))
    train_vae([*VAE, "--steps", "4", "--out", str(short)])
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    train_vae(["--extend", str(short), "--steps", "7", "--eval-every", "2", "--out", str(longer)])
    train_vae([*VAE, "--steps", "7", "--schedule-steps", "4", "--out", str(straight)])
    assert same(weights(longer), weights(straight))
    steps = [json.loads(line)["step"] for line in (longer / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 7]
    assert {path: path.read_bytes() for path in short.rglob("*") if path.is_file()} == before
    config = json.loads((longer / "config.json").read_text())
    assert config["extend"] == str(short) and config["hidden"] == [8]
    (longer / "checkpoint.safetensors").unlink()  # as if it had been killed while it took over the first run's state
    (longer / "metrics.jsonl").unlink()
    train_vae(["--resume", "--out", str(longer)])
    assert same(weights(longer), weights(straight))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_run_may_be_extended_with_another_rate_and_other_data(script, tmp_path, no_pictures):
    short, longer = tmp_path / "short", tmp_path / "longer"
    script("train_vae")([*VAE, "--steps", "2", "--out", str(short)])
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=pixels, x_test=pixels[:9])
    changed = ["--data", str(tmp_path / "mine.npz"), "--lr", "1e-5", "--steps", "4"]
    script("train_vae")(["--extend", str(short), *changed, "--out", str(longer)])
    assert json.loads((longer / "config.json").read_text())["lr"] == 1e-5
    moved = (weights(longer)[name] - value for name, value in weights(short).items())
    assert 0 < max(float(difference.abs().max()) for difference in moved) < 1e-4  # two steps at that rate


@pytest.mark.filterwarnings("default")
def test_a_run_begins_with_the_weights_of_another(script, tmp_path):
    """With a rate of almost nothing the weights stay those of the first run, while what the run sets itself changes."""
    first, second = tmp_path / "first", tmp_path / "second"
    script("train_air")([*SMALL, "--steps", "2", "--out", str(first)])
    scenes = np.zeros((30, 20, 20), np.uint8)
    scenes[:, 4:8, 4:8] = 255
    np.savez(tmp_path / "mine.npz", x_train=scenes, x_test=scenes, n_train=np.ones(30, int), n_test=np.ones(30, int))
    changed = [
        *OWN,
        "--data",
        str(tmp_path / "mine.npz"),
        "--num-steps",
        "3",
        "--lr",
        "1e-12",
        "--baseline-lr",
        "1e-12",
    ]
    script("train_air")([*changed, "--init-from", str(first), "--steps", "1", "--out", str(second)])
    before, after = weights(first), weights(second)
    assert not torch.equal(
        before["model.where_loc"], after["model.where_loc"]
    )  # the prior's windows fit the new scenes
    learned = [
        f"{role}.{name}"
        for role, module in zip(("model", "guide"), load_pair(first), strict=True)
        for name, _ in module.named_parameters()
    ]
    assert learned and all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in learned)


BAD = [
    (["train_vae", "--extend", "RUN"], "was trained for 2 steps: --steps must be larger to extend it"),
    (["train_vae", "--init-from", "RUN", "--z-dim", "5"], "does not contain the weights of a MLPVAE of these sizes"),
    (["train_ladder_vae", "--extend", "RUN", "--steps", "9"], "is a run of another system"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    train("vae", [*VAE, "--steps", "2", "--out", str(run)])
    return run


@pytest.mark.parametrize(
    "arguments, sentence", BAD, ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else ""
)
def test_what_cannot_go_on_is_refused_before_there_is_a_folder(script, tmp_path, capsys, trained, arguments, sentence):
    name, *options = [str(trained) if word == "RUN" else word for word in arguments]
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: script(name)([*options, "--out", str(tmp_path / "new")]))
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("default")
def test_of_a_run_of_an_earlier_version_only_the_weights_are_taken(script, tmp_path, capsys, trained, no_pictures):
    earlier, new = tmp_path / "earlier", tmp_path / "new"
    shutil.copytree(trained, earlier)
    (earlier / "checkpoint.safetensors").rename(earlier / "checkpoint.pt")
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    train_vae = script("train_vae")
    for options in (["--resume", "--out", earlier], ["--extend", earlier, "--steps", "9", "--out", new]):
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda options=options: train_vae(list(map(str, options))))
        assert stopped.value.code == 2
        assert f"weights with --init-from {earlier}" in capsys.readouterr().err.splitlines()[-1]
        assert not new.exists()
    train_vae(["--init-from", str(earlier), "--steps", "1", "--out", str(new)])
    assert step_of(new / "checkpoint.safetensors") == 1
    after = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name, options", [("train_air", SMALL), ("train_vae", VAE)])
def test_weights_and_pictures_are_there_before_the_end(script, tmp_path, monkeypatch, previews, name, options):
    """Stopped after the first evaluation: what was there, and what the stop left, can be loaded and looked at."""
    import pplmodels.training.loop as loop

    run, seen = tmp_path / "run", []

    class Stopped(Exception):
        pass

    def save(folder, state):
        if state.step > 3:
            seen.extend(path.name for path in run.iterdir())
            raise Stopped
        return original(folder, state)

    original = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save)
    with pytest.raises(Stopped):
        script(name)([*options, "--steps", "8", "--eval-every", "2", "--out", str(run)])
    assert {"model.json", "model.safetensors", "guide.json", "guide.safetensors", "curves.png"} <= set(seen)
    assert len([name for name in seen if name.endswith(".png")]) >= 3
    load_pair(run)


@pytest.mark.filterwarnings("default")
def test_a_run_that_is_too_short_for_its_schedules_says_so(script, tmp_path, capsys, no_pictures):
    script("train_air")([*SMALL, "--steps", "1", "--out", str(tmp_path / "air")])
    assert (
        "the schedules need 1,500 steps, but the run only has 1 (see --steps, --count-steps, --explore-steps)"
        in capsys.readouterr().err
    )
    script("train_vae")([*VAE, "--steps", "2", "--warm-up", "5", "--out", str(tmp_path / "vae")])
    assert "need 5 steps, but the run only has 2 (see --steps, --warm-up)" in capsys.readouterr().err
    script("train_vae")([*VAE, "--steps", "2", "--out", str(tmp_path / "enough")])
    assert "schedules" not in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("binarise", ["dynamic", "threshold"])
def test_grey_images_are_not_binarised_without_a_word(script, tmp_path, capsys, no_pictures, binarise):
    script("train_vae")([*VAE, "--binarise", binarise, "--steps", "1", "--out", str(tmp_path / "run")])
    assert "gray pixels are" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_state_that_does_not_fit_is_given_back(script, tmp_path, trained, capsys):
    """The folder of the failed start is taken by the next one."""
    extend = ["--extend", str(trained), "--steps", "4", "--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: script("train_vae")([*extend, "--averaging", "0.9"]))
    assert stopped.value.code == 2
    assert f"{trained} was trained with other options" in capsys.readouterr().err.splitlines()[-1]
    script("train_vae")(extend)
    assert (tmp_path / "new" / "result.json").exists()


@pytest.mark.filterwarnings("default")
def test_relative_data_are_found_from_another_directory(script, tmp_path, monkeypatch, no_pictures):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    np.savez("mine.npz", x_train=pixels, x_test=pixels[:9])
    script("train_vae")([*VAE, "--data", "mine.npz", "--steps", "2", "--out", str(tmp_path / "run")])
    monkeypatch.chdir(tmp_path / "there")
    script("train_vae")(["--resume", "--out", str(tmp_path / "run")])
    script("evaluate")([str(tmp_path / "run")])
