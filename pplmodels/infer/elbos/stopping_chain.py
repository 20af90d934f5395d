"""Stopping chains: sequences of Bernoulli sites z_1, ..., z_T in which 0 is absorbing.

A site of the guide is part of the chain if it has ``infer={"stop": True}``. The value 1 continues and 0 stops. After a
0, all later sites are masked. So T stops have T + 1 outcomes instead of 2^T: the unary codes of n = 0..T. Sites
sampled before a stop do not depend on its value. Therefore a single run with all z_t = 1, the *path*, contains the
samples of all outcomes.

A discrete site can be marked as a *choice* by ``infer={"choice": True}``, if no other site of the guide depends on it,
and if it is masked after the stops before it. Then the path also represents each of its K values, and the chain has one
outcome for each n and each combination of the choices made up to n. If there are too many combinations, choices can
keep the values sampled on the path. A guide with choices and without stops is a chain with the single count 0.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplmodels.infer.elbos.estimators import support, unmasked
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
            continue_at(msg)


def continue_at(msg) -> None:
    """Set a stop's message to 1."""
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
    stops_before    ...                  the number of stops before each site of the path, by name
    codes           T of (T+1, *batch)   the value of each stop under n = 0..T: 1 where n >= t
    go_on           (T, *batch)          probability of continuing at each stop, if it is reached
    probs           (T+1, *batch)        q(n | path)
    log_prob        (T+1, *batch)        log q(n | path), scaled and masked like the sites
    ==============  ===================  ===========================================================

    The chain's sites share a batch shape, usually of one plate over the images. Sites for which ``is_summed`` is false
    are treated like all other sites that are sampled on the path. ``dims`` is the number of batch dimensions of the
    results (default: that of the sites).
    """

    def __init__(self, path: Trace, is_summed: Callable[[Site], bool] = lambda site: True, dims: int | None = None):
        self.sites: list[Site] = []
        self.choices: list[tuple[int, Site]] = []
        self.stops_before: dict[str, int] = {}
        for name, site in random_sites(path):
            self.stops_before[name] = len(self.sites)
            if is_stop(site) and is_summed(site):
                self.sites.append(site)
            elif is_choice(site) and is_summed(site):
                self.choices.append((len(self.sites), site))
        members = [*self.sites, *(site for _, site in self.choices)]
        if not members:
            raise ValueError('no site of the guide is marked as a stop: give its Bernoulli sites infer={"stop": True}')
        self.plates = frozenset(frame for frame in members[0]["cond_indep_stack"] if frame.vectorized)
        self.dims = len(members[0]["fn"].batch_shape) if dims is None else dims
        self._tables = [self._choice(site) for _, site in self.choices]
        ones = [self._padded(site["value"]) for site in self.sites]
        like = [*ones, *(table[0][0] for table in self._tables)][0]
        outcomes = torch.arange(len(ones) + 1, device=like.device).view(-1, *[1] * like.dim())
        self.codes = [(outcomes >= t).to(one.dtype) * one for t, one in enumerate(ones, start=1)]
        go_on, stop = (
            [self._padded(site["fn"].log_prob(torch.full_like(site["value"], value))) for site in self.sites]
            for value in (1, 0)
        )
        self.go_on = torch.stack(go_on).exp() if go_on else like.new_empty((0, *like.shape))
        self._plain = _chain(go_on, stop, torch.zeros_like(like))
        self.probs = self._plain.exp()
        scaled_go_on, scaled_stop = (
            [self._scaled(site, term) for site, term in zip(self.sites, terms, strict=True)] for terms in (go_on, stop)
        )
        self.log_prob = _chain(scaled_go_on, scaled_stop, torch.zeros_like(like))

    def reached(self, t: int) -> Tensor:
        """P(n >= t | path), ``(*batch)``: the weight of the sites after the t-th stop."""
        return self.probs[t:].sum(0)

    def outcomes(self) -> Outcomes:
        """The outcomes for each n and each combination of the choices up to the n-th stop. Later choices are 0."""
        rows = list(self._combinations())

        def log_probs(chain: Tensor, scaled: bool) -> Tensor:
            made = [
                [
                    table[scaled][k]
                    for (t, _), table, k in zip(self.choices, self._tables, picked, strict=True)
                    if n >= t
                ]
                for n, picked in rows
            ]
            return torch.stack([sum(terms, chain[n]) for (n, _), terms in zip(rows, made, strict=True)])

        values = {
            site["name"]: torch.stack([code[n] for n, _ in rows])
            for site, code in zip(self.sites, self.codes, strict=True)
        }
        for number, (_, site) in enumerate(self.choices):
            events, known = site["fn"].event_dim, support(site["fn"])
            like = self._padded(site["value"], events)
            values[site["name"]] = torch.stack([known[picked[number]].expand_as(like) for _, picked in rows])
        return Outcomes(values, log_probs(self._plain, False).exp(), log_probs(self.log_prob, True))

    def first_outcome(self, t: int) -> int:
        """The index of the first outcome with n >= t."""
        return next(row for row, (n, _) in enumerate(self._combinations()) if n >= t)

    def _combinations(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """For each outcome, n and the index of the value of each choice."""
        for n in range(len(self.sites) + 1):
            sizes = [len(support(site["fn"])) if n >= t else 1 for t, site in self.choices]
            yield from ((n, picked) for picked in itertools.product(*map(range, sizes)))

    def _choice(self, site: Site) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(K, *batch)`` of the values of a choice, plain and scaled as in the trace."""
        function = unmasked(site["fn"])  # the chain accounts for the mask
        plain = function.log_prob(function.enumerate_support(expand=True))
        return plain.view(len(plain), *_padded_shape(plain.shape[1:], self.dims)), torch.stack(
            [self._scaled(site, term) for term in plain]
        )

    def _scaled(self, site: Site, log_prob: Tensor) -> Tensor:
        return self._padded(scale_and_mask(log_prob, site["scale"], site["mask"]))

    def _padded(self, value: Tensor, event_dim: int = 0) -> Tensor:
        """A value with the chain's number of batch dimensions."""
        return value.reshape(_padded_shape(value.shape, self.dims + event_dim))


def _padded_shape(shape: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (*[1] * (dims - len(shape)), *shape)


def _chain(go_on: list[Tensor], stop: list[Tensor], reached: Tensor) -> Tensor:
    """Log-probabilities of stopping after n = 0..T steps, from those of continuing and of stopping at each step.

    ``reached`` is zero.
    """
    outcomes = []
    for going, stopping in zip(go_on, stop, strict=True):
        outcomes.append(reached + stopping)
        reached = reached + going
    return torch.stack([*outcomes, reached])


def trace_path(guide, *args, **kwargs) -> Trace:
    """A trace of the guide along its path."""
    with AlwaysContinue():
        return poutine.trace(guide).get_trace(*args, **kwargs)
