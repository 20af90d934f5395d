"""Annealed quantities: a tensor that a program reads, and a function of the step that says its value."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Schedule = Callable[[int], float]


def linear(start: float, end: float, begin: int, finish: int) -> Schedule:
    """``start`` until step ``begin``, along a line to ``end`` at step ``finish``, then ``end``."""
    return lambda step: start + (end - start) * _progress(step, begin, finish)


def cosine(start: float, end: float, begin: int, finish: int) -> Schedule:
    """``start`` until step ``begin``, half a cosine wave to ``end`` at step ``finish``, then ``end``."""
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * _progress(step, begin, finish))) / 2


def cyclical(start: float, end: float, period: int, ramp: float = 0.5) -> Schedule:
    """From ``start`` along a line to ``end`` in the first ``ramp`` of each period, then ``end`` until the next begins.

    Cyclical annealing (Fu et al. 2019, arXiv 1903.10145).
    """
    return lambda step: start + (end - start) * min(1.0, (step % period) / (ramp * period))


def delayed(schedule: Schedule, begin: int) -> Schedule:
    """0 until step ``begin``, then ``schedule``."""
    return lambda step: schedule(step) if step >= begin else 0.0


def _progress(step: int, begin: int, finish: int) -> float:
    if step >= finish:
        return 1.0
    return 0.0 if step <= begin else (step - begin) / (finish - begin)


@dataclass(frozen=True)
class Annealed:
    """A tensor (a buffer of a model, a learning rate) that follows a schedule.

    It is written in place, so whoever holds the tensor, a traced program too, sees the new value.
    """

    tensor: Tensor
    schedule: Schedule

    def set(self, step: int) -> None:
        """Give the tensor its value for ``step``, counted from 0."""
        self.tensor.fill_(self.schedule(step))
