"""Runs of a guide in which each site is sampled as its estimator requires."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.ops.provenance import track_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pplmodels.infer.elbos.estimators import SCORED, chosen_estimator, detached_sample, univariate
from pplmodels.infer.elbos.measure_valued import measures
from pplmodels.infer.elbos.noise import SharedNoise
from pplmodels.infer.elbos.rows import Rows
from pplmodels.infer.elbos.stopping_chain import continue_at, is_stop
from pplmodels.sites import Site, random_sites


class Sampling(Messenger):
    """Gives each latent site of a guide its estimator, as ``infer["estimator"]``, and a value that suits it.

    Stops that are summed out continue, so that the guide runs along its path. With ``rows``, summed-out sites have the
    value of each row. Sites with score functions have no reparameterized samples. The costs that depend on them are
    found by provenance, as in TraceGraph_ELBO, until a site is summed out.

    Arguments:
        overrides: estimators by names of sites without step numbers.
        particles: the number of vectorized particles.
        rows: the rows of the summed-out sites, if they are known.
    """

    def __init__(self, overrides: Mapping[str, str], particles: int, rows: Rows | None = None):
        super().__init__()
        self.overrides, self.particles, self.rows = overrides, particles, rows
        self.executed: list[str] = []  # summed-out sites with rows
        self.tracked = rows is None

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        msg["infer"] = {**msg["infer"], "estimator": chosen_estimator(msg, self.overrides, self.particles)}
        if not msg["done"] and (value := self._value(msg)) is not None:
            msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg) -> None:
        estimator = msg["infer"].get("estimator")
        self.tracked = self.tracked and estimator != "enum"
        if self.tracked and estimator in SCORED and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))

    def _value(self, msg) -> Tensor | None:
        """The value of a site, or None if it is sampled as in any other guide."""
        estimator, rows = msg["infer"]["estimator"], self.rows
        if rows is not None and msg["name"] in rows.support:
            self.executed.append(msg["name"])
            return rows.value(msg["name"], msg["fn"].shape())
        if estimator == "enum" and is_stop(msg):
            continue_at(msg)
            return msg["value"]
        if rows is not None:
            return self._shared(msg)
        return None if estimator == "reparam" or not msg["fn"].has_rsample else detached_sample(msg["fn"])

    def _shared(self, msg, lead: tuple[int, ...] | None = None) -> Tensor:
        """A sample that shares its noise between the rows, and is the same in rows that have had the same values."""
        function = msg["fn"]
        if lead is None:
            lead = function.batch_shape[:1]
        with SharedNoise(tuple(lead)):
            value = function() if msg["infer"]["estimator"] == "reparam" else detached_sample(function)
        if self.rows is None:
            return value
        plates = frozenset(frame for frame in msg["cond_indep_stack"] if frame.vectorized)
        return self.rows.first(value, self.rows.known_at(plates, self.executed), function.event_dim)


@dataclass
class Alternatives:
    """Other values of the sites with measure-valued derivatives, one site and one coordinate after the other.

    Attributes:
        trace: the guide's sample, from which each alternative differs in one value and in what is sampled after it.
        dim: the dimension of the plate of alternatives, to the left of all others.
        values: the alternative values of each site, ``(A_site, *value_shape)``, in the order of the guide.
        weights: the weights of their costs, ``(A_site, *batch_shape)``, see :class:`Measures`.
    """

    trace: Trace
    dim: int
    values: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace, dim: int, rows: Rows | None) -> "Alternatives":
        """The alternatives of a sample of the guide."""
        alternatives = cls(trace, dim)
        for _, site in random_sites(trace):
            if site["infer"].get("estimator") == "mvd":
                alternatives._add(site, rows)
        return alternatives

    def _add(self, site: Site, rows: Rows | None) -> None:
        function, sample = site["fn"], site["value"]
        lead = () if rows is None else tuple(function.batch_shape[:1])
        with SharedNoise(lead):
            values, weights = measures(univariate(function), sample)
        events = function.event_dim
        if events:  # the coordinates one by one
            size = function.event_shape.numel()
            one = torch.eye(size, dtype=torch.bool, device=sample.device)
            one = one.view(size, *[1] * (sample.dim() - events), *function.event_shape)
            values = torch.where(one, values[:, None], sample).flatten(0, 1)
            weights = weights.flatten(-events).movedim(-1, 1).flatten(0, 1)
        self.values[site["name"]], self.weights[site["name"]] = values.detach(), weights

    def run(self, program):
        """A program whose sites are in the plate of alternatives."""
        return pyro.plate("_alternatives", self.number, dim=self.dim)(program)

    @property
    def number(self) -> int:
        """The number of alternatives of all sites."""
        return sum(map(len, self.values.values()))

    def of_site(self, name: str) -> slice:
        """The alternatives of a site."""
        names = list(self.values)
        start = sum(len(self.values[before]) for before in names[: names.index(name)])
        return slice(start, start + len(self.values[name]))


class SamplingAlternatives(Sampling):
    """Samples a guide in the plates of alternatives and rows.

    Each alternative has the values of the guide's sample up to its site, where it has its own value. The sites after it
    are sampled with noise that is shared by all alternatives.
    """

    def __init__(self, sampling: Sampling, alternatives: Alternatives):
        super().__init__(sampling.overrides, sampling.particles, sampling.rows)
        self.tracked = False
        self.alternatives = alternatives
        self.number = 0  # alternatives whose value differs at a site before

    def _value(self, msg) -> Tensor | None:
        rows = self.rows
        summed = (rows is not None and msg["name"] in rows.support) or (
            is_stop(msg) and msg["infer"]["estimator"] == "enum"
        )
        if summed:
            return super()._value(msg)
        name, shape, start = msg["name"], msg["fn"].shape(), self.number
        parts = []
        if start:
            parts.append(self._shared(msg, tuple(shape[: 1 + (rows is not None)]))[:start])
        if (values := self.alternatives.values.get(name)) is not None:
            padded = values.view(len(values), *[1] * (len(shape) - values.dim()), *values.shape[1:])
            parts.append(padded.expand(len(values), *shape[1:]))
            self.number += len(values)
        before = shape[0] - self.number
        sampled: Any = self.alternatives.trace.nodes[name]["value"]
        parts.append(sampled.expand(before, *shape[1:]))
        return torch.cat(parts)

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) and msg["name"] in self.alternatives.trace:
            msg["value"], msg["done"] = self.alternatives.trace.nodes[msg["name"]]["value"], True
            return
        super()._pyro_sample(msg)
