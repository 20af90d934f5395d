"""The random variables in a trace."""

import re
from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict, TypeGuard

from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class Site(TypedDict):
    """A random variable in a trace.

    Pyro's type :class:`pyro.poutine.runtime.Message` also describes parameters, plates and messages in transit.
    Therefore its values are optional and its distribution is any function.
    """

    name: str
    fn: TorchDistributionMixin
    value: Tensor
    is_observed: bool
    infer: dict[str, Any]  # the argument of pyro.sample; Pyro and this library read different keys
    scale: Tensor | float
    mask: Tensor | bool | None
    cond_indep_stack: tuple[CondIndepStackFrame, ...]
    log_prob: NotRequired[Tensor]  # computed by Trace.compute_log_prob
    log_prob_sum: NotRequired[Tensor]
    unscaled_log_prob: NotRequired[Tensor]  # also unmasked, except by the distribution itself
    score_parts: NotRequired[ScoreParts]  # computed by Trace.compute_score_parts


def random_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """The names and sites of a trace's random variables, without plates."""
    for name, site in trace.nodes.items():
        if _is_random(site):
            yield name, site


def base_site_name(site: str) -> str:
    """The name of a site without its step number.

    >>> base_site_name("z_where_2")
    'z_where'
    """
    return re.sub(r"_\d+$", "", site)


def _is_random(site: Message) -> TypeGuard[Site]:
    # Pyro records a sample statement after it has been handled, so it has a name, a value and a distribution.
    return site["type"] == "sample" and not site_is_subsample(site)
