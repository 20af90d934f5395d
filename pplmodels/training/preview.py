"""What can be looked at of a run that still trains, or was stopped."""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pplmodels import distributed
from pplmodels.module import PairModule

SHARE = 0.05  # of the time may go into pictures


class Preview:
    """The weights and pictures of a run so far.

    Arguments:
        folder: the run's.
        saved: the halves whose weights and descriptions are written.
        draw: draws the run's pictures.
    """

    def __init__(self, folder: Path, saved: Sequence[PairModule], draw: Callable[[], object] | None):
        self._folder, self._saved, self._draw = folder, saved, draw
        self._next = 0.0  # when pictures may be drawn again

    def update(self, last: bool) -> None:
        """Write the weights, and the pictures if they are the first, the ``last``, or take little of the time."""
        if distributed.rank() > 0:
            return
        for half in self._saved:
            half.save_pretrained(self._folder)
        begun = time.perf_counter()
        if self._draw is not None and (last or begun >= self._next):
            with distributed.alone():
                self._draw()
            gc.collect()  # figures are cycles of objects, which Python would keep for thousands of steps
            drawn = time.perf_counter()
            self._next = drawn + (drawn - begun) / SHARE
