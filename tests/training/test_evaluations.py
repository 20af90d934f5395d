"""What the log says of the steps between two evaluations."""

import os
import signal

import pytest
from test_loop import train

from pplmodels.training.state import TrainState


def test_the_logged_objective_is_the_mean_since_the_last_evaluation(tmp_path, monkeypatch):
    """Of every step once, although the run is stopped between evaluations, after step 8, and resumed."""
    losses, take_step = [], TrainState.take_step

    def recorded(*arguments):
        losses.append(take_step(*arguments).double())
        return losses[-1]

    monkeypatch.setattr(TrainState, "take_step", recorded)
    with pytest.raises(KeyboardInterrupt):
        train(
            tmp_path / "run", 12, schedule=lambda step: 1.0 if step != 7 else os.kill(os.getpid(), signal.SIGINT) or 1
        )
    assert len(losses) == 8
    lines = train(tmp_path / "run", 12, schedule=lambda step: 1.0, resume=True)[3]
    assert [line["step"] for line in lines] == [5, 10, 12]
    for line, steps in zip(lines, (losses[:5], losses[5:10], losses[10:]), strict=True):
        assert line["train_elbo"] == pytest.approx(-float(sum(steps)) / len(steps), rel=1e-12)
