"""The ways in which a run ends early, each with one sentence for the person at the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1000  # characters of a sentence; what is longer quotes a file that says too much


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what and why.

    It is one line of at most :data:`LONGEST` printable characters, whatever it quotes from a stranger's file.
    """

    def __init__(self, sentence: str):
        text = sentence.encode(errors="backslashreplace").decode()  # a file's name may have bytes that are no UTF-8
        line = "".join(character if character.isprintable() else " " for character in text)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ...")


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN; the message names the sites whose log-probability did."""


class RankLostError(RuntimeError):
    """One of the processes that train together is no longer there."""


class StorageError(OSError):
    """A file could not be written, for want of room, say; the message names it and what the system said.

    Arguments as those of :class:`OSError`: number, what the system said, file.
    """

    def __str__(self) -> str:
        """The sentence."""
        return f"{self.filename} could not be written ({self.strerror})."


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what Ctrl-C does, with another exit code."""


@contextmanager
def as_input_error(sentence: str) -> Iterator[None]:
    """Any exception within becomes an :class:`InputError` that says ``sentence``.

    It is for parsers of strangers' files, most of them somebody else's: what they raise for a damaged or made-up file
    is any exception at all. An :class:`InputError` from within says more and stays.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(sentence) from error
