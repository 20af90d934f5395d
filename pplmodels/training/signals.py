"""Handling of Ctrl-C and SIGTERM.

A signal handler raises its exception wherever the program is. In a finalizer or the callback of a weak reference, that
exception is lost. So signals are recorded too, and the training loop checks the record.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pplmodels.errors import Terminated

Handler = Callable[[int, FrameType | None], Any] | int | None  # as signal.signal takes and returns them

_requests: list[KeyboardInterrupt] = []  # one per signal received


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """In this context a signal raises at once: :class:`pplmodels.errors.Terminated` for SIGTERM."""

    def handle(number: int, frame: FrameType | None) -> None:
        _note(number)
        raise _requests[-1]

    try:
        with _handled(handle):
            yield
    finally:
        _requests.clear()  # they reference the frames in which they were raised


@contextmanager
def defer_signals() -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """In this context the first signal is only recorded; a second one acts as before the context.

    Yields a function that returns the first recorded exception, or None. A signal that :func:`raise_on_signal` raised
    and that was lost is recorded too.
    """

    previous: dict[signal.Signals, Handler] = {}

    def handle(number: int, frame: FrameType | None) -> None:
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
def _handled(handle: Handler) -> Iterator[dict[signal.Signals, Handler]]:
    """In this context ``handle`` is called for both signals. Yields the previous handlers."""
    previous: dict[signal.Signals, Handler] = {}
    if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
        previous = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield previous
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
