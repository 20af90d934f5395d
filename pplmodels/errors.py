"""Exceptions that the command line reports as a single sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1000  # maximum length of a message, which may quote an untrusted file


class InputError(ValueError):
    """An input from the user cannot be used. The message is one sentence that says what is wrong and why.

    It is one line of at most :data:`LONGEST` printable characters, even if it quotes an untrusted file.
    """

    def __init__(self, sentence: str):
        text = sentence.encode(errors="backslashreplace").decode()  # a file name may not be valid UTF-8
        line = "".join(character if character.isprintable() else " " for character in text)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ...")


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN. The message names the sites whose log-probability is not finite."""


class RankLostError(RuntimeError):
    """Another rank of a distributed training has ended or does not respond."""


class StorageError(OSError):
    """A file could not be written, e.g. because the disk is full. The message names the file and the reason.

    The arguments are those of :class:`OSError`: error number, error message and file name.
    """

    def __str__(self) -> str:
        """The message, one sentence."""
        return f"{self.filename} could not be written ({self.strerror})."


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM. Handled like Ctrl-C, except for the exit code."""


@contextmanager
def as_input_error(sentence: str) -> Iterator[None]:
    """Convert any exception inside this context to an :class:`InputError` with the message ``sentence``.

    This is meant for parsers of untrusted files, mostly from other libraries, which may raise any exception for a
    damaged or crafted file. An :class:`InputError` is not converted, because its message is more specific.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(sentence) from error
