"""The ways in which a run ends early, each with one sentence for the person at the terminal."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what and why."""


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN; the message names the sites whose log-probability did."""


class LostRank(RuntimeError):
    """One of the processes that train together is no longer there."""


class StorageError(OSError):
    """A file could not be written, for want of room, say; the message names it and what the system said.

    Arguments as those of :class:`OSError`: number, what the system said, file.
    """

    def __str__(self) -> str:  # noqa: D105 - the sentence
        return f"{self.filename} could not be written ({self.strerror})."


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what Ctrl-C does, with another exit code."""
