"""The bound with a gradient estimator per site of the guide."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.ops.provenance import detach_provenance
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.elbos.estimators import check_known
from pplmodels.infer.elbos.path import check_path, with_values
from pplmodels.infer.elbos.rows import Rows, plates_of
from pplmodels.infer.elbos.sampling import Alternatives, Sampling, SamplingAlternatives
from pplmodels.infer.elbos.signals import score_term
from pplmodels.infer.elbos.stopping_chain import StoppingChain, is_choice, is_stop
from pplmodels.infer.elbos.summed import Terms
from pplmodels.sites import Site, base_site_name, random_sites


class PerSite_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO with a gradient estimator for each site of the guide.

    A site states its estimator as ``infer={"estimator": ...}``:

    =============  ==============================================================================================
    ``reparam``    reparameterized samples; the default of distributions that have them
    ``reinforce``  score function times downstream cost; the default of all others. Baselines are those of
                   TraceGraph_ELBO, with the normalization of NVIL for a :class:`NeuralBaseline`
    ``rloo``       score function; the baseline of each particle is the mean cost of the image's other particles
                   (Kool et al. 2019), so ``num_particles`` must be at least 2
    ``enum``       summed out: the bound's expectation over the values of the site, for finite support
    ``mvd``        measure-valued derivative (Mohamed et al. 2020, JMLR 21 (132), section 6), for Bernoulli,
                   Categorical, Normal and Poisson
    =============  ==============================================================================================

    All of them estimate the gradient of the same bound, so they can be combined in one guide. Score functions are
    multiplied by the costs that depend on the site: by provenance as in TraceGraph_ELBO, or, if a site is summed out,
    by all costs that follow in the guide and all of the model.

    Summed-out sites run model and guide once, with all combinations of their values in a plate to the left of all
    others. Two marks avoid the combinations (:mod:`pplmodels.infer.elbos.stopping_chain`). A site with
    ``infer={"stop": True}`` is a Bernoulli after whose first 0 all later sites are masked: T stops have T + 1 outcomes,
    and the guide runs only once, along the path that never stops. No other site of the guide depends on a site with
    ``infer={"choice": True}``. These marks are checked if Pyro's validation is on.

    .. code-block:: text

        path ~ q(path),  the guide's run that never stops
        bound = E_path sum_{n=0..T} q(n | path) [log p(x, n, path_{<=n}) - log q(n | path) - log q(path_{<=n})]

    Measure-valued derivatives run guide and model a second time, without gradients, in a plate of all alternative
    values. The sites after a value are sampled with noise that the alternatives share. Layers with noise of their own
    (dropout) must be in evaluation mode then.

    Model and guide must broadcast over additional batch dimensions on the left if sites are summed out or have
    measure-valued derivatives, or if there are several particles.

    Arguments:
        estimators: estimators by names of sites without step numbers, e.g. ``{"z_pres": "enum"}``. They override those
            of the guide.
        num_particles: number of samples per image.
        vectorize_particles: draw them in one run, in a plate to the left of all others.
        ...: Pyro's arguments, by keyword.
    """

    def __init__(
        self,
        *,
        estimators: Mapping[str, str] | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        **settings: Any,
    ):
        vectorize_particles = vectorize_particles and num_particles > 1  # one particle needs no plate
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles, **settings)
        self.estimators = dict(estimators or {})
        for name, estimator in self.estimators.items():
            check_known(name, estimator)

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The negative bound."""
        with torch.no_grad():
            return -float(self._loss_and_surrogate_loss(model, guide, args, kwargs)[0])

    def _loss_and_surrogate_loss(self, model, guide, args, kwargs) -> tuple[Tensor, Tensor]:
        bound: Any = 0.0
        surrogate: Any = 0.0
        for run in self._get_traces(model, guide, args, kwargs):
            bound = bound + detach_provenance(run.terms.bound)
            surrogate = surrogate + (run.surrogate() if torch.is_grad_enabled() else 0.0)
        return bound / self.num_particles, -surrogate / self.num_particles

    def _get_trace(self, model, guide, args, kwargs) -> "Run":
        sampling = Sampling(self.estimators, self.num_particles if self.vectorize_particles else 1)
        call = Call(model, guide, args, kwargs)
        trace, model_trace = call.guide_trace(sampling)
        dims = self._depth(trace)
        chained = _chained(trace)
        enumerated = [site for _, site in _latent(trace, "enum") if site["name"] not in chained]
        derived = [name for name, _ in _latent(trace, "mvd")] if torch.is_grad_enabled() else []
        if model_trace is not None and (chained or enumerated or derived):
            name = [*chained, *(site["name"] for site in enumerated), *derived][0]
            raise ValueError(f"site {name} cannot have the estimator enum or mvd in a GuideMessenger, which runs once.")
        if enumerated:
            dims += 1
            rows = Rows(enumerated, -dims)
            sampling, call = Sampling(self.estimators, sampling.particles, rows), call.within(rows)
            trace, _ = call.guide_trace(sampling)
        terms = self._terms(call, trace, model_trace, dims, chained, sampling.rows)
        if not derived:
            return Run(terms)
        dims = max(dims, self._depth(terms.model))
        alternatives = Alternatives.of(trace, -dims - 1, sampling.rows)
        with torch.no_grad():
            other, _ = call.within(alternatives).guide_trace(SamplingAlternatives(sampling, alternatives))
            others = self._terms(call.within(alternatives), other, None, dims + 1, chained, sampling.rows)
            if is_validation_enabled():
                others.check_alternatives(alternatives)
        return Run(terms, alternatives, others)

    def _terms(self, call: "Call", trace: Trace, model_trace: Trace | None, dims: int, chained, rows) -> Terms:
        """The terms of the bound from a trace of the guide, by a run of the model (unless its trace is known)."""
        trace.compute_score_parts()
        chain = StoppingChain(trace, lambda site: site["name"] in chained, dims) if chained else None
        outcomes = chain.outcomes() if chain else None
        if model_trace is None:
            model_trace = call.model_trace(with_values(trace, outcomes.values) if outcomes else trace)
        plain = chain is None and rows is None
        if is_validation_enabled():
            depth = self.max_plate_nesting if plain and call.plain else dims
            check_model_guide_match(model_trace, trace, depth)
            if chain:
                state = State({"guide": call.guide})
                before = Snapshot.of(state)  # the check runs the guide once per outcome
                check_path(trace, chain, call.guide, call.args, call.kwargs)
                state.restore_bindings()
                before.restore()
        model_trace, trace = prune_subsample_sites(model_trace), prune_subsample_sites(trace)
        model_trace.compute_log_prob()
        terms = Terms(model_trace, trace, dims, chain, outcomes, rows)
        self._check_names(terms)
        if not (plain and call.plain):
            terms.check()
        if is_validation_enabled():
            sites: list[Any] = [*model_trace.nodes.values(), *trace.nodes.values()]
            for site in sites:
                if site["type"] == "sample":
                    check_site_shape(site, depth)
            terms.check_rows()
        return terms

    def _depth(self, trace: Trace) -> int:
        """The number of batch dimensions of a guide: that of the user, or the leftmost of its plates."""
        if self.max_plate_nesting < math.inf:
            return int(self.max_plate_nesting)
        return max((-frame.dim for _, site in random_sites(trace) for frame in plates_of(site)), default=0)

    def _check_names(self, terms: Terms) -> None:
        known = {base_site_name(name) for trace in (terms.model, terms.guide) for name, _ in random_sites(trace)}
        if unknown := sorted(self.estimators.keys() - known):
            raise ValueError(f"estimators has {unknown[0]}, but there is no such site in model or guide.")


@dataclass(frozen=True)
class Call:
    """Model, guide, and the arguments of both."""

    model: Any
    guide: Any
    args: tuple
    kwargs: dict
    plain: bool = True

    def within(self, plate: Rows | Alternatives) -> "Call":
        """The call of the programs within a plate."""
        return Call(plate.run(self.model), plate.run(self.guide), self.args, self.kwargs, False)

    def guide_trace(self, sampling: Sampling) -> tuple[Trace, Trace | None]:
        """A trace of the guide. A GuideMessenger also runs the model, whose trace is then returned, too."""
        both: Any = poutine.unwrap(self.guide)
        with sampling:
            if isinstance(both, GuideMessenger):
                self.guide(*self.args, **self.kwargs)
                model_trace, guide_trace = both.get_traces()
                return guide_trace, model_trace
            return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs), None

    def model_trace(self, values: Trace) -> Trace:
        """A trace of the model with given values of latent sites."""
        return poutine.trace(poutine.replay(self.model, trace=values)).get_trace(*self.args, **self.kwargs)


@dataclass
class Run:
    """The terms of one run, and those of its alternatives with measure-valued derivatives."""

    terms: Terms
    alternatives: Alternatives | None = None
    others: Terms | None = None

    def surrogate(self) -> Tensor:
        """A tensor whose gradient is the estimator of the bound's gradient."""
        total: Any = self.terms.surrogate()
        for name, scored, cost, weight in self.terms.scored_costs():
            total = total + score_term(name, scored, cost.detach(), weight)
        if self.alternatives is not None and self.others is not None:
            for name, weights in self.alternatives.weights.items():
                site: Any = self.others.guide.nodes[name]
                cost = self.others.cost_in_plates(site)[self.alternatives.of_site(name)]
                inner = [1] * (cost.dim() - weights.dim())  # dimensions between the alternatives and the site's plates
                total = total + (weights.view(len(weights), *inner, *weights.shape[1:]) * cost).sum()
        return detach_provenance(total)


def _latent(trace: Trace, estimator: str) -> list[tuple[str, Site]]:
    sites = random_sites(trace)
    return [(name, site) for name, site in sites if not site["is_observed"] and site["infer"]["estimator"] == estimator]


def _chained(trace: Trace) -> list[str]:
    """The names of the sites that are summed out as a stopping chain.

    These are the stops, if all of them are summed out, and the choices in the same plates.
    """
    enumerated = dict(_latent(trace, "enum"))
    stops = [site for _, site in random_sites(trace) if is_stop(site)]
    if not all(stop["name"] in enumerated for stop in stops):
        stops = []
    members = [*stops, *filter(is_choice, enumerated.values())]
    return [site["name"] for site in members if plates_of(site) == plates_of(members[0])]
