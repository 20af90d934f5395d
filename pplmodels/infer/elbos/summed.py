"""The terms of a bound, weighted by the probabilities of the sites that are summed out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.elbos.estimators import SCORED
from pplmodels.infer.elbos.rows import Plates, Rows, plates_of
from pplmodels.infer.elbos.sampling import Alternatives
from pplmodels.infer.elbos.stopping_chain import Outcomes, StoppingChain
from pplmodels.sites import Site, random_sites


@dataclass
class Terms:
    """The terms of the bound from one run: log p of the model's sites and -log q of the guide's.

    The sites of ``chain`` are summed out in the model only, whose terms have the outcomes in an additional leftmost
    dimension. The sites of ``rows`` are summed out in a plate of model and guide. *Means* are over all of these sites.

    Arguments:
        model, guide: traces with log-probabilities.
        dims: the number of batch dimensions of both, without the outcomes.
        chain: the stops and choices that are summed out in the model only.
        rows: the other summed-out sites.
    """

    model: Trace
    guide: Trace
    dims: int
    chain: StoppingChain | None = None
    outcomes: Outcomes | None = None
    rows: Rows | None = None

    @cached_property
    def of_guide(self) -> list[tuple[str, Site]]:
        """The guide's sites except for those of the chain, whose terms are the outcomes' log-probabilities."""
        in_chain = () if self.outcomes is None else self.outcomes.values
        return [(name, site) for name, site in random_sites(self.guide) if name not in in_chain]

    @cached_property
    def of_model(self) -> MultiFrameTensor:
        """The sum of the model's terms, and of the chain's, in each set of plates."""
        terms = MultiFrameTensor(
            *((site["cond_indep_stack"], site["log_prob"]) for _, site in random_sites(self.model))
        )
        if self.chain is not None and self.outcomes is not None:
            terms.add((self.chain.plates, -self.outcomes.log_prob))
        return terms

    @cached_property
    def bound(self) -> Tensor | float:
        """The mean of the bound, summed over all plates."""
        total = self._total_of_model
        for _, site in self.of_guide:
            total = total - self._total_of_guide(site)
        return total

    def surrogate(self) -> Tensor | float:
        """The bound, with the gradients of probabilities and of reparameterized samples, but without score functions.

        If nothing is summed out, log q of a site without reparameterized samples has a gradient of mean 0, and is left
        out. Otherwise, it is weighted by probabilities, through which it has a gradient.
        """
        if self.chain is not None or self.rows is not None:
            return self.bound
        total = self._total_of_model
        for _, site in self.of_guide:
            if site["is_observed"] or site["infer"]["estimator"] == "reparam":
                entropy = site["score_parts"].entropy_term
                if not is_identically_zero(entropy):
                    total = total - entropy.sum()
        return total

    def scored_costs(self) -> Iterator[tuple[str, Site, Tensor, Tensor | None]]:
        """For each site with a score function: its name, the site, its mean cost, and the weight of its score.

        The cost is the sum of all terms that may depend on the site, in the site's plates. It is a mean over the
        outcomes and rows in which the site has the same value. The weight is their probability, or None for 1.
        """
        tracked = self._tracked_costs() if self.chain is None and self.rows is None else None
        for number, (name, site) in enumerate(self.of_guide):
            if site["is_observed"] or site["infer"]["estimator"] not in SCORED:
                continue
            if tracked is not None:
                yield name, site, tracked[name].sum_to(site["cond_indep_stack"]), None
            else:
                yield name, site, *self._following_cost(number, site)

    def cost_in_plates(self, site: Site) -> Tensor:
        """The mean of all terms that are in all plates of a site, summed to these plates."""
        plates = plates_of(site)
        cost = MultiFrameTensor()
        for outer, term in self.of_model.items():
            if plates <= outer:
                cost.add((outer, self._mean(outer, term)))
        for _, other in self.of_guide:
            if plates <= plates_of(other):
                cost.add((other["cond_indep_stack"], -_times(self._weight(other), other["log_prob"])))
        return cost.sum_to(site["cond_indep_stack"])

    def check(self) -> None:
        """Raise ValueError if a term depends on a site of the chain without being in its plates.

        Such a term depends on the values of all images together, but the images' values are varied one by one.
        """
        for name, site in random_sites(self.model):
            if deeper := [frame for frame in plates_of(site) if -frame.dim > self.dims]:
                raise ValueError(
                    f"the plate {deeper[0].name} of the model is further to the left than all plates of the guide, "
                    "where summed-out sites have their values: give PerSite_ELBO the number of nested plates as "
                    "max_plate_nesting."
                )
            inside = self.chain is None or self.chain.plates <= plates_of(site)
            if self.chain is not None and self.outcomes and site["log_prob"].dim() > self.dims and not inside:
                raise _coupled(name, next(iter(self.outcomes.values)), "enum", self.chain.plates - plates_of(site))

    def check_rows(self) -> None:
        """:meth:`check` for the sites in rows, by comparing values."""
        if self.rows is None:
            return
        for trace in (self.model, self.guide):
            for name, site in random_sites(trace):
                for summed, outer in self.rows.plates.items():
                    if outer <= plates_of(site):
                        continue
                    others = [other for other in self.rows.plates if other != summed]
                    if not torch.allclose(self.rows.first(site["log_prob"], others), site["log_prob"], rtol=1e-4):
                        raise _coupled(name, summed, "enum", outer - plates_of(site))

    def check_alternatives(self, alternatives: Alternatives) -> None:
        """:meth:`check` for measure-valued derivatives, if these terms are those of their alternatives."""
        for trace in (self.model, self.guide):
            for name, site in random_sites(trace):
                for varied in alternatives.values:
                    derived: Any = self.guide.nodes[varied]
                    if (outer := plates_of(derived)) <= plates_of(site) or site["log_prob"].dim() < self.dims:
                        continue
                    own = alternatives.of_site(varied)
                    term = site["log_prob"].movedim(-self.dims, 0)[own]
                    if not torch.allclose(term, term[:1], rtol=1e-4):
                        raise _coupled(name, varied, "mvd", outer - plates_of(site))

    @cached_property
    def _total_of_model(self) -> Tensor | float:
        if self.chain is None and self.rows is None:
            terms = [site["log_prob_sum"] for _, site in random_sites(self.model)]
        else:
            terms = [self._mean(plates, term).sum() for plates, term in self.of_model.items()]
        return sum(terms, start=0.0)

    def _total_of_guide(self, site: Site) -> Tensor:
        weight = self._weight(site)
        return site["log_prob_sum"] if weight is None else (weight * site["log_prob"]).sum()

    def _mean(self, plates: Plates, term: Tensor, stops: int = 0) -> Tensor:
        """The mean of a term of the model, without the outcomes that stop before the given number of stops."""
        if self.chain is not None and self.outcomes is not None and self.chain.plates <= plates:
            if term.dim() > self.dims:
                first = self.chain.first_outcome(stops)
                term = (self.outcomes.probs[first:] * term[first:]).sum(0)
            elif stops:
                term = self.chain.reached(stops) * term
        return _times(self._row_weight(plates), term)

    def _weight(self, site: Site) -> Tensor | None:
        """The weight of a term of the guide: the probability that its site is reached, in each row."""
        reached = self._reached(site)
        weight = self._row_weight(plates_of(site))
        return weight if reached is None else _times(weight, reached)

    def _reached(self, site: Site) -> Tensor | None:
        stops = self._stops(site)
        return self.chain.reached(stops) if self.chain is not None and stops else None

    def _stops(self, site: Site) -> int:
        """The number of summed-out stops before a site that stop it."""
        inside = self.chain is not None and self.chain.plates <= plates_of(site)
        return self.chain.stops_before[site["name"]] if self.chain is not None and inside else 0

    def _row_weight(self, plates: Plates) -> Tensor | None:
        if self.rows is None:
            return None
        known = self.rows.known_at(plates)
        return self.rows.probability(self.guide, known) * self.rows.counted(known)

    def _tracked_costs(self) -> dict[str, MultiFrameTensor]:
        """The terms that depend on each site with a score function, by their provenance."""
        costs = {name: MultiFrameTensor() for name, _ in self.of_guide}
        for sign, trace in ((1, self.model), (-1, self.guide)):
            for _, site in random_sites(trace):
                for name in get_provenance(site["log_prob_sum"]):
                    term = detach_provenance(site["log_prob"]).detach()
                    costs[name].add((site["cond_indep_stack"], sign * term))
        return costs

    @torch.no_grad()
    def _following_cost(self, number: int, site: Site) -> tuple[Tensor, Tensor | None]:
        """The mean cost of a site, from the terms that follow it in the guide and all terms of the model."""
        plates, stops = plates_of(site), self._stops(site)
        terms = MultiFrameTensor(*((outer, self._mean(outer, term, stops)) for outer, term in self.of_model.items()))
        for _, later in self.of_guide[number:]:
            terms.add((later["cond_indep_stack"], -_times(self._weight(later), later["log_prob"])))
        cost = terms.sum_to(site["cond_indep_stack"])
        probability, counted = self._reached(site), None
        if self.rows is not None:
            before = [name for name, _ in self.of_guide[:number] if name in self.rows.plates]
            known = self.rows.known_at(plates, before)
            probability = _times(probability, self.rows.probability(self.guide, known))
            cost, counted = self.rows.grouped(cost, known), self.rows.counted(known)
        if probability is None:
            return cost, None
        return cost / probability.clamp(min=torch.finfo(cost.dtype).tiny), _times(counted, probability)


def _times(weight: Tensor | None, term: Tensor) -> Tensor:
    return term if weight is None else weight * term


def _coupled(name: str, varied: str, estimator: str, plates: Plates) -> ValueError:
    outer = ", ".join(sorted(frame.name for frame in plates))
    return ValueError(
        f"site {name} depends on {varied}, whose estimator is {estimator}, but it is outside of the plate {outer}: the "
        "values of the plate's entries cannot be varied one by one."
    )
