"""Files that are whole or absent: written under a temporary name, then renamed; and lines that are on disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pplmodels.errors import StorageError

TEMPORARY = ".writing-"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, of the same ending, force it to disk, and rename it.

    A reader, a run that is killed at any moment or a machine that loses its power, sees the old file or the new one,
    never a part. Raises :class:`StorageError`; the old file then stays and the temporary one goes.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with named(path):
            write(temporary)
            _to_disk(temporary)
            os.replace(temporary, path)
            _to_disk(path.parent)  # or a power cut may bring back the old name
    finally:
        with suppress(OSError):  # a folder that cannot be written has none
            temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Delete what processes that were killed left in ``folder``; nobody may be writing there."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append ``line`` and force it to disk. Raises :class:`StorageError`."""
    with named(path), open(path, "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that may not be there; a last line that a kill cut short is not one."""
    try:
        return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Raise a :class:`StorageError` that names ``path`` for every OSError inside."""
    try:
        yield
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(path)) from error


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
