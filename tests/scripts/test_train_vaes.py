"""The scripts of the VAE family, as a person would start them; what all scripts share is in test_train_air.py."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from starting import HANGS, start

from pplmodels.systems import run_script

SMALL = ["--steps", "6", "--eval-every", "3", "--batch-size", "16", "--warm-up", "2", "--device", "cpu"]
COMPILED = ("fully connected, cut", "rows")  # every pair's step is compared with the compiled one in test_pairs.py
NARROW = ["--encoder-channels", "4", "4", "--decoder-channels", "4", "4"]
FILES = {"config.json", "metrics.jsonl", "result.json", "checkpoint.safetensors", "environment.jsonl", "tensorboard"}
FILES |= {"curves.png"} | {f"{role}.{ending}" for role in ("model", "guide") for ending in ("json", "safetensors")}
PICTURES = {"reconstructions.png", "samples.png"}
PLANE = PICTURES | {"interpolations.png", "manifold.png", "prior.png"}  # of one code an image
FILM = PICTURES | {"painting.png", "painting.gif", "dreaming.gif"}
LADDER = ["--z-dims", "3", "2", "--hidden", "8", "6"]
PAINTER = ["--num-steps", "2", "--hidden", "8", "--z-dim", "3"]
DREG = ["--gradient", "dreg", "--chunk", "3"]
RUNS = {  # script, options, pictures
    "fully connected": ("train_vae", ["--hidden", "8", "8", "--z-dim", "4"], PLANE),
    "fully connected, cut": (
        "train_vae",
        ["--hidden", "8", "--binarise", "threshold", "--precision", "bfloat16"],
        PLANE,
    ),
    "fully connected, dreg": ("train_vae", ["--hidden", "8", "--z-dim", "4", "--particles", "4", *DREG], PLANE),
    "plane": ("train_vae_2d", ["--train-points", "200", "--data", "rotated-2"], {"clouds.png"}),
    "mixture": ("train_image_vae", NARROW, PLANE),
    "normal": (
        "train_image_vae",
        [*NARROW, "--no-refine", "--likelihood", "logit-normal-learned", "--warm-up", "0"],
        PLANE,
    ),
    "bernoulli": ("train_image_vae", [*NARROW, "--likelihood", "bernoulli", "--free-bits", "1"], PLANE),
    "flow prior": ("train_vlae", [*NARROW, "--flow-hidden", "16", "--likelihood", "logit-normal"], PLANE),
    "flow posterior": ("train_vlae", [*NARROW, "--flow-hidden", "8", "--flow", "posterior", "--z-dim", "2"], PLANE),
    "rows": ("train_lstm_vae", ["--hidden", "8", "--channels", "4", "4", "--cycle", "4"], PLANE),
    "layers": ("train_ladder_vae", LADDER, PICTURES | {"layers.png"}),
    "layers, gdreg": (
        "train_ladder_vae",
        [*LADDER, "--particles", "3", "--gradient", "gdreg"],
        PICTURES | {"layers.png"},
    ),
    "painted": ("train_draw", [*PAINTER, "--write-window", "3"], FILM),
    "painted whole": ("train_draw", [*PAINTER, "--no-attention", "--likelihood", "logit-normal"], FILM),
}


@pytest.mark.filterwarnings("default")  # what a user's session has; the libraries' own warnings are not ours
@pytest.mark.parametrize("name", RUNS)
def test_trained_drawn_saved_and_evaluated_again(script, tmp_path, capsys, name):
    training, options, pictures = RUNS[name]
    run = tmp_path / "run"
    engine = [] if name in COMPILED else ["--no-compile"]
    script(training)([*SMALL, *engine, *options, "--out", str(run)])
    assert {path.name for path in run.iterdir()} == FILES | pictures
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    layers = {f"{metric}/z{layer}" for metric in ("kl", "active_units") for layer in (1, 2)}
    assert {"train_elbo", "valid_elbo"} <= set(lines[0])
    assert (layers if "layers" in name else {"kl/z", "active_units"}) <= set(lines[0])
    no_information = ("flow posterior", "layers", "layers, gdreg", "painted", "painted whole")
    assert ("mutual_information" in lines[0]) == (name not in no_information)
    warm = name != "normal"  # while the KL has no full weight, what the steps raise is no ELBO
    weighted = "dreg" in name
    assert ("train_annealed_elbo" in lines[0]) == (warm and not weighted)
    assert ("train_annealed_iw_bound" in lines[0]) == weighted
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    levels = ("mixture", "normal", "flow prior", "flow posterior", "painted whole")
    assert ("bits_per_dim" in metrics) == (name in levels)
    capsys.readouterr()
    script("evaluate")([str(run), "--iw-samples", "7", "--iw-chunk", "3", "--iw-images", "150"])
    again = json.loads(capsys.readouterr().out.rpartition("wrote")[0])
    assert again.items() >= metrics.items()  # same weights, same images, same seed
    assert again["iw_samples"] == 7 and again["iw_images"] == 150 and 1 <= again["effective_sample_size"] <= 7
    with np.load(run / "evaluation.npz") as arrays:
        assert arrays["iw_bound"].shape == (150,)
        assert arrays["iw_bound"].mean() == pytest.approx(again["iw_bound"])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "options",
    [["--particles", "4"], ["--particles", "3", "--chunk", "2", "--objective", "wake-sleep", "--insomnia", "0.5"]],
    ids=["vimco", "wake-sleep"],
)
def test_a_network_of_units_is_trained_drawn_saved_and_evaluated_again(script, tmp_path, capsys, options):
    run = tmp_path / "run"
    small = [option for option in SMALL if option != "--warm-up"]
    small.remove("2")
    script("train_sbn")([*small, "--no-compile", "--hidden", "6", "5", *options, "--out", str(run)])
    assert {path.name for path in run.iterdir()} == FILES | PICTURES | {"layers.png"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train_iw_bound", "train_elbo", "valid_elbo", "kl/z1", "kl/z2"} <= set(lines[0])
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    capsys.readouterr()
    script("evaluate")([str(run), "--iw-samples", "7", "--iw-chunk", "3", "--iw-images", "150"])
    again = json.loads(capsys.readouterr().out.rpartition("wrote")[0])
    assert again.items() >= metrics.items() and again["iw_bound"] > again["elbo"]


@pytest.mark.filterwarnings("default")
def test_a_folder_of_ten_images_and_a_code_of_one_number(script, tmp_path):
    (tmp_path / "few").mkdir()
    for number in range(10):
        Image.new("RGB", (8, 8), (25 * number, 0, 255)).save(tmp_path / f"few/{number}.png")
    run = tmp_path / "run"
    options = [*NARROW, "--no-compile", "--data", str(tmp_path / "few"), "--z-dim", "1", "--out", str(run)]
    script("train_image_vae")([*SMALL, *options])
    assert {path.name for path in run.iterdir()} == FILES | {"reconstructions.png", "samples.png"}
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert all(value == value for value in metrics.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_averaged_weights_and_early_stopping_through_a_kill(tmp_path):
    """Killed and resumed, a run with averaged weights and normalised layers ends with the same weights."""
    options = [*LADDER, "--steps", "40", "--eval-every", "8", "--averaging", "0.9", "--patience", "3"]
    runs = {name: tmp_path / name for name in ("straight", "stopped")}
    processes = {name: start("train_ladder_vae", *options, "--out", run) for name, run in runs.items()}
    while not (runs["stopped"] / "metrics.jsonl").exists():
        assert processes["stopped"].poll() is None
    processes["stopped"].kill()
    processes["stopped"].communicate()
    resumed = start("train_ladder_vae", "--resume", "--out", runs["stopped"])
    for process in (processes["straight"], resumed):
        _, errors = process.communicate(timeout=HANGS)
        assert process.returncode == 0, errors
    for role in ("model", "guide"):
        first, second = (load_file(run / f"{role}.safetensors") for run in runs.values())
        assert all(first[name].equal(second[name]) for name in first | second)


GUIDE = """
import pyro.distributions as dist
import torch
from guides import MLPGuide
from pyro.nn import pyro_method

class ShiftedGuide(MLPGuide):
    "A guide of a user's own."
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.shift = torch.nn.Parameter(torch.zeros(()))

    @pyro_method
    def q_z(self, x):
        normal = super().q_z(x).base_dist
        return dist.Normal(normal.loc + self.shift, normal.scale).to_event(1)
"""


@pytest.mark.filterwarnings("default")
def test_a_guide_of_the_users_own_is_trained_resumed_and_evaluated(script, tmp_path, capsys):
    file, run = tmp_path / "my_guide.py", tmp_path / "run"
    file.write_text(GUIDE)
    own = ["--import", str(file)]
    small = [*SMALL, "--no-compile", "--hidden", "8", "--z-dim", "4", "--out", str(run)]
    script("train_vae")([*small, *own])
    assert json.loads((run / "guide.json").read_text())["class"] == "ShiftedGuide"
    trained = load_file(run / "guide.safetensors")
    assert trained["shift"] != 0
    refused(lambda: script("train_vae")(["--resume", "--out", str(run)]), "was trained with --import", capsys)
    script("train_vae")(["--resume", "--out", str(run), *own])
    assert all(value.equal(trained[name]) for name, value in load_file(run / "guide.safetensors").items())
    assert json.loads((run / "config.json").read_text())["imports"] == str(file)
    sentence = f"was trained with --import {file}: pass --import to execute that file"
    refused(lambda: script("evaluate")([str(run)]), sentence, capsys)
    stranger = start("evaluate", run, "--import")  # a process that has not seen the class
    assert f"importing {file}, which {run} was trained with\n" in stranger.communicate()[1] and stranger.returncode == 0
    script("train_vae")(["--resume", "--out", str(run), "--import"])
    assert f"importing {file}, which {run} was trained with\n" in capsys.readouterr().err
    evaluation = [str(run), *own, "--iw-samples", "3"]
    script("evaluate")(evaluation)
    assert json.loads(capsys.readouterr().out.rpartition("wrote")[0])["iw_samples"] == 3
    for name in ("config.json", "metrics.jsonl"):  # a pair that was saved by hand
        (run / name).unlink()
    refused(lambda: script("evaluate")(evaluation), "give --data and --transform", capsys)
    script("evaluate")([*evaluation, "--data", "digits", "--transform", "dynamic"])
    assert json.loads(capsys.readouterr().out.rpartition("wrote")[0])["iw_images"] == 397


@pytest.mark.filterwarnings("default")
def test_files_that_have_no_guide_for_a_script_are_refused(script, tmp_path, capsys):
    file, run = tmp_path / "my_guide.py", tmp_path / "run"
    own = ["--import", str(file)]
    small = [*SMALL, "--no-compile", "--hidden", "8", "--z-dim", "4", "--out", str(run)]
    refused(lambda: script("train_vae")([*small, *own]), "is not an existing .py file", capsys)
    file.write_text(GUIDE)
    refused(lambda: script("train_air")([*own, "--out", str(run)]), "defines no subclass of AIR or AIRGuide", capsys)
    file.write_text(GUIDE + "class First(ShiftedGuide): pass\nclass Second(ShiftedGuide): pass\n")
    refused(lambda: script("train_vae")([*small, *own]), "First and Second are subclasses of MLPGuide", capsys)
    assert not run.exists()
    script("train_vae")(small)
    refused(lambda: script("train_vae")(["--resume", "--out", str(run), *own]), "trained without --import", capsys)
    refused(lambda: script("evaluate")([str(run), "--import"]), "--import needs a file", capsys)


HEAD = "import torch\nfrom guides import MLPGuide\nfrom pyro.nn import pyro_method\nclass Mine(MLPGuide):\n"
INIT = f"{HEAD}    def __init__(self, **sizes):\n        super().__init__(**sizes)\n"
FACTOR = f"{HEAD}    @pyro_method\n    def q_z(self, x): return "
WRONG = {
    "def mine(:": ", line 1: SyntaxError: ",
    "import torch\nMine = Guide": ", line 2: NameError: name 'Guide' is not defined",
    "import torch\n\nassert not torch": ", line 3: AssertionError\n",
    f"{HEAD}    def __init__(self, width): super().__init__()": ", Mine: TypeError: ",
    f"{INIT}        self.widen()": ", line 7: AttributeError: 'Mine' object has no attribute 'widen'",
    f"{INIT}        self.scale = 1 + torch.nn.Parameter(torch.zeros(()))": ", Mine: RuntimeError: Only Tensors created",
    f"{FACTOR}super().q_z(x).base_dist": ": Running the guide fails with ValueError: Shape mismatch",
    f"{FACTOR}self.narrow(x)": ": Running the guide fails with AttributeError: 'Mine' object",
}


@pytest.mark.parametrize("content", WRONG, ids=WRONG.values())
def test_a_guide_that_would_not_train_is_refused_before_there_is_a_folder(script, tmp_path, capsys, content):
    file, run = tmp_path / "my_guide.py", tmp_path / "run"
    file.write_text(content)
    own = [*SMALL, "--no-compile", "--hidden", "8", "--out", str(run), "--import", str(file)]
    refused(lambda: script("train_vae")(own), f"{file}{WRONG[content]}", capsys)
    assert not run.exists()


@pytest.mark.filterwarnings("default")
def test_a_guide_with_a_network_that_it_does_not_use_is_trained_with_a_warning(script, tmp_path, capsys):
    file, run = tmp_path / "my_guide.py", tmp_path / "run"
    file.write_text(f"{INIT}        self.unused = torch.nn.Linear(2, 2)")
    script("train_vae")([*SMALL, "--no-compile", "--hidden", "8", "--out", str(run), "--import", str(file)])
    assert f"warning: {file}: Training would not change guide.unused.weight, because " in capsys.readouterr().err
    assert "unused.weight" in load_file(run / "guide.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_flow_that_starts_as_the_identity_is_no_fault_and_looking_draws_nothing(script, tmp_path, capsys):
    file, runs = tmp_path / "mine.py", [tmp_path / name for name in ("ours", "mine")]
    file.write_text("from pplmodels import ConvVAE\nclass Mine(ConvVAE): pass")
    for run, own in zip(runs, ([], ["--import", str(file)]), strict=True):
        script("train_vlae")([*SMALL, *NARROW, "--no-compile", "--flow-hidden", "16", "--out", str(run), *own])
    assert "warning" not in capsys.readouterr().err
    ours, mine = (load_file(run / "model.safetensors") for run in runs)
    assert json.loads((runs[1] / "model.json").read_text())["class"] == "Mine"
    assert all(value.equal(mine[name]) for name, value in ours.items())


def refused(main, sentence, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_script(main)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert sentence.strip() in errors.splitlines()[-1] and "Traceback" not in errors


BAD = [
    ("train_vae", ["--hidden", "0"], "--hidden: '0' is not a positive integer"),
    ("train_vae", ["--valid", "1400"], "leave none of the 1400"),
    ("train_vae", ["--binarise", "static"], "digits has gray pixels"),
    ("train_vae", ["--hold", "1.5"], "--hold: '1.5' is not a number from 0 to 1"),
    ("train_vae", ["--averaging", "2"], "--averaging: '2' is not a number from 0 to 1"),
    ("train_vae", ["--cycle", "5", "--warm-up", "9"], "--cycle 5 requires a --warm-up from 1 to 5, not 9"),
    ("train_vae", ["--particles", "0"], "--particles: '0' is not a positive integer"),
    ("train_vae", ["--gradient", "dreg"], "--gradient dreg needs --particles of at least 2."),
    ("train_vae", ["--particles", "4", "--chunk", "8"], "--chunk 8 must not be larger than --particles 4"),
    ("train_vae", ["--particles", "4", "--free-bits", "1"], "cannot be combined with --particles or --gradient"),
    ("train_sbn", ["--insomnia", "0.5"], "--insomnia is an option of --objective wake-sleep"),
    ("train_sbn", ["--particles", "1"], "--objective vimco compares samples, so it needs --particles of at least 2"),
    ("train_vae", ["--data", "empty"], "empty has 0 images"),
    ("train_vae", ["--data", "mixed"], "the images in mixed differ in size"),
    ("train_vae", ["--data", "broken"], "broken/05.png is not a readable image"),
    ("train_vae", ["--data", "levels.npz"], "has values from 200 to 200, but they must be from 0 (black) to 1 (white)"),
    ("train_vae_2d", ["--data", "digits"], "unknown Gaussian dataset 'digits': choose rotated"),
    ("train_image_vae", ["--data", "odd.npz"], "sides of 6x7 images are not multiples of 8"),
    ("train_image_vae", ["--likelihood", "cauchy"], "--likelihood"),
    ("train_vlae", ["--flow-hidden", "8"], "a MADE of 16 dimensions need at least 16 units, not 8"),
    ("train_lstm_vae", ["--data", "odd.npz"], "sides of 6x7 images are not multiples of 4"),
    (
        "train_ladder_vae",
        ["--z-dims", "4", "2", "--hidden", "8"],
        "z_dims (2) and hidden_dims (1) must both have",
    ),
    ("train_ladder_vae", ["--z-dims"], "--z-dims: expected at least one argument"),
    ("train_draw", ["--num-steps", "0"], "--num-steps: '0' is not a positive integer"),
    ("train_draw", ["--write-window", "9"], "a window of 9 x 9 does not fit images of 8 x 8"),
    ("train_draw", ["--read-window", "9"], "a window of 9 x 9 does not fit images of 8 x 8"),
    ("compare", ["--out", "report", "--runs", "nowhere"], "nowhere is not a run"),
    ("evaluate", ["nowhere"], "nowhere/model.json cannot be read"),
]


@pytest.mark.parametrize("name, arguments, sentence", BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_ends_with_one_sentence_and_code_2(script, tmp_path, monkeypatch, capsys, name, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "mixed", "broken"):
        (tmp_path / folder).mkdir()
    for number in range(12):
        Image.new("L", (6, 6 + (number == 7))).save(tmp_path / f"mixed/{number:02}.png")
        Image.new("L", (6, 6)).save(tmp_path / f"broken/{number:02}.png")
    (tmp_path / "broken/05.png").write_bytes(b"\x89PNG, but no more of it")
    odd = np.zeros((20, 6, 7), np.uint8)
    np.savez("odd.npz", x_train=odd, x_test=odd)
    np.savez("levels.npz", x_train=odd + 200.0, x_test=odd + 1.0)
    before = set(tmp_path.rglob("*"))
    refused(lambda: script(name)(arguments), sentence, capsys)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("default")
def test_images_of_another_shape_and_no_samples_are_refused(script, tmp_path, capsys):
    run = tmp_path / "run"
    script("train_vae")([*SMALL, "--no-compile", "--hidden", "8", "--out", str(run)])
    colours = np.zeros((20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "colours.npz", x_train=colours, x_test=colours)
    other = ["--data", str(tmp_path / "colours.npz")]
    refused(lambda: script("evaluate")([str(run), *other]), "have size 3x8x8, but ", capsys)
    refused(lambda: script("evaluate")([str(run), "--iw-samples", "0"]), "is not a positive integer", capsys)
    refused(
        lambda: script("train_vae")(["--out", str(run), "--resume", *other]),
        "the options of a run cannot be changed",
        capsys,
    )
