"""Short starts: the best is kept, and a kill loses none."""

import json

import pytest

from pplmodels.training import Run, best_of_seeds

ELBOS = {3: -10.0, 4: 25.0, 5: 7.0}


def beginning(seen, killed_at=None, bounds=ELBOS):
    def begin(start, seed, resume):
        if seed == killed_at:
            (start.folder / "checkpoint.safetensors").write_text("half way")
            raise KeyboardInterrupt
        seen.append((seed, resume))
        metrics = {"train_elbo": bounds[seed], **({"warning": "collapsing"} if seed == 3 else {})}
        (start.folder / "checkpoint.safetensors").write_text(f"weights of {seed}")
        start.log(10, 1.0, metrics)

    return begin


@pytest.mark.filterwarnings("default")  # TensorBoard's own
def test_the_best_is_kept_and_the_rest_reported(tmp_path, capsys):
    run = Run.create(tmp_path / "run", {"seed": 3})
    seen = []
    assert best_of_seeds(run, ELBOS, beginning(seen)) == 4
    assert seen == [(3, False), (4, False), (5, False)]
    assert (run.folder / "checkpoint.safetensors").read_text() == "weights of 4"
    assert run.metrics[-1]["train_elbo"] == 25.0
    assert json.loads((run.folder / "starts.json").read_text())["success_rate"] == pytest.approx(2 / 3)
    assert "67% of 3 restarts have no warning; training continues with seed 4" in capsys.readouterr().err
    assert best_of_seeds(run, ELBOS, None) == 4  # known from then on


@pytest.mark.filterwarnings("default")
def test_a_collapsed_start_is_only_kept_if_there_is_no_other(tmp_path):
    bounds = {3: 30.0, 4: 25.0}  # beginning() warns of seed 3
    begin = beginning([], bounds=bounds)
    assert best_of_seeds(Run.create(tmp_path / "both", {"seed": 3}), bounds, begin) == 4
    assert best_of_seeds(Run.create(tmp_path / "one", {"seed": 3}), [3], begin) == 3


@pytest.mark.filterwarnings("default")
def test_a_killed_start_goes_on_where_it_was(tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 3})
    with pytest.raises(KeyboardInterrupt):
        best_of_seeds(run, ELBOS, beginning([], killed_at=4))
    seen = []
    assert best_of_seeds(run, ELBOS, beginning(seen)) == 4
    assert seen == [(3, True), (4, True), (5, False)]
