"""Running a pair without changing its state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn

from pplmodels.defaults import default_device
from pplmodels.infer.compile.state import State, Values
from pplmodels.infer.observed import Fitting
from pplmodels.infer.traces import Stated, local_params
from pplmodels.memo import is_memoising


@contextmanager
def unchanged(*programs) -> Iterator[None]:
    """Inside this context, programs use their own parameters. On exit, their state is restored in place.

    See :func:`put_back`. If a training step enters this context, the changes made by the step are kept.
    """
    with local_params(), Stated():
        if is_memoising():
            yield
            return
        with put_back(*programs) as state, default_device(_device(state)):
            yield


@contextmanager
def put_back(*programs) -> Iterator[State]:
    """Yields the state of everything that can be reached from programs, and restores it in place on exit.

    The state includes the values of tensors (batch statistics, a codebook's running means), the contents of
    attributes, variables, lists and dicts (:class:`pplmodels.infer.compile.state.State`), and Pyro's parameter store.
    It is also restored after an error. Random generators and changes by hooks are not restored. Parameters that a
    first run creates (lazy layers, an AutoGuide) are kept.
    """
    roots = {str(number): program for number, program in enumerate(programs)}
    state = State(roots, hooks=False)
    before = Values(state.tensors)
    try:
        yield state
    finally:
        if not state.unchanged() and _learned(State(roots, hooks=False)) <= _learned(state):
            state.restore_bindings()
        before.restore()


def _device(state: State) -> torch.device | None:
    """The device of the programs' parameters, or of the first tensor if there are no parameters."""
    of_parameters = [tensor.device for tensor in state.tensors if isinstance(tensor, nn.Parameter)]
    return next(iter([*of_parameters, *(tensor.device for tensor in state.tensors)]), None)


def _learned(state: State) -> int:
    """The number of parameters in a state."""
    return sum(isinstance(tensor, nn.Parameter) for tensor in state.tensors)


def looking(function: Callable) -> Callable:
    """Decorate a function so that it runs without gradients and leaves the pairs in its arguments :func:`unchanged`."""

    @wraps(function)
    def look(*args, **kwargs):
        with torch.no_grad(), unchanged(*filter(callable, (*args, *kwargs.values()))), Fitting():
            return function(*args, **kwargs)

    return look
