"""Annealing: schedules, which are functions of the step, and tensors that follow them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A function of the step. ``finish`` is the step from which it is constant, or None if it never is."""

    value: Callable[[int], float]
    finish: int | None

    def __call__(self, step: int) -> float:
        """The value at ``step``."""
        return self.value(step)


def linear(start: float, end: float, begin: int, finish: int) -> Schedule:
    """``start`` until step ``begin``, then linear to ``end`` at step ``finish``, then ``end``."""
    return Schedule(lambda step: start + (end - start) * _progress(step, begin, finish), finish)


def cosine(start: float, end: float, begin: int, finish: int) -> Schedule:
    """``start`` until step ``begin``, then half a cosine wave to ``end`` at step ``finish``, then ``end``."""

    def value(step: int) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * _progress(step, begin, finish))) / 2

    return Schedule(value, finish)


def cyclical(start: float, end: float, period: int, ramp: float = 0.5) -> Schedule:
    """Cyclical annealing (Fu et al. 2019, arXiv 1903.10145).

    Linear from ``start`` to ``end`` during the first fraction ``ramp`` of each period, then ``end`` until the next
    period.
    """
    return Schedule(lambda step: start + (end - start) * min(1.0, (step % period) / (ramp * period)), None)


def delayed(schedule: Schedule, begin: int) -> Schedule:
    """0 until step ``begin``, then ``schedule``."""
    return Schedule(lambda step: schedule(step) if step >= begin else 0.0, schedule.finish)


def _progress(step: int, begin: int, finish: int) -> float:
    if step >= finish:
        return 1.0
    return 0.0 if step <= begin else (step - begin) / (finish - begin)


def schedules_end(annealed: Iterable["Annealed"]) -> int:
    """The step from which all finite schedules are constant."""
    schedules = (quantity.schedule for quantity in annealed)
    return max((schedule.finish or 0 for schedule in schedules if isinstance(schedule, Schedule)), default=0)


@dataclass(frozen=True)
class Annealed:
    """A tensor, such as a buffer of a model or a learning rate, that follows a schedule.

    The tensor is modified in place, so all its users, including traced programs, see the new value.
    """

    tensor: Tensor
    schedule: Callable[[int], float]

    def set(self, step: int) -> None:
        """Set the tensor to its value at ``step``, counted from 0."""
        self.tensor.fill_(self.schedule(step))
