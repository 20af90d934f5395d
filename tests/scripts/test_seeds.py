"""Seeds of any size that --seed takes."""

import json
import random

import numpy as np
import pyro
import pytest
import test_train_air3d
import torch
from starting import SMALL
from test_train_vaes import SMALL as FAMILY
from test_train_vaes import refused

from pplmodels.rng import LARGEST_SEED, SEEDS, seed_all
from pplmodels.training.loop import _orders

LARGE = ["--seed", str(LARGEST_SEED)]


def drawn():
    return [*torch.rand(3).tolist(), random.random(), *np.random.rand(3)]  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_seeds_are_pyros(seed):
    pyro.set_rng_seed(seed)
    expected = drawn()
    seed_all(seed)
    assert drawn() == expected


def test_larger_seeds_differ():
    found = []
    for seed in (2**32, 2**32 + 1, LARGEST_SEED, SEEDS - 1):
        seed_all(seed)
        found.append(drawn())
        seed_all(seed)
        assert drawn() == found[-1]
    assert len(set(map(tuple, found))) == len(found)


def test_orders_of_large_seeds_differ_too():
    seeds = LARGEST_SEED, LARGEST_SEED - 1
    orders = [next(_orders(22, 22, seed, 0, torch.device("cpu"))).tolist() for seed in seeds]
    assert orders[0] != orders[1]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train_air", [*SMALL, "--steps", "2", "--restarts", "2", "--count-steps", "1", "2"]),
        ("train_air3d", [*test_train_air3d.TINY, "--counts", "1", "--steps", "2"]),
        ("train_vae_2d", [*FAMILY, "--no-compile", "--hidden", "4", "--train-points", "50", "--valid", "50"]),
    ],
)
def test_the_largest_seed_trains(script, tmp_path, name, options):
    run = tmp_path / "run"
    script(name)([*options, *LARGE, "--out", str(run)])
    assert json.loads((run / "result.json").read_text())["seed"] == LARGEST_SEED
    if name == "train_vae_2d":
        script("evaluate")([str(run), *LARGE])


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1])
@pytest.mark.parametrize(
    "name, needed",
    [
        ("train_air", []),
        ("train_vqvae", []),
        ("evaluate", ["run"]),
        ("compare", ["--out", "report"]),
        ("compare_air3d", ["run"]),
    ],
)
def test_other_seeds_are_refused(script, tmp_path, monkeypatch, capsys, name, needed, seed):
    monkeypatch.chdir(tmp_path)
    sentence = f"--seed: '{seed}' is not an integer from 0 to 2^63"
    refused(lambda: script(name)([*needed, f"--seed={seed}"]), sentence, capsys)
    assert not list(tmp_path.iterdir())
