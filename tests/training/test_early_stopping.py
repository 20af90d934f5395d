"""When a training ends early, and with which weights."""

import math

import pytest

from pplmodels.training import early_stopping
from pplmodels.training.early_stopping import EarlyStopping


@pytest.fixture
def files(monkeypatch):
    """What is saved and loaded, instead of weights."""
    done = []
    monkeypatch.setattr(early_stopping, "save_weights", lambda folder, state: done.append(("saved", folder, state)))
    monkeypatch.setattr(early_stopping, "load_weights", lambda folder, state: done.append(("loaded", folder, state)))
    return done


def lines(bounds):
    return [{} if bound is None else {"valid_elbo": bound} for bound in bounds]


def test_the_first_of_equal_bounds_is_the_best(files, tmp_path):
    stopping = EarlyStopping(2, tmp_path, [])
    due = []
    for number, metrics in enumerate(lines([-3.0, None, -1.0, -1.0, -2.0])):
        stopping.observe(metrics, number)
        due.append(stopping.is_due)
    assert files == [("saved", tmp_path, 0), ("saved", tmp_path, 2)]
    assert due == [False, False, False, False, True]
    stopping.restore_best("state")
    assert files[-1] == ("loaded", tmp_path, "state")


@pytest.mark.parametrize("bounds, due", [([], False), ([1.0], False), ([1.0, 0.0], False), ([1.0, 0.0, 0.5], True)])
def test_evaluations_before_a_resumption_count(files, tmp_path, bounds, due):
    stopping = EarlyStopping(2, tmp_path, lines(bounds))
    assert stopping.is_due == due
    stopping.observe({"valid_elbo": 0.9}, "state")
    assert bool(files) == (bounds == [])


def test_without_patience_it_never_ends_and_no_weights_are_kept(files, tmp_path):
    stopping = EarlyStopping(None, tmp_path, lines([1.0] + [-math.inf] * 9))
    stopping.observe({"valid_elbo": 2.0}, "state")
    stopping.restore_best("state")
    assert not stopping.is_due and files == []
