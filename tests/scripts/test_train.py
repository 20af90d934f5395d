"""The script that trains any system, and what holds for all training scripts."""

import json
import runpy

import pytest
from starting import ROOT
from test_train_vaes import RUNS, SMALL, refused

from pplmodels.systems import all_systems

SCRIPTS = {path.stem: path for path in (ROOT / "scripts").glob("*.py")}
TRAINING = {name: path for name, path in SCRIPTS.items() if name.startswith("train_")}
OTHERS = {"train_air", "train_air3d", "train_pixelcnn", "train_sbn", "train_vqvae"}  # each has a test file of its own


@pytest.mark.filterwarnings("default")
def test_a_system_is_trained_by_its_name(script, tmp_path):
    run = tmp_path / "run"
    script("train")(["vae", *SMALL, "--no-compile", "--hidden", "4", "--z-dim", "2", "--out", str(run)])
    assert json.loads((run / "config.json").read_text())["system"] == "vae"


def test_the_systems_are_listed(script, capsys):
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as ended:
            script("train")(words)
        assert ended.value.code == 0
        listed = capsys.readouterr().out
        assert all(f"  {name} " in listed for name in all_systems())


def test_an_unknown_system_is_refused_with_the_names_of_all(script, capsys):
    refused(lambda: script("train")(["vea"]), f"there is no system 'vea': choose {', '.join(all_systems())}.", capsys)


@pytest.mark.parametrize("name", TRAINING)
def test_every_training_script_names_a_system_and_is_run_by_a_test(name):
    (system,) = runpy.run_path(str(TRAINING[name]))["main"].args
    assert system in all_systems()
    assert name in OTHERS | {row[0] for row in RUNS.values()}


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=SCRIPTS)
def test_scripts_are_entry_points_only(path):
    assert len(path.read_text().splitlines()) <= 15
