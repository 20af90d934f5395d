"""The check that a single path of a guide represents all outcomes of its stopping chain."""

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.elbos.estimators import support
from pplmodels.infer.elbos.stopping_chain import StoppingChain
from pplmodels.sites import Site, random_sites


def check_path(path: Trace, chain: StoppingChain, guide, args: tuple, kwargs: dict) -> None:
    """Compare the path with a run of the guide for each count, with other values of all choices.

    Raises ValueError if they differ.
    """
    others = {site["name"]: _other(site) for _, site in chain.choices}
    stops = {site["name"]: code for site, code in zip(chain.sites, chain.codes, strict=True)}
    for n, log_prob in enumerate(chain.log_prob):
        codes = {name: code[n] for name, code in stops.items()}
        outcome = with_values(path, codes | others)
        outcome = poutine.trace(poutine.replay(guide, trace=outcome)).get_trace(*args, **kwargs)
        outcome.compute_log_prob()
        found_chain = torch.zeros_like(log_prob)
        for name, site in random_sites(path):
            found = outcome.nodes[name]["log_prob"]
            if name in stops:
                found_chain = found_chain + found
                continue
            path_log_prob, steps = site["log_prob"], chain.stops_before[name]
            if name in others:
                path_log_prob = scale_and_mask(site["fn"].log_prob(others[name]), site["scale"], site["mask"])
            if not torch.allclose(found, path_log_prob * (steps <= n), rtol=1e-4, atol=1e-3):
                cause = "a choice or on the stops" if others else "the stops"
                raise ValueError(
                    f"site {name} of the guide depends on {cause} in another way than by being masked after step "
                    f"{steps}, so a single path cannot represent all outcomes."
                )
        if not torch.allclose(found_chain, log_prob, rtol=1e-4, atol=1e-3):
            cause = ", or the stops depend on a choice" if others else ""
            raise ValueError(f"the later stops are not 0 with probability 1 after a stop{cause} (found for n = {n}).")


def with_values(trace: Trace, values: dict[str, Tensor]) -> Trace:
    """A copy of a trace with the values of some sites replaced."""
    copied = trace.copy()
    for name, value in values.items():
        copied.nodes[name] = {**copied.nodes[name], "value": value}
    return copied


def _other(site: Site) -> Tensor:
    """A value of a choice that differs from the one in the trace."""
    values = support(site["fn"])
    events = site["fn"].event_dim
    dims = site["value"].dim() - events
    differs = site["value"] != values.view(len(values), *[1] * dims, *values.shape[1:])
    differs = differs.flatten(-events).any(-1) if events else differs
    return values[differs.int().argmax(0)]
