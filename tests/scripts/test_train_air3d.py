"""AIR in three dimensions from the command line."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from starting import HANGS, start

from pplmodels.errors import InputError
from pplmodels.training import Run

TINY = [
    *("--size", "16", "--channels", "4", "--hidden", "8", "--train-scenes", "60", "--test-scenes", "40"),
    *("--batch-size", "8", "--device", "cpu", "--no-compile"),
]
ESTIMATOR = ["--estimator", "reinforce"]
PARTS = ["--first-steps", "6", "--steps", "4", "--eval-every", "2"]


@pytest.mark.filterwarnings("default")
def test_trained_in_three_parts_drawn_evaluated_and_compared(script, tmp_path, capsys):
    run = tmp_path / "run"
    script("train_air3d")([*TINY, *PARTS, "--out", str(run)])
    assert {"solids.png", "yaws.png", "curves.png", "model.json", "guide.safetensors"} <= {
        p.name for p in run.iterdir()
    }
    steps = [
        [json.loads(line)["step"] for line in (run / part / "metrics.jsonl").read_text().splitlines()]
        for part in ("alone", "one", "")
    ]
    assert steps == [[2, 4, 6], [2, 4, 6], [2, 4]]
    result = json.loads((run / "result.json").read_text())
    assert np.sum(result["metrics"]["confusion"]) == 40 and result["metrics"]["seconds_before"] > 0
    assert json.loads((run / "guide.json").read_text())["arguments"]["num_steps"] == 3
    capsys.readouterr()
    script("evaluate")([str(run)])
    again = json.loads(capsys.readouterr().out.rpartition("wrote")[0])
    assert {**again, "seconds_before": result["metrics"]["seconds_before"]}.items() >= result["metrics"].items()
    script("compare_air3d")(
        [str(run), "--pictures", "6", "--starts", "3", "--search-steps", "2", "--steps", "3", "--device", "cpu"]
    )
    rows = json.loads((run / "comparison.json").read_text())["rows"]
    assert len(rows) == 5 and all(row["ms_a_picture"] > 0 for row in rows)
    assert rows[0]["times_the_guide"] == 1


@pytest.mark.filterwarnings("default")
def test_one_solid_needs_one_part(script, tmp_path):
    run = tmp_path / "run"
    script("train_air3d")([*TINY, "--counts", "1", "--steps", "2", "--out", str(run)])
    assert not (run / "one").exists() and not (run / "alone").exists()
    assert json.loads((run / "guide.json").read_text())["arguments"]["num_steps"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_stopped_in_the_first_or_last_part_and_resumed_is_the_same_as_never_stopped(script, tmp_path, monkeypatch):
    """An exception in place of kill -9: what is on disk then is what a killed run leaves."""

    def weights(run):
        script("train_air3d")([*run, "--out", str(tmp_path / "run")])
        found = load_file(tmp_path / "run/guide.safetensors")
        shutil.rmtree(tmp_path / "run")
        return found

    straight, log = weights([*TINY, *PARTS]), Run.log
    for part in ("alone", "."):
        wanted = tmp_path / "run" / part

        def failing(self, step, *arguments, wanted=wanted):
            log(self, step, *arguments)
            if self.folder == wanted and step == 4:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Run, "log", failing)
            script("train_air3d")([*TINY, *PARTS, "--out", str(tmp_path / "run")])
        for folder in (tmp_path / "run", wanted):
            (folder / ".lock").unlink(missing_ok=True)
        resumed = weights(["--resume", "--no-compile", "--device", "cpu"])
        assert [name for name in straight | resumed if not straight[name].equal(resumed[name])] == []


@pytest.mark.filterwarnings("default")
def test_a_guide_of_yours_is_trained_by_the_other_estimator(script, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import pyro.distributions as dist\nfrom pyro.nn import pyro_method\nfrom guides import AIR3DGuide\n\n\n"
        "class Even(AIR3DGuide):\n    @pyro_method\n    def q_z_kind(self, features):\n"
        "        return dist.Categorical(logits=0 * self.kind(features))\n"
    )
    script("train_air3d")([*TINY, *PARTS, *ESTIMATOR, "--import", str(file), "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run/guide.json").read_text())["class"] == "Even"


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--counts", "0"], "--counts must include a count above 0"),
        (["--counts", "40"], "do not fit on the table"),
        (["--size", "18"], "a multiple of 4"),
    ],
)
def test_bad_input_is_one_sentence(script, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        script("train_air3d")([*TINY, *options, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_exit_code_of_bad_input_is_2(tmp_path):
    for name, arguments in (("train_air3d", ("--data", "cups")), ("compare_air3d", (tmp_path / "nothing",))):
        process = start(name, *arguments)
        _, errors = process.communicate(timeout=HANGS)
        assert process.returncode == 2 and errors.count("\n") == 1, errors
