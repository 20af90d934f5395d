"""Looking at a pair without changing it."""

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
    """Inside, programs use their own parameters; at the end everything they can reach is what it was, in place.

    See :func:`put_back`. Within a training step that calls it, what the step writes stays.
    """
    with local_params(), Stated():
        if is_memoising():
            yield
            return
        with put_back(*programs) as state, default_device(_device(state)):
            yield


@contextmanager
def put_back(*programs) -> Iterator[State]:
    """Gives all that programs can reach; at the end, also after an error, it is what it was, in place.

    That are the values of tensors (batch statistics, a codebook's running means), what attributes, variables, lists
    and dicts hold (:class:`pplmodels.infer.compile.state.State`), and what is in Pyro's parameter store. Random
    generators go on, and what hooks write stays. A first run that makes parameters (lazy layers, an AutoGuide) sets a
    program up: what it has made stays.
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
    """Where the programs' parameters are, or the first tensor of programs that have none."""
    of_parameters = [tensor.device for tensor in state.tensors if isinstance(tensor, nn.Parameter)]
    return next(iter([*of_parameters, *(tensor.device for tensor in state.tensors)]), None)


def _learned(state: State) -> int:
    """The number of parameters in a state."""
    return sum(isinstance(tensor, nn.Parameter) for tensor in state.tensors)


def looking(function: Callable) -> Callable:
    """Let a function look at pairs: without gradients, and those among its arguments stay :func:`unchanged`."""

    @wraps(function)
    def look(*args, **kwargs):
        with torch.no_grad(), unchanged(*filter(callable, (*args, *kwargs.values()))), Fitting():
            return function(*args, **kwargs)

    return look
