"""Weights and plots of a run that is still training or was stopped."""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pplmodels import distributed
from pplmodels.module import PairModule

SHARE = 0.05  # largest share of the time that is spent on plots


class Preview:
    """Writes the current weights and plots of a run.

    Arguments:
        folder: the run's folder.
        saved: the modules whose weights and descriptions are written.
        draw: writes the plots.
    """

    def __init__(self, folder: Path, saved: Sequence[PairModule], draw: Callable[[], object] | None):
        self._folder, self._saved, self._draw = folder, saved, draw
        self._next = 0.0  # the earliest time of the next plots

    def update(self, last: bool) -> None:
        """Write the weights, and the plots if they are the first, the ``last``, or within their share of the time."""
        if distributed.rank() > 0:
            return
        for module in self._saved:
            module.save_pretrained(self._folder)
        begun = time.perf_counter()
        if self._draw is not None and (last or begun >= self._next):
            with distributed.alone():
                self._draw()
            gc.collect()  # figures are reference cycles, which Python would free thousands of steps later
            drawn = time.perf_counter()
            self._next = drawn + (drawn - begun) / SHARE
