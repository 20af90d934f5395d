"""Traces of a pair, and their sites."""

import re
from collections.abc import Iterator, Mapping

from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor


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
