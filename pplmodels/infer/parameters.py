"""Whose the parameters are."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from pyro.nn.module import _Context


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
