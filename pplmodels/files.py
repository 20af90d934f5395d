"""Files that are whole or absent, written under a temporary name and then renamed; and JSON of strangers."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from pplmodels.errors import InputError, refused_as


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, force it to disk, and rename it to ``path``.

    A reader, or a run that is killed at any moment, sees the old file or the new one, never a part. A link at ``path``
    is replaced; what it points to is left alone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link there would be written through
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, otherwise: str):
    """The content of a JSON file (UTF-8) that a stranger may have written; what is no JSON is refused as ``otherwise``.

    It takes memory in proportion to the file's bytes. A number must be finite, nesting as shallow as Python's recursion
    limit. Raises :class:`InputError`, for a file that is not there :class:`OSError`.
    """
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise InputError(f"{path} is not a file.")
    content = path.read_bytes()
    with refused_as(otherwise):
        return json.loads(content.decode(), parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value
