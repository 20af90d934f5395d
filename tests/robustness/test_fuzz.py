"""Randomly changed files load or are refused, and the fuzzer detects everything that is forbidden."""

import importlib
import json
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pplmodels.errors import InputError, as_input_error

fuzz = importlib.import_module("fuzz")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory limits are only available on Linux")
NUMBER = 100


def counts(name, number, seed=0):
    row = fuzz.fuzz(fuzz.FORMATS[name], number, seed)
    assert (row["other"], row["others"]) == (0, [])
    assert row["tried"] == row["loaded"] + row["refused"] == number
    assert row["peak_bytes"] < fuzz.BOUND
    return row


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_changed_files_load_or_are_refused(name):
    row = counts(name, NUMBER)
    assert row["loaded"] and row["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_many_changed_files_load_or_are_refused(name):
    counts(name, 10_000, seed=1)


def write(folder):
    (folder / "file.json").write_text("{}")


def unless_good(folder):
    return (folder / "file.json").read_text() != "{}"


def hungry_numpy(folder):
    with as_input_error("no"):
        if unless_good(folder):
            np.empty(2 * 2**30, np.uint8)
            raise ValueError


def hungry_torch(folder):
    with as_input_error("no"):
        if unless_good(folder):
            torch.empty(2 * 2**30, dtype=torch.uint8)
            raise ValueError


def hungry_python(folder):
    with as_input_error("no"):
        if unless_good(folder):
            bytearray(2 * 2**30)
            raise ValueError


def writer(folder):
    if unless_good(folder):
        Path(os.devnull).write_text("x")


def remover(folder):
    if unless_good(folder):
        Path("/tmp/no-such-file").unlink(missing_ok=True)


def starter(folder):
    if unless_good(folder):
        os.system("true")


def unpickler(folder):
    if unless_good(folder):
        pickle.loads(pickle.dumps(np.zeros(1)))


def crash(folder):
    if unless_good(folder):
        os.kill(os.getpid(), signal.SIGSEGV)


def bug(folder):
    if unless_good(folder):
        raise KeyError("x")


def lines(folder):
    if unless_good(folder):
        error = InputError("x")
        error.args = ("a\nb",)
        raise error


SEEN = {
    hungry_numpy: "tried to allocate more than",
    hungry_torch: "tried to allocate more than",
    hungry_python: "tried to allocate more than",
    writer: "to write",
    remover: "os.remove",
    starter: "os.system",
    unpickler: "pickle.find_class",
    crash: "exit code -11",
    bug: "KeyError",
    lines: "several lines",
}


@pytest.mark.parametrize("load", SEEN, ids=lambda load: load.__name__)
def test_what_may_not_happen_is_seen(load):
    row = fuzz.fuzz(fuzz.FileFormat(write, load, ("file.json",)), 3, 0)
    assert row["other"] and SEEN[load] in row["others"][0]["found"]


def test_an_input_can_be_had_again_by_seed_and_index(tmp_path, monkeypatch):
    first = fuzz.fuzz(fuzz.FileFormat(write, bug, ("file.json",)), 20, 3)
    monkeypatch.chdir(tmp_path)
    for failed in first["others"][-1:]:
        row = fuzz.fuzz(fuzz.FileFormat(write, bug, ("file.json",)), 20, 3, failed["index"])
        assert row["others"] == [failed]
        assert (tmp_path / f"fuzzed-{failed['index']}-file.json").read_bytes() != b"{}"


def test_the_counts_are_written_and_decide_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "FORMATS", {"good": None, "bad": None})
    monkeypatch.setattr(fuzz, "fuzz", lambda format, number, seed, replay: {"tried": number, "other": 0})
    fuzz.main(["--inputs", "4", "--out", str(tmp_path / "fuzz.json")])
    assert [row["tried"] for row in json.loads((tmp_path / "fuzz.json").read_text())["rows"]] == [4, 4]
    monkeypatch.setattr(fuzz, "fuzz", lambda format, number, seed, replay: {"tried": number, "other": 1})
    with pytest.raises(SystemExit) as stopped:
        fuzz.main(["--inputs", "4"])
    assert stopped.value.code == 1
