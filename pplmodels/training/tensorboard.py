"""Scalars for TensorBoard."""

import io
import sys
import time
from functools import cache
from pathlib import Path

from pplmodels.io import named


class TensorBoardWriter:
    """Writes scalars of one start of a run to one TensorBoard file, without buffering.

    TensorBoard's own writer uses a thread that prints a traceback if the disk is full. Files are numbered, because
    TensorBoard reads them in the order of their names, and a clock can be set back. If TensorBoard is missing or
    incompatible, nothing is written, and a line is printed once.

    Arguments:
        folder: the folder for the files of all starts; created if missing.
        step: the first step of this start. TensorBoard discards the values of earlier files from this step on.
    """

    def __init__(self, folder: Path, step: int):
        self._records = _records()
        if self._records is None:
            return
        with named(folder):
            folder.mkdir(exist_ok=True)
            self._path = folder / f"events.out.tfevents.{len(list(folder.iterdir())):06}"
        self._write(self._records.version())
        self._write(self._records.start(step))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Append the values of ``scalars`` at ``step``. Raises :class:`StorageError`."""
        if self._records is not None:
            self._write(self._records.scalars(step, scalars))

    def _write(self, record: bytes) -> None:
        with named(self._path), open(self._path, "ab") as file:
            file.write(record)


class _Records:
    """Encodes events with the installed TensorBoard."""

    def __init__(self):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import and not always needed
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._log, self._writer = Event, SessionLog, RecordWriter

    def version(self) -> bytes:
        return self._record(file_version="brain.Event:2")

    def start(self, step: int) -> bytes:
        return self._record(step=step, session_log=self._log(status=self._log.START))

    def scalars(self, step: int, scalars: dict[str, float]) -> bytes:
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        return self._record(step=step, summary={"value": values})

    def _record(self, **fields) -> bytes:
        buffer = io.BytesIO()
        self._writer(buffer).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        return buffer.getvalue()


@cache
def _records() -> _Records | None:
    """The encoder of events, tested once; None, with a line on stderr, if it does not work."""
    try:
        records = _Records()
        records.version(), records.start(0), records.scalars(0, {"tried": 0.0})
    except Exception as error:  # incompatible versions of TensorBoard and protobuf fail in many ways
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        print(f"TensorBoard is not available, so no event files are written ({why})", file=sys.stderr)
        return None
    return records
