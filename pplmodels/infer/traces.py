"""Traces of a pair, their steps, and local parameters."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TypeVar
from unittest.mock import patch

import pyro
from pyro import poutine
from pyro.nn.module import _Context
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pplmodels.infer.compile.state import unconstrained

ValueT = TypeVar("ValueT")


def pair_traces(model, guide, x: Tensor) -> tuple[Trace, Trace]:
    """The traces of the guide on ``x (B, ...)`` and of the model replayed with its values, in this order."""
    guide_trace = poutine.trace(guide).get_trace(x)
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)


def steps(latents: Mapping[str, ValueT], name: str) -> list[ValueT]:
    """The values of the sites ``name_1``, ``name_2``, ... in the order of their numbers."""
    pattern = re.compile(rf"{re.escape(name)}_(\d+)$")
    numbered = [(int(match[1]), site) for site in latents if (match := pattern.match(site))]
    return [latents[site] for _, site in sorted(numbered)]


@contextmanager
def local_params() -> Iterator[None]:
    """Inside this context, PyroModules use their own parameters instead of Pyro's global param store.

    This is Pyro's ``module_local_params`` setting, which by itself only works for modules that were constructed while
    it was enabled. For other modules, this context provides the missing state.
    """
    outermost = "param_state" not in vars(_Context)
    empty: dict[str, dict] = {"params": {}, "constraints": {}}
    missing = patch.object(_Context, "param_state", empty, create=True) if outermost else nullcontext()
    with pyro.settings.context(module_local_params=True), missing:
        yield


class Stated(Messenger):
    """Makes ``pyro.module`` use a module's own parameters, and records the names given by ``pyro.param``."""

    def __init__(self):
        super().__init__()
        self.names: dict[int, str] = {}

    def _pyro_param(self, msg) -> None:
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter):  # instead of the store's
            msg["value"], msg["done"] = msg["args"][1], True

    def _pyro_post_param(self, msg) -> None:
        self.names[id(unconstrained(msg["value"]))] = f'pyro.param("{msg["name"]}")'
