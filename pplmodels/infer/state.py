"""What a program reads and changes besides its arguments: modules, their parameters and buffers, random generators."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from pplmodels.generators import generator_states, restore_generators


class Snapshot:
    """The values of some tensors and the random generators, to go back to."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.generators = generator_states()

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for tensor, value in self.tensors:
            tensor.copy_(value)
        restore_generators(self.generators)


def modules_of(things) -> list[nn.Module]:
    """All modules that some callables are, contain, wrap, are bound to, close over or name, each once."""
    found: dict[int, nn.Module] = {}
    waiting, seen = list(things), set()
    while waiting:
        thing = waiting.pop(0)
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found |= {id(module): module for module in thing.modules()}
        elif isinstance(thing, partial):
            waiting += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, MethodType):
            waiting += [thing.__self__, thing.__func__]
        elif isinstance(thing, FunctionType):
            waiting += [thing.__dict__.get("__wrapped__")]
            waiting += _contents(thing.__closure__ or ())
            waiting += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            waiting += [thing.__globals__.get(name) for name in thing.__code__.co_names]
    return list(found.values())


def state_of(modules: list[nn.Module], tensors=()) -> list[Tensor]:
    """Every parameter and buffer of the very modules (:func:`modules_of`), and further tensors, each once."""
    found = {id(t): t for module in modules for t in (*module._parameters.values(), *module._buffers.values())}
    found |= {id(t): t for t in tensors}
    return [tensor for tensor in found.values() if tensor is not None]


def _contents(closure: tuple) -> Iterator:
    for cell in closure:
        with suppress(ValueError):  # of an empty cell, whose variable has no value yet
            yield cell.cell_contents
