"""Requests to stop: Ctrl-C and SIGTERM.

Python raises an exception wherever it is when one comes. Inside a callback, of a weak reference, say, or in a finaliser
that exception is lost; so requests are noted as well, and a training looks.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pplmodels.errors import Terminated

_requests: list[KeyboardInterrupt] = []  # that have come


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Within, a request is raised at once, as :class:`pplmodels.errors.Terminated` for SIGTERM."""

    def handle(number, frame) -> None:
        _note(number)
        raise _requests[-1]

    try:
        with _handled(handle):
            yield
    finally:
        _requests.clear()  # which hold the frames that they were raised in


@contextmanager
def defer_signals() -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """Within, a first request is only noted, a second one acts as before; gives a function that says what is noted.

    One that :func:`raise_on_signal` has raised, and that was lost, is among them.
    """

    previous = {}

    def handle(number, frame) -> None:
        _note(number)
        for name, handler in previous.items():
            signal.signal(name, handler)

    try:
        with _handled(handle) as handlers:
            previous.update(handlers)
            yield lambda: _requests[0] if _requests else None
    finally:
        _requests.clear()


def _note(number: int) -> None:
    _requests.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())


@contextmanager
def _handled(handle: Callable) -> Iterator[dict]:
    """Within, ``handle`` is called for both signals; gives the handlers that there were."""
    previous = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere signals are somebody else's business
        previous = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield previous
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
