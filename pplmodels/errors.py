"""The ways in which a run ends early, each with one sentence for the person at the terminal."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what and why."""


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN; the message names the sites whose log-probability did."""


class LostRank(RuntimeError):
    """One of the processes that train together is no longer there."""
