"""Run folders of strangers, given to the scripts."""

import json
import runpy
import shutil

import pytest
from starting import ROOT
from test_train_vaes import SMALL, refused

from pplmodels import MLPVAE

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "run"
    main = runpy.run_path(str(ROOT / "scripts" / "train_vae.py"))["main"]
    main([*SMALL, "--hidden", "4", "--z-dim", "2", "--out", str(folder)])
    return folder


def changed(good, folder, file, change):
    shutil.copytree(good, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **change} if isinstance(change, dict) else change))
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ([], "is not a run"),
        ({"system": "air"}, "is incomplete"),
        ({"system": "vae-2d", "train_points": 5}, "has an invalid value for --valid: None"),
        ({"data": 3}, "has an invalid value for --data: 3"),
        ({"binarise": "x"}, "has an invalid value for --binarise: 'x'"),
        ({"system": "x"}, "there is no system 'x': choose"),
        ({"system": 3}, "has no system"),
        ({"data": "../x\ny"}, "there is no dataset"),
        ({"valid": -3}, "has an invalid value for --valid: -3"),
        ({"image": 7}, "was trained on images of size 7"),
        ({"batch_size": "many"}, "has an invalid value for --batch-size: 'many'"),
    ],
    ids=str,
)
def test_evaluating_a_made_up_configuration_ends_with_one_sentence(script, tmp_path, capsys, good, change, sentence):
    run = changed(good, tmp_path / "run", "config.json", change)
    before = files(tmp_path)
    refused(lambda: script("evaluate")([str(run), "--device", "cpu"]), sentence, capsys)
    assert {path: content for path, content in files(tmp_path).items() if path.name != ".lock"} == before  # empty


def test_evaluating_a_pair_of_other_images_ends_with_one_sentence(script, tmp_path, capsys, good):
    run = changed(good, tmp_path / "run", "model.json", {})
    MLPVAE(image=(1, 5, 5), z_dim=2, hidden_dims=(4,)).save_pretrained(run)
    refused(lambda: script("evaluate")([str(run), "--device", "cpu"]), "cannot be applied to the images", capsys)


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("config.json", [], "is not a run"),
        ("config.json", {"hidden": [10**9, "x"]}, "has an invalid value for --hidden"),
        ("config.json", {"system": []}, "is a run of another system"),
        ("config.json", {"command": None}, "has no command"),
        ("config.json", {"image": "x"}, "was trained on images of size x"),
    ],
)
def test_resuming_a_made_up_run_ends_with_one_sentence(script, tmp_path, capsys, good, file, change, sentence):
    run = changed(good, tmp_path / "run", file, change)
    before = files(tmp_path)
    refused(lambda: script("train_vae")(["--resume", "--out", str(run), "--device", "cpu"]), sentence, capsys)
    assert {path: content for path, content in files(tmp_path).items() if path.name != ".lock"} == before  # empty


@pytest.mark.parametrize("line", ["[]", '{"step": []}', '{"step": 3, "seconds": 1, "train_elbo": "x"}'])
def test_resuming_with_made_up_evaluations_ends_with_one_sentence(script, tmp_path, capsys, good, line):
    run = changed(good, tmp_path / "run", "config.json", {"steps": 9})
    (run / "metrics.jsonl").write_text(line + "\n")
    refused(lambda: script("train_vae")(["--resume", "--out", str(run)]), "does not contain valid evaluations", capsys)
