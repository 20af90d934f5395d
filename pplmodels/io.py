"""Atomic file writes, durable appends and validated JSON."""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pplmodels import distributed
from pplmodels.errors import InputError, StorageError, as_input_error

TEMPORARY = ".writing-"
STAMP = "%Y%m%d-%H%M%S"  # start time of a run, the default name of its folder
RUN, PAIR = "config.json", "model.json"  # files that identify the folder of a run and of a saved pair


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: ``write`` fills a temporary file next to ``path``, which is synced and then renamed.

    Even if the process is killed or the machine loses power, ``path`` holds the complete old or the complete new file.
    A link at ``path`` is replaced and its target is not modified. Raises :class:`StorageError`; in this case the old
    file is kept and the temporary file is deleted. The temporary file has the same suffix as ``path``.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with named(path):
            temporary.unlink(missing_ok=True)  # do not write through a link
            write(temporary)
            _to_disk(temporary)
            os.replace(temporary, path)
            _to_disk(path.parent)  # makes the rename durable
    finally:
        with suppress(OSError):  # an unwritable folder has no temporary file
            temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Delete temporary files of killed processes in ``folder``. No other process may be writing there."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append ``line`` and sync the file to disk. Raises :class:`StorageError`."""
    with named(path), open(path, "a", encoding="utf-8", opener=_not_a_link) as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # not available on Windows


def read_complete_lines(path: Path) -> list[str]:
    """The lines of a file, or an empty list if it does not exist. An incomplete last line is omitted."""
    if not path.exists():
        return []
    if not path.is_file():  # reading a named pipe would block
        raise InputError(f"{path} is not a file.")
    return [line + "\n" for line in path.read_bytes().decode().split("\n")[:-1]]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Convert every OSError inside this context to a :class:`StorageError` that names ``path``."""
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


@contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """``path``, or a link to it if its name is not valid UTF-8: torch and safetensors cannot open such files."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def newest_run(folder: str | Path, holding: str = RUN) -> Path:
    """``folder`` if it is a run or a pair; otherwise the newest folder in it that has a file ``holding``.

    Folders are compared by the start times in the default names of runs, and those with other names by the time when
    ``holding`` was written. The choice is printed to stderr. Links are ignored. If there is no such folder, ``folder``
    is returned, and reading it raises an error about what is missing.
    """
    folder = Path(folder)
    if (folder / RUN).exists() or (folder / PAIR).exists() or not folder.is_dir():
        return folder
    try:
        inside = [path for path in folder.iterdir() if not path.is_symlink() and (path / holding).is_file()]
        newest = max(inside, key=lambda path: _begun(path, path / holding), default=folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}).") from error
    if newest == folder:
        return folder
    if distributed.rank() == 0:
        print(f"using the newest run in {folder}: {newest}", file=sys.stderr)
    return newest


def _begun(run: Path, file: Path) -> tuple[float, int]:
    """The start time of a run in seconds since 1970, and a number that orders runs started in the same second."""
    stamp, _, number = run.name.partition("_")
    try:
        return time.mktime(time.strptime(stamp, STAMP)), int(number or 1)
    except (ValueError, OverflowError):
        return file.stat().st_mtime, 0


def read_json(path: Path, otherwise: str):
    """The content of an untrusted JSON file in UTF-8.

    Memory use is proportional to the size of the file. Numbers must be finite, and nesting is limited by Python's
    recursion limit. Raises :class:`InputError` with the sentence ``otherwise`` for an invalid file, and
    :class:`OSError` if the file does not exist.
    """
    if path.exists() and not path.is_file():  # reading a named pipe would block
        raise InputError(f"{path} is not a file.")
    content = path.read_bytes()
    with as_input_error(otherwise):
        return json.loads(content.decode(), parse_float=_finite, parse_constant=_finite)


def write_json(path: Path, content) -> None:
    """Write ``content`` atomically as JSON. Raises :class:`StorageError`."""
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8"))


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value
