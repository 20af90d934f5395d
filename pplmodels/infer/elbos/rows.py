"""Guides that run once for all values of their summed-out sites, in rows of a plate."""

import math
from collections.abc import Callable, Collection
from functools import reduce
from operator import mul
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.elbos.estimators import support, unmasked
from pplmodels.sites import Site

Plates = frozenset  # of frames


class Rows:
    """All R combinations of the values of some sites of a guide, one combination per row of a plate.

    In each row, these sites have the row's values instead of samples. All other sites are sampled. Rows have the same
    samples until they differ in a value. The mean of a term over the summed-out sites is the sum over the rows of the
    term times :meth:`probability` times :meth:`counted`.

    A site that is not inside of all plates of a summed-out site does not depend on it, because each image has a value
    of its own. Such a site is the same in all rows that differ only in that value, and counts in only one of them.

    Arguments:
        sites: the summed-out sites in the order of the guide.
        dim: the dimension of the plate, to the left of all others.
    """

    def __init__(self, sites: list[Site], dim: int):
        self.dim = dim
        self.support = {site["name"]: support(site["fn"]) for site in sites}
        self.plates = {site["name"]: plates_of(site) for site in sites}
        self.sizes = [len(values) for values in self.support.values()]
        self.number = math.prod(self.sizes)

    def run(self, program: Callable) -> Callable:
        """A program whose sites are in the plate of rows."""
        return pyro.plate("_rows", self.number, dim=self.dim)(program)

    def value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The value of a summed-out site in each row, expanded to a shape."""
        values = self.support[name][self._index(name)]
        return values.view(self.number, *[1] * (-self.dim - 1), *values.shape[1:]).expand(shape)

    def known_at(self, plates: Plates, executed: Collection[str] | None = None) -> tuple[str, ...]:
        """The summed-out sites on which a site in these plates may depend, of those ``executed`` (default: all)."""
        executed = self.plates if executed is None else executed
        return tuple(name for name, outer in self.plates.items() if outer <= plates and name in executed)

    def first(self, value: Tensor, known: Collection[str], event_dim: int = 0) -> Tensor:
        """A value with each row replaced by the first row that has the same values of the ``known`` sites."""
        if len(known) == len(self.sizes):
            return value
        return value.index_select(self.dim - event_dim, self._first(known))

    def grouped(self, value: Tensor, known: Collection[str]) -> Tensor:
        """The sum over all rows with the same values of the ``known`` sites, in each of these rows."""
        hidden = [at for at, name in enumerate(self.support) if name not in known]
        if not hidden:
            return value
        dim = value.dim() + self.dim
        value = value.unflatten(dim, self.sizes)
        total = value.sum([dim + at for at in hidden], keepdim=True)
        return total.expand_as(value).flatten(dim, dim + len(self.sizes) - 1)

    def counted(self, known: Collection[str]) -> Tensor:
        """1 for the first row with each combination of values of the ``known`` sites, and 0 for all others."""
        first = self._first(known)
        counted = (first == torch.arange(self.number, device=first.device)).to(torch.get_default_dtype())
        return counted.view(-1, *[1] * (-self.dim - 1))

    def probability(self, trace: Trace, known: Collection[str]) -> Tensor:
        """The probability of each row's values of the ``known`` sites, from a trace of the guide."""
        sites: dict[str, Any] = {name: trace.nodes[name] for name in known}
        factors = (unmasked(site["fn"]).log_prob(site["value"]).exp() for site in sites.values())
        return reduce(mul, factors, torch.ones_like(self.counted(())))

    def _index(self, name: str) -> Tensor:
        """The index of a site's value in each row."""
        at = list(self.support).index(name)
        rows = torch.arange(self.number, device=self.support[name].device)
        return rows // math.prod(self.sizes[at + 1 :]) % self.sizes[at]

    def _first(self, known: Collection[str]) -> Tensor:
        """The first row with the same values of the ``known`` sites, of each row."""
        strides = {name: math.prod(self.sizes[at + 1 :]) for at, name in enumerate(self.support)}
        nowhere = torch.zeros(self.number, dtype=torch.long, device=next(iter(self.support.values())).device)
        return sum((strides[name] * self._index(name) for name in known), nowhere)


def plates_of(site: Site) -> Plates:
    """The vectorized plates of a site."""
    return frozenset(frame for frame in site["cond_indep_stack"] if frame.vectorized)
