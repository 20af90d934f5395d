"""Scalars for TensorBoard."""

import time
from pathlib import Path

from pplmodels.files import named


class Events:
    """One TensorBoard file, of one sitting, written at once.

    TensorBoard's own writer has a thread, which prints a traceback where a disk is full. Files are numbered:
    TensorBoard reads them in the order of their names, and a clock may go back.

    Arguments:
        folder: holds the files of all sittings; made if missing.
        step: the first that will come; from it on TensorBoard forgets what earlier files say.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import, and not always needed
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._writer = Event, RecordWriter
        with named(folder):
            folder.mkdir(exist_ok=True)
            self._path = folder / f"events.out.tfevents.{len(list(folder.iterdir())):06}"
        self._write(file_version="brain.Event:2")
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Append the values of ``scalars`` at ``step``. Raises :class:`StorageError`."""
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._write(step=step, summary={"value": values})

    def _write(self, **fields) -> None:
        with named(self._path), open(self._path, "ab") as file:
            self._writer(file).write(self._event(wall_time=time.time(), **fields).SerializeToString())
