"""Files that are whole or absent, lines that are on disk, and JSON that a stranger may have written."""

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
STAMP = "%Y%m%d-%H%M%S"  # when a run began, which is its folder's name unless --out gives another
RUN, PAIR = "config.json", "model.json"  # what tells the folder of a run, and that of a saved pair


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, of the same ending, force it to disk, and rename it.

    A reader, a run that is killed at any moment or a machine that loses its power, sees the old file or the new one,
    never a part. A link at ``path`` is replaced; what it points to is left alone. Raises :class:`StorageError`; the old
    file then stays and the temporary one goes.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with named(path):
            temporary.unlink(missing_ok=True)  # a link there would be written through
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
    with named(path), open(path, "a", encoding="utf-8", opener=_not_a_link) as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # which Windows does not have


def read_complete_lines(path: Path) -> list[str]:
    """The lines of a file that may not be there; a last line that a kill cut short is not one."""
    if not path.exists():
        return []
    if not path.is_file():  # a named pipe would be waited for
        raise InputError(f"{path} is not a file.")
    return [line + "\n" for line in path.read_bytes().decode().split("\n")[:-1]]


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


@contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """``path``, or where its name has other bytes than UTF-8's a link to it: torch and safetensors cannot map such."""
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
    """``folder`` if it is a run or a pair; else the newest folder in it that has a file ``holding``, which is told.

    Newest is the latest to begin, as the default names of runs say it; of another name, when ``holding`` was written.
    Where there is no such folder, ``folder`` comes back, and who reads it says what is missing. Links are passed over.
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
        print(f"taking the newest run in {folder}: {newest}", file=sys.stderr)
    return newest


def _begun(run: Path, file: Path) -> tuple[float, int]:
    """Seconds since 1970, and a number that tells apart what began in the same second."""
    stamp, _, number = run.name.partition("_")
    try:
        return time.mktime(time.strptime(stamp, STAMP)), int(number or 1)
    except (ValueError, OverflowError):
        return file.stat().st_mtime, 0


def read_json(path: Path, otherwise: str):
    """The content of a JSON file (UTF-8) that a stranger may have written; what is no JSON is refused as ``otherwise``.

    It takes memory in proportion to the file's bytes. A number must be finite, nesting as shallow as Python's recursion
    limit. Raises :class:`InputError`, for a file that is not there :class:`OSError`.
    """
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise InputError(f"{path} is not a file.")
    content = path.read_bytes()
    with as_input_error(otherwise):
        return json.loads(content.decode(), parse_float=_finite, parse_constant=_finite)


def write_json(path: Path, content) -> None:
    """Write ``content`` as JSON, whole or not at all. Raises :class:`StorageError`."""
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8"))


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value
