"""train_sbn.py from its first step to its evaluation."""

import json

import pytest

SMALL = ["--steps", "6", "--batch-size", "32", "--hidden", "6", "5", "--particles", "3", "--chunk", "2", "--no-compile"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("objective", ["vimco", "wake-sleep"])
def test_trained_saved_and_evaluated_again(script, tmp_path, capsys, objective):
    run = tmp_path / "run"
    script("train_sbn")([*SMALL, "--objective", objective, "--out", str(run)])
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert {"elbo", "kl/z1", "kl/z2", "reconstruction"} <= set(metrics)
    capsys.readouterr()
    script("evaluate")([str(run), "--iw-samples", "5"])
    again = json.loads(capsys.readouterr().out.rpartition("wrote")[0])
    assert again["elbo"] == metrics["elbo"] and "iw_bound" in again
