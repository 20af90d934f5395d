"""What befalls trainings: faults.py in a short and in its full form, and what can be seen in one process."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_loop import train

from pplmodels.errors import InputError, NonFiniteLossError, StorageError, Terminated
from pplmodels.io import append_line, atomic_write, read_complete_lines
from pplmodels.training import Run, signals
from pplmodels.training.checkpoint import step_of

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]


def survived(tmp_path, *arguments):
    """The rows of faults.py, in a process of its own: it forks, which one that has computed must not."""
    out = tmp_path / "faults.json"
    command = [sys.executable, str(Path(__file__).parent / "faults.py"), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["what"]: (row["tried"], row["survived"]) for row in json.loads(out.read_text())["rows"]}


@pytest.mark.slow
def test_a_few_of_each_fault(tmp_path):
    rows = survived(tmp_path, "--kills", "2", "--runs", "pixelcnn")
    assert all(tried == good for tried, good in rows.values())
    assert sum(tried for what, (tried, _) in rows.items() if what.startswith("kill -9")) == 2
    assert {"two runs with the same seed", "a write that fails", "a non-finite loss"} <= set(rows)


@pytest.mark.slow
def test_all_faults(tmp_path):
    rows = survived(tmp_path)
    assert all(tried == good for tried, good in rows.values())
    assert sum(tried for what, (tried, _) in rows.items() if what.startswith("kill -9")) == 50


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_finds_no_room_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    atomic_write(path, lambda temporary: temporary.write_text("old"))
    for name in ("fsync", "replace"):
        with monkeypatch.context() as full:
            full.setattr(os, name, no_room)
            with pytest.raises(StorageError, match=r"weights could not be written \(No space left on device\)"):
                atomic_write(path, lambda temporary: temporary.write_text("new"))
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"weights": "old"}


def test_files_and_their_names_are_on_disk_before_anything_follows(tmp_path, monkeypatch):
    """The file before it is renamed, the folder after; a line before the call returns."""
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda old, new: done.append("renamed") or replace(old, new))
    atomic_write(tmp_path / "file", lambda temporary: temporary.write_text("text"))
    append_line(tmp_path / "lines", "one")
    assert done == [f".writing-{os.getpid()}-file", "renamed", tmp_path.name, "lines"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins(tmp_path):
    straight = train(tmp_path / "straight", 12)
    Run.create(tmp_path / "killed", {"seed": 5}).close()
    resumed = train(tmp_path / "killed", 12, resume=True)
    assert torch.equal(straight[0].weight, resumed[0].weight)
    assert [line["step"] for line in resumed[3]] == [5, 10, 12]


def test_a_folder_of_a_run_that_was_killed_before_it_had_a_configuration_is_free(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".writing-7-config.json").write_text("{")
    Run.create(tmp_path, {"seed": 0}).close()
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


def test_what_killed_processes_left_half_written_goes_when_the_run_goes_on(tmp_path):
    train(tmp_path, 5)
    (tmp_path / ".writing-7-checkpoint.safetensors").write_text("half a checkpoint")
    Run.open(tmp_path)
    # reading leaves alone what a trainer may be writing
    assert (tmp_path / ".writing-7-checkpoint.safetensors").exists()
    Run.open(tmp_path).lock().close()
    assert not list(tmp_path.glob(".*"))


def test_a_patience_that_ran_out_before_a_kill_has_run_out_after_it(tmp_path):
    """Best at step 10, ended at step 20 of 40; resumed, not one step more is taken and the best weights come back."""
    bounds = iter([0.0, 3.0, 1.0, 2.0])
    ended = train(tmp_path, 40, evaluate=lambda: {"valid_elbo": next(bounds)}, patience=2)
    resumed = train(tmp_path, 40, evaluate=lambda: {"valid_elbo": 9.0}, patience=2, resume=True)
    assert [line["step"] for line in resumed[3]] == [5, 10, 15, 20]
    assert torch.equal(ended[0].weight, resumed[0].weight)


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_stop_between_evaluations_changes_no_line(tmp_path, number, error):
    """The mean of the training bound since the last evaluation is the same to the bit after a stop at step 7."""
    straight = train(tmp_path / "straight", 12)

    def stop(step):
        if step == 6:
            os.kill(os.getpid(), number)
        return 1.0

    plain = train(tmp_path / "plain", 12, schedule=lambda step: 1.0)
    with pytest.raises(error):
        train(tmp_path / "stopped", 12, schedule=stop)
    assert step_of(tmp_path / "stopped/checkpoint.safetensors") == 7
    resumed = train(tmp_path / "stopped", 12, schedule=lambda step: 1.0, resume=True)
    without = [[{**line, "seconds": 0} for line in lines] for lines in (plain[3], resumed[3])]
    assert without[0] == without[1]
    assert without[0] != [{**line, "seconds": 0} for line in straight[3]]


def test_a_stop_whose_exception_is_lost_in_a_finaliser_is_a_stop(tmp_path, monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: lost.append(what.exc_type))

    class Interrupted:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    with signals.raise_on_signal():
        thing = Interrupted()
        del thing
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, 20)
    assert lost == [KeyboardInterrupt]
    assert step_of(tmp_path / "checkpoint.safetensors") == 1
    train(tmp_path, 20, resume=True)  # it is not asked twice
    assert step_of(tmp_path / "checkpoint.safetensors") == 20


def test_a_stop_during_the_last_evaluation_is_a_stop(tmp_path):
    def evaluate():
        os.kill(os.getpid(), signal.SIGINT)
        return {"elbo": 0.0}

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 5, evaluate=evaluate)
    assert step_of(tmp_path / "checkpoint.safetensors") == 5


def test_a_stop_right_after_a_loss_that_is_not_finite_saves_nothing(tmp_path):
    """The loss is infinite at step 11 and nobody has looked when the stop comes at step 12."""

    def fault(step):
        if step == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0 if step == 10 else 1.0

    with pytest.raises(NonFiniteLossError):
        train(tmp_path / "run", 20, schedule=fault)
    assert step_of(tmp_path / "run/checkpoint.safetensors") == 10


def test_a_folder_is_trained_in_by_one_process(tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 0})
    other = "from pplmodels.training import Run; run = Run.open('run'); print(run.config['seed']); run.lock()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for error in ("InputError: run is in use: another process is training there.", ""):
        done = subprocess.run(
            [sys.executable, "-c", other], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.stdout == "0\n" and done.stderr.strip().endswith(error)
        assert (done.returncode == 0) == (error == "")
        run.close()


def test_folders_that_cannot_be_written_to_are_bad_input():
    with pytest.raises(InputError, match="cannot be written to"):
        Run.create("/proc/run", {"seed": 0})


def test_each_sitting_is_noted_with_what_it_ran_on(tmp_path):
    train(tmp_path, 5)
    with open(tmp_path / "environment.jsonl", "a") as file:
        file.write('{"step": 5, "comm')  # a kill
    train(tmp_path, 10, resume=True)
    sittings = [json.loads(line) for line in read_complete_lines(tmp_path / "environment.jsonl")]
    assert [sitting["step"] for sitting in sittings] == [0, 5]
    assert all({"command", "device", "versions", "commit"} <= set(sitting) for sitting in sittings)
    assert sittings[0]["versions"]["torch"] == torch.__version__
