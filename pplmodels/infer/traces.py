"""Traces of a pair, their sites, and the parameters of its modules."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyro
from pyro import poutine
from pyro.nn.module import _Context
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn


def pair_traces(model, guide, x: Tensor) -> tuple[Trace, Trace]:
    """One run of the guide on ``x (B, ...)`` and of the model at its values: the traces of both, the guide first."""
    guide_trace = poutine.trace(guide).get_trace(x)
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)


def random_sites(trace: Trace) -> Iterator[tuple[str, dict]]:
    """The sites of a trace that are random variables, by name, plates left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def steps(latents: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The values of the sites ``name_1``, ``name_2``, ... in the order of their numbers."""
    pattern = re.compile(rf"{re.escape(name)}_(\d+)$")
    numbered = [(int(match[1]), site) for site in latents if (match := pattern.match(site))]
    return [latents[site] for _, site in sorted(numbered)]


@contextmanager
def local_params() -> Iterator[None]:
    """Inside, PyroModules use their own parameters and leave Pyro's global param store alone.

    This is Pyro's ``module_local_params`` setting, which by itself works only for modules that were constructed while
    it was on; the fallback for the others' missing state lasts as long as this context.
    """
    outermost = "param_state" not in vars(_Context)
    with pyro.settings.context(module_local_params=True):
        if outermost:
            _Context.param_state = {"params": {}, "constraints": {}}
        try:
            yield
        finally:
            if outermost:
                del _Context.param_state


class Stated(Messenger):
    """Lets ``pyro.module`` state a module's own parameters, and notes what ``pyro.param`` calls parameters."""

    def __init__(self):
        super().__init__()
        self.names: dict[int, str] = {}

    def _pyro_param(self, msg) -> None:
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter):  # not one of that name in the store
            msg["value"], msg["done"] = msg["args"][1], True

    def _pyro_post_param(self, msg) -> None:
        unconstrained = getattr(msg["value"], "unconstrained", lambda: msg["value"])()
        self.names[id(unconstrained)] = f'pyro.param("{msg["name"]}")'
