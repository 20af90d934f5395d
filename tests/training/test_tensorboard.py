"""Scalars for TensorBoard, where it works and where it does not."""

import errno
import sys

import pytest
from test_loop import train

from pplmodels.errors import StorageError
from pplmodels.training import Run
from pplmodels.training.tensorboard import TensorBoardWriter, _records

PROTO = "tensorboard/compat/proto/event_pb2.py"
WRITER = "tensorboard/summary/writer/record_writer.py"
BROKEN = {
    "incompatible": {"tensorboard/__init__.py": "raise TypeError('Descriptors cannot be\\ncreated directly.')"},
    "missing": {"tensorboard/__init__.py": ""},
    "another writer": {
        "tensorboard/__init__.py": "",
        PROTO: "from unittest.mock import Mock as Event, Mock as SessionLog",
        WRITER: "RecordWriter = 3",
    },
}


def forget():
    """Take what is imported of TensorBoard out, as if it had not been tried."""
    _records.cache_clear()
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "tensorboard"}


@pytest.fixture
def _untried():
    imported = forget()
    yield
    forget()
    sys.modules.update(imported)


@pytest.mark.usefixtures("_untried")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", BROKEN)
def test_a_run_goes_on_without_tensorboard_and_says_so_once(tmp_path, monkeypatch, capsys, name):
    for path, content in BROKEN[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for run in ("one", "two"):
        assert [line["step"] for line in train(tmp_path / run, 10)[3]] == [5, 10]
        assert not (tmp_path / run / "tensorboard").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "no event files are written" in line]) == 1
    assert "Traceback" not in "".join(lines)


@pytest.mark.filterwarnings("default")
def test_what_is_written_is_what_tensorboard_reads(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 3):
        events = TensorBoardWriter(tmp_path / "events", step)
        events.add(step, {"elbo": step / 2})
        events.add(step + 1, {"elbo": step / 4})
    reader = EventAccumulator(str(tmp_path / "events"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("elbo")] == [(1, 0.5), (2, 0.25), (3, 1.5), (4, 0.75)]


@pytest.mark.filterwarnings("default")
def test_a_disk_that_is_full_stops_the_run(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", {"seed": 0})
    run.log(1, 0.0, {"elbo": 1.0})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(StorageError, match="tfevents"):
        run._events.add(2, {"elbo": 1.0})
