"""Whose the parameters are."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from pyro.nn.module import _Context
from pyro.poutine.messenger import Messenger
from torch import nn


@contextmanager
def module_owned_parameters() -> Iterator[None]:
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
