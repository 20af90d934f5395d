"""Work that a model and its guide have in common, done once.

A guide may walk along the model's own computation: DRAW's looks at the canvas that the model has painted so far, the
ladder's merges what the model expects of a layer with what the image says. The model, replayed with the guide's
samples, then computes the very same again. Methods that are :func:`memoised` are computed once within
:func:`memoise`, which our SVI and our bounds open around each run of a pair; elsewhere, under stock Pyro for one, they
are ordinary methods, and the numbers are the same up to the order in which gradients are added up.
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
    """Until it ends, a :func:`memoised` method called again with the same tensors returns what it returned before."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def is_memoising() -> bool:
    """Whether this is within :func:`memoise`."""
    return _known.get() is not None


def memoised(method: Callable) -> Callable:
    """Let a method be computed once for the same arguments within :func:`memoise`.

    It must depend on its arguments and its module's parameters alone and draw no random numbers. Tensors are the same
    if they are one object that has not been written to.
    """

    @wraps(method)
    def once(self, *args):
        known = _known.get()
        if known is None:
            return method(self, *args)
        leaves, spec = tree_flatten(args)
        key = (id(self), method, torch.is_grad_enabled(), str(spec), *map(_identity, leaves))
        if key not in known:
            known[key] = method(self, *args), leaves  # the leaves are kept, so that no other tensor gets their ids
        return known[key][0]

    return once


def _identity(leaf) -> tuple:
    return (id(leaf), leaf._version) if isinstance(leaf, Tensor) else (type(leaf), leaf)
