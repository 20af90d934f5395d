"""Memoization of computations that a model shares with its guide.

Some guides reuse part of the model's computation: DRAW's guide reads the model's current canvas, and the ladder VAE's
guide combines the model's prior of each layer with features of the image. The model, replayed with the guide's
samples, repeats that computation. Methods decorated with :func:`memoised` are computed only once within
:func:`memoise`, which this library's SVI and bounds enter for each run of a pair. Elsewhere, e.g. under stock Pyro,
they are ordinary methods, and results are equal up to the order in which gradients are summed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

_known: ContextVar[dict | None] = ContextVar("known", default=None)


@contextmanager
def memoise() -> Iterator[None]:
    """Inside this context, calling a :func:`memoised` method again with the same tensors returns its first result."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def is_memoising() -> bool:
    """Whether :func:`memoise` is active."""
    return _known.get() is not None


def memoised(method: Callable) -> Callable:
    """Decorate a method so that it is computed only once per set of arguments within :func:`memoise`.

    The method must only depend on its arguments and its module's parameters, and must not draw random numbers. Two
    tensors count as the same if they are the same object and it has not been modified in between.
    """

    @wraps(method)
    def once(self, *args):
        known = _known.get()
        if known is None:
            return method(self, *args)
        leaves, spec = tree_flatten(args)
        key = (id(self), method, torch.is_grad_enabled(), str(spec), *map(_identity, leaves))
        if key not in known:
            known[key] = method(self, *args), leaves  # keeping the leaves prevents reuse of their ids
        return known[key][0]

    return once


def _identity(leaf) -> tuple:
    return (id(leaf), leaf._version) if isinstance(leaf, Tensor) else (type(leaf), leaf)
