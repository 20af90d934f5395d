"""Stopping chains: sequences of Bernoulli sites z_1, ..., z_T in which 0 is absorbing.

A site of the guide is part of the chain if it has ``infer={"stop": True}``. The value 1 continues and 0 stops. After a
0, all later sites are masked. So T stops have T + 1 outcomes instead of 2^T: the unary codes of n = 0..T. Sites
sampled before a stop do not depend on its value. Therefore a single run with all z_t = 1, the *path*, contains the
samples of all outcomes.

A masked categorical site after a stop can be marked as a *choice* by ``infer={"choice": True}``, if no other site of
the guide depends on it. Then the path also represents each of its K values, and the chain has one outcome for each n
and each combination of the choices made up to n. If there are too many combinations, choices can keep the values
sampled on the path.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplmodels.sites import Site, random_sites


def is_stop(site: Site) -> bool:
    """Whether a site of a trace, or its message, belongs to the chain."""
    return bool(site["infer"].get("stop"))


def is_choice(site: Site) -> bool:
    """Whether a site of a trace is a choice."""
    return bool(site["infer"].get("choice"))


class AlwaysContinue(Messenger):
    """Sets every stop without a value to 1, so that the guide runs along its path."""

    def _pyro_sample(self, msg) -> None:
        if is_stop(msg) and not msg["done"]:
            msg["value"] = torch.ones_like(msg["fn"].mean)
            msg["done"] = True


class Outcomes(NamedTuple):
    """All N outcomes of the stops and choices of a path.

    ``values`` holds the value of each of these sites ``(N, *batch)``, ``probs (N, *batch)`` the probabilities given the
    path, and ``log_prob (N, *batch)`` the log-probabilities, scaled and masked like the sites.
    """

    values: dict[str, Tensor]
    probs: Tensor
    log_prob: Tensor


class StoppingChain:
    """The stopping chain in a trace of the guide's path.

    ==============  ===================  ===========================================================
    attribute       shape                meaning
    ==============  ===================  ===========================================================
    sites           T                    the stops, in order
    choices         ...                  (number of the stop before it, site) of each choice, in order
    codes           T of (T+1, *batch)   the value of each stop under n = 0..T: 1 where n >= t
    go_on           (T, *batch)          probability of continuing at each stop, if it is reached
    probs           (T+1, *batch)        q(n | path)
    log_prob        (T+1, *batch)        log q(n | path), scaled and masked like the sites
    ==============  ===================  ===========================================================

    The chain's sites share a batch shape, usually of one plate over the images. If ``choices`` is false, sites marked
    as choices are treated like all other sites that are sampled on the path.
    """

    def __init__(self, path: Trace, choices: bool = True):
        self.sites: list[Site] = []
        self.choices: list[tuple[int, Site]] = []
        for _, site in random_sites(path):
            if is_stop(site):
                self.sites.append(site)
            elif choices and is_choice(site):
                self.choices.append((len(self.sites), site))
        if not self.sites:
            raise ValueError('no site of the guide is marked as a stop: give its Bernoulli sites infer={"stop": True}')
        ones = [site["value"] for site in self.sites]
        outcomes = torch.arange(len(ones) + 1, device=ones[0].device).view(-1, *[1] * ones[0].dim())
        self.codes = [(outcomes >= t).to(one.dtype) * one for t, one in enumerate(ones, start=1)]
        chain = list(zip(self.sites, ones, strict=True))
        go_on, stop = ([site["fn"].log_prob(one * value) for site, one in chain] for value in (1, 0))
        self.go_on = torch.stack(go_on).exp()
        self._plain = _chain(go_on, stop)
        self.probs = self._plain.exp()
        scaled = (
            [scale_and_mask(term, site["scale"], site["mask"]) for site, term in zip(self.sites, terms, strict=True)]
            for terms in (go_on, stop)
        )
        self.log_prob = _chain(*scaled)

    def reached(self, t: int) -> Tensor:
        """P(n >= t | path), ``(*batch)``: the weight of the sites after the t-th stop."""
        return self.probs[t:].sum(0)

    def outcomes(self) -> Outcomes:
        """The outcomes for each n and each combination of the choices up to the n-th stop. Later choices are 0."""
        tables = [_choice(site) for _, site in self.choices]
        rows = list(self._combinations())

        def log_probs(chain: Tensor, scaled: bool) -> Tensor:
            made = [
                [table[scaled][k] for (t, _), table, k in zip(self.choices, tables, picked, strict=True) if n >= t]
                for n, picked in rows
            ]
            return torch.stack([sum(terms, chain[n]) for (n, _), terms in zip(rows, made, strict=True)])

        values = {
            site["name"]: torch.stack([code[n] for n, _ in rows])
            for site, code in zip(self.sites, self.codes, strict=True)
        }
        for number, (_, site) in enumerate(self.choices):
            values[site["name"]] = torch.stack([torch.full_like(site["value"], picked[number]) for _, picked in rows])
        return Outcomes(values, log_probs(self._plain, False).exp(), log_probs(self.log_prob, True))

    def _combinations(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """For each outcome, n and the value of each choice."""
        for n in range(len(self.sites) + 1):
            sizes = [site["fn"].enumerate_support(expand=False).shape[0] if n >= t else 1 for t, site in self.choices]
            yield from ((n, picked) for picked in itertools.product(*map(range, sizes)))


def _choice(site: Site) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(K, *batch)`` of the values of a choice, plain and scaled as in the trace."""
    function = site["fn"]
    if isinstance(function, MaskedDistribution):  # the chain accounts for the mask
        function = function.base_dist
    values = function.enumerate_support(expand=True)
    plain = function.log_prob(values)
    return plain, scale_and_mask(plain, site["scale"], site["mask"])


def _chain(go_on: list[Tensor], stop: list[Tensor]) -> Tensor:
    """Log-probabilities of stopping after n = 0..T steps, from those of continuing and of stopping at each step."""
    reached = torch.zeros_like(go_on[0])
    outcomes = []
    for going, stopping in zip(go_on, stop, strict=True):
        outcomes.append(reached + stopping)
        reached = reached + going
    return torch.stack([*outcomes, reached])


def trace_path(guide, *args, **kwargs) -> Trace:
    """A trace of the guide along its path."""
    with AlwaysContinue():
        return poutine.trace(guide).get_trace(*args, **kwargs)
