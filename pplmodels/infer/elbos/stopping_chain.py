"""Chains of stops: Bernoulli sites of which a 0 ends everything that the later ones would begin.

A guide's site joins the chain by ``infer={"stop": True}``. 1 goes on, 0 stops, and after a 0 whatever the later steps
draw is masked. T stops have T + 1 outcomes, not 2^T: the unary codes of n = 0..T. What is drawn up to a stop does not
depend on what is decided there, so one run that never stops, the *path*, passes through all that any outcome needs.

A categorical site after a stop, masked like everything there, may be a *choice*, ``infer={"choice": True}``, provided
that nothing else in the guide depends on it: then the path stands for each of its K values as well, and the chain has
an outcome for each n and each combination of the choices made up to then. Where these are too many, choices can be
left as they have been drawn on the path.
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


def is_stop(site: dict) -> bool:
    """Whether a site of a trace, or a message about one, belongs to the chain."""
    return site["type"] == "sample" and bool(site["infer"].get("stop"))


def is_choice(site: dict) -> bool:
    """Whether a site of a trace is a choice."""
    return site["type"] == "sample" and bool(site["infer"].get("choice"))


class AlwaysContinue(Messenger):
    """Gives every stop that has no value yet the value 1: the guide runs along its path."""

    def _pyro_sample(self, msg) -> None:
        if is_stop(msg) and not msg["done"]:
            msg["value"] = torch.ones_like(msg["fn"].mean)
            msg["done"] = True


class Outcomes(NamedTuple):
    """All that the stops and choices of a path can come to, N of them.

    ``values`` of each such site ``(N, *batch)``, ``probs (N, *batch)`` given the path, and ``log_prob (N, *batch)``,
    scaled and masked as the sites are.
    """

    values: dict[str, Tensor]
    probs: Tensor
    log_prob: Tensor


class StoppingChain:
    """The outcomes of the chain in a trace of the guide's path.

    ==============  ===================  ===========================================================
    attribute       shape                meaning
    ==============  ===================  ===========================================================
    sites           T                    the stops, in order
    choices         ...                  (number of the stop before it, site) of each choice, in order
    codes           T of (T+1, *batch)   the value of each stop under n = 0..T: 1 where n >= t
    go_on           (T, *batch)          probability of going on at each stop that is reached
    probs           (T+1, *batch)        q(n | path)
    log_prob        (T+1, *batch)        log q(n | path), scaled and masked as the sites are
    ==============  ===================  ===========================================================

    The chain's sites share a batch shape, usually one plate over the images. Without ``choices`` there are none, and
    such sites are like any other that is drawn on the path.
    """

    def __init__(self, path: Trace, choices: bool = True):
        self.sites, self.choices = [], []
        for site in path.nodes.values():
            if is_stop(site):
                self.sites.append(site)
            elif choices and is_choice(site):
                self.choices.append((len(self.sites), site))
        if not self.sites:
            raise ValueError('the guide marks no site as a stop: give the Bernoulli sites infer={"stop": True}')
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
        """P(n >= t | path), ``(*batch)``: the weight of what is drawn after the t-th stop."""
        return self.probs[t:].sum(0)

    def outcomes(self) -> Outcomes:
        """Each n with each combination of the choices up to the n-th stop; those after it are 0."""
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
        """n and the value of each choice, for each outcome."""
        for n in range(len(self.sites) + 1):
            sizes = [site["fn"].enumerate_support(expand=False).shape[0] if n >= t else 1 for t, site in self.choices]
            yield from ((n, picked) for picked in itertools.product(*map(range, sizes)))


def _choice(site: dict) -> tuple[Tensor, Tensor]:
    """log-probabilities ``(K, *batch)`` of a choice's values where it is made, plain and as the trace scales them."""
    function = site["fn"]
    if isinstance(function, MaskedDistribution):  # whether the choice is made is the chain's business
        function = function.base_dist
    values = function.enumerate_support(expand=True)
    plain = function.log_prob(values)
    return plain, scale_and_mask(plain, site["scale"], site["mask"])


def _chain(go_on: list[Tensor], stop: list[Tensor]) -> Tensor:
    """log-probability of stopping after n = 0..T steps, from those of going on and of stopping at each."""
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
