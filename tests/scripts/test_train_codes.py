"""Both stages of discrete codes, as a person would start them."""

import json

import numpy as np
import pytest
from test_train_vaes import FILES, PICTURES, refused

from guides.systems import pixelcnn
from pplmodels.errors import InputError
from pplmodels.systems import train

SHORT = ["--steps", "6", "--eval-every", "3", "--batch-size", "16", "--device", "cpu", "--no-compile"]
BOOK = ["--codes", "6", "--dim", "4", "--channels", "6", "--blocks", "1"]
NET = ["--channels", "6", "--layers", "2", "--size", "3", "--embedding", "4", "--hidden", "8"]


def result(run):
    return json.loads((run / "result.json").read_text())["metrics"]


@pytest.mark.filterwarnings("default")
def test_stage_two_learns_the_codes_of_stage_one_and_leaves_it_as_it_is(script, tmp_path, capsys):
    first = tmp_path / "first"
    script("train_vqvae")([*SHORT, *BOOK, "--decay", "0.9", "--out", str(first)])
    assert {path.name for path in first.iterdir()} == FILES | PICTURES | {"usage.png", "codes.png"}
    found = result(first)
    assert found["kl"] == pytest.approx(4 * np.log(6)) and 0 < found["code_usage"] <= 1 <= found["code_perplexity"] <= 6
    assert found["bits_per_dim"] > 0 and 0 < found["mean_squared_error"] < 1
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    for kind in ("--gated", "--no-gated"):
        second = tmp_path / kind
        script("train_pixelcnn")([str(first), *SHORT, *NET, kind, "--out", str(second)])
        pictures = {"samples.png", "samples-uniform.png"}
        assert {path.name for path in second.iterdir()} == FILES | pictures | {"best.safetensors"}
        learned = result(second)
        assert learned["nats_per_code"] == pytest.approx(-learned["elbo"] / 4)
        assert learned["unigram_nats_per_code"] == pytest.approx(np.log(found["code_perplexity"]))
        assert learned["image_elbo"] == pytest.approx(found["reconstruction"] + learned["elbo"])
        capsys.readouterr()
        script("evaluate")([str(second)])
        assert json.loads(capsys.readouterr().out.rpartition("wrote")[0])["elbo"] == pytest.approx(learned["elbo"])
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before

    capsys.readouterr()
    script("evaluate")([str(first)])
    assert json.loads(capsys.readouterr().out.rpartition("wrote")[0]).items() >= found.items()
    script("train_vqvae")([*SHORT, *BOOK, "--seed", "1", "--out", str(tmp_path / "other")])
    (first / "model.safetensors").unlink()
    (tmp_path / "other" / "model.safetensors").rename(first / "model.safetensors")
    (tmp_path / "other" / "model.json").replace(first / "model.json")
    resume = ["--resume", "--out", str(second)]
    refused(lambda: script("train_pixelcnn")([*resume, str(first)]), "trained with another codebook", capsys)


@pytest.mark.filterwarnings("default")
def test_the_prior_is_trained_as_its_codes_were_and_resumed(script, tmp_path, monkeypatch):
    run, file = tmp_path / "run", tmp_path / "mine.py"
    file.write_text("from pplmodels import VQVAE\n\n\nclass Mine(VQVAE):\n    pass\n")
    options = ["--seed", "3", "--precision", "bfloat16"]
    monkeypatch.setitem(pixelcnn.STEPS, "digits", 2)
    for wanted in ([*SHORT, *BOOK, *options, "--with-prior"], ["--resume", "--device", "cpu", "--no-compile"]):
        train("vq-vae", [*wanted, "--out", str(run), "--import", str(file)])
        config = json.loads((run / "prior/config.json").read_text())
        assert {config[name] for name in ("seed", "precision", "device", "compile")} == {3, "bfloat16", "cpu", False}
    assert len((run / "prior/environment.jsonl").read_text().splitlines()) == 2


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("pixels", ["bits", "levels"])
def test_pixels_are_maps_too(script, tmp_path, pixels):
    run = tmp_path / "run"
    script("train_pixelcnn")([*SHORT, *NET, "--pixels", pixels, "--out", str(run)])
    assert {path.name for path in run.iterdir()} == FILES | {"best.safetensors", "samples.png"}
    most = {"bits": 2, "levels": 256}[pixels]
    assert result(run)["nats_per_code"] == pytest.approx(np.log(most), rel=0.2)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("train_vqvae", ["--codes", "0"], "--codes: '0' is not a positive integer"),
        ("train_vqvae", ["--dim", "0"], "--dim: '0' is not a positive integer"),
        ("train_vqvae", ["--data", "odd.npz"], "sides of 6x8 images are not multiples of 4"),
        ("train_pixelcnn", ["nowhere"], "nowhere is not a run"),
        ("train_pixelcnn", ["a-vae"], "a-vae is not the run of a VQ-VAE"),
        ("train_pixelcnn", ["unfinished"], "unfinished is incomplete"),
        ("train_pixelcnn", ["--size", "4"], "--size: '4' is not an odd integer of at least 3"),
        ("train_pixelcnn", ["--data", "colours.npz"], "colours.npz has color images"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_code_2(script, tmp_path, monkeypatch, capsys, name, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for folder, kind in (("a-vae", "vae"), ("unfinished", "vq-vae")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"system": kind}))
    for file, shape in (("odd", (20, 6, 8)), ("colours", (20, 8, 8, 3))):
        images = np.zeros(shape, np.uint8)
        np.savez(f"{file}.npz", x_train=images, x_test=images)
    before = set(tmp_path.rglob("*"))
    refused(lambda: script(name)(arguments), sentence, capsys)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_folder_of_runs_stands_for_the_newest(script, tmp_path, capsys):
    runs = [tmp_path / "runs" / name for name in ("20260101-101010", "20260101-101010_2")]
    for run in runs:
        script("train_vqvae")([*SHORT, *BOOK, "--out", str(run)])
    before = {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()}
    said = f"using the newest run in {tmp_path / 'runs'}: {runs[1]}\n"
    for name, arguments in (
        ("evaluate", [str(tmp_path / "runs")]),
        ("train_vqvae", ["--resume", "--out", str(tmp_path / "runs")]),
        ("train_pixelcnn", [str(tmp_path / "runs"), *SHORT, *NET, "--out", str(tmp_path / "second")]),
    ):
        capsys.readouterr()
        script(name)(arguments)
        assert capsys.readouterr().err.count(said) == 1
    assert (runs[1] / "evaluation.json").exists()
    assert json.loads((tmp_path / "second/config.json").read_text())["stage_one"] == str(runs[1])
    assert {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="is not a run"):
        script("train_vqvae")(["--resume", "--out", str(runs[1] / "tensorboard")])
