"""The sites and dependencies of a pair, and checks for problems."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pandas
import pyro
import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution, constraints
from pyro.infer.inspect import get_dependencies
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer import SVI
from pplmodels.infer.looking import looking, unchanged
from pplmodels.infer.observed import other_event, too_large
from pplmodels.infer.traces import pair_traces
from pplmodels.sites import Site, random_sites

Parents = dict[str, list[str]]


@looking
def site_table(model, guide, x: Tensor) -> pandas.DataFrame:
    """A table with a row per random site, in the model's order: distributions, support, shapes for ``x (B, ...)``.

    ``kind`` is latent, observed, or auxiliary (sites that only the guide has, such as additional losses).
    """
    guide_sites, model_sites = (dict(random_sites(trace)) for trace in pair_traces(model, guide, x))
    rows = {}
    for name in model_sites | guide_sites:
        guide_site, model_site = guide_sites.get(name), model_sites.get(name)
        site = model_site or guide_sites[name]
        rows[name] = {
            "kind": "auxiliary" if model_site is None else "observed" if site["is_observed"] else "latent",
            "model": _distribution(model_site),
            "guide": _distribution(guide_site),
            "support": _name(_support(site["fn"])),
            "batch shape": tuple(site["fn"].batch_shape),
            "event shape": tuple(site["fn"].event_shape),
        }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("site")


@dataclass(frozen=True)
class Graph:
    """The sites from which each site's distribution is computed, in the model and in the guide.

    Deterministic sites are replaced by the sites from which they are computed.
    """

    model: Parents
    guide: Parents


@looking
def graph(model, guide, x: Tensor) -> Graph:
    """The dependencies in a run of a pair on ``x``. :func:`pplmodels.plotting.graph` draws them."""
    return Graph(*(_parents(module, x) for module in (model, guide)))


def _parents(module, x: Tensor) -> Parents:
    with torch.random.fork_rng():  # Pyro annotates the dependencies as an object
        found = cast(dict[str, dict[str, set[str]]], get_dependencies(module, (x,))["prior_dependencies"])
    return {
        site: [parent for parent in found if parent in parents and parent != site] for site, parents in found.items()
    }


def check_pair(model, guide, x: Tensor) -> list[str]:
    """Problems of training this pair on ``x (B, ...)``, each as a sentence; an empty list if there are none.

    Checks names, sites of only one module, plates, shapes (including ``x``), supports, non-finite
    log-probabilities, scores of masked values, parameters without a gradient, and dependencies on discrete values that
    Pyro does not track, which would bias the gradient of TraceGraph_ELBO. The pair and the random state are restored.

    >>> from guides import MLPGuide
    >>> from pplmodels import MLPVAE
    >>> check_pair(MLPVAE(image=(1, 4, 4), z_dim=3), MLPGuide(image=(1, 4, 4), z_dim=2), torch.rand(9, 1, 4, 4).round())
    ['z has event shape (2,) in the guide and (3,) in the model.']
    """
    with torch.random.fork_rng(), unchanged(model, guide):  # functions are not copied
        model, guide = copy.deepcopy((model, guide))
        try:
            running = "Running the guide"
            guide_trace = poutine.trace(guide).get_trace(x)
            running = "Running the model"
            model_trace = poutine.trace(model).get_trace(x)
            findings = [*_names(model, guide), *_sites(guide_trace, model_trace, len(x))]
            if findings:  # the following checks need compatible modules
                return findings
            running = "Running the model with the guide's samples"
            guide_trace, model_trace = pair_traces(model, guide, x)
            findings = [*_values(guide_trace, model_trace), *_scores(guide_trace)]
            running = "Computing the gradient"
            findings += _parameters(model, guide, x)
        except Exception as error:  # any exception of user code is a finding
            return [f"{running} fails with {type(error).__name__}: {str(error).partition(chr(10))[0]}"]
        return findings or list(_provenance(model, guide, x, guide_trace))


def _names(model, guide) -> Iterator[str]:
    name = getattr(model, "_pyro_name", "")
    if name and name == getattr(guide, "_pyro_name", ""):
        yield f"Model and guide are both named {name!r}, so their parameters would have the same names in Pyro's store."


def _sites(guide_trace: Trace, model_trace: Trace, images: int) -> Iterator[str]:
    q = {name: site for name, site in random_sites(guide_trace) if not site["infer"].get("is_auxiliary")}
    p = dict(random_sites(model_trace))
    for name in q.keys() - p.keys():
        yield f"{name} is only a site of the guide: mark it with infer={{'is_auxiliary': True}} or add it to the model."
    for name in p.keys() - q.keys():
        if not p[name]["is_observed"]:
            yield f"{name} is only a site of the model: the guide does not infer it, so it is sampled from the prior."
    for name in p.keys() & q.keys():
        if p[name]["is_observed"]:
            yield f"{name} is observed in the model, but sampled by the guide."
    for site in p.values():
        if site["is_observed"] and (finding := too_large(site) or other_event(site)):
            yield finding
    for sites, role in ((q, "guide"), (p, "model")):
        for name, site in sites.items():
            plates, shape = [frame.name for frame in site["cond_indep_stack"]], tuple(site["fn"].batch_shape)
            if site["is_observed"] and plates != ["data"]:
                yield f"{name} is observed in the plates {plates}, but must only be in the plate 'data'."
            elif name in p and plates != (others := [frame.name for frame in p[name]["cond_indep_stack"]]):
                yield f"{name} is in the plates {plates} in the guide and in the plates {others} in the model."
            elif shape != (images,) * len(plates):
                yield f"{name} of the {role} has batch shape {shape} for {images} images: use .to_event()."
    for name in p.keys() & q.keys():
        shapes = [tuple(site["fn"].event_shape) for site in (q[name], p[name])]
        if shapes[0] != shapes[1]:
            yield f"{name} has event shape {shapes[0]} in the guide and {shapes[1]} in the model."


def _values(guide_trace: Trace, model_trace: Trace) -> Iterator[str]:
    for trace, role in ((guide_trace, "guide"), (model_trace, "model")):
        for name, site in random_sites(trace):
            if name in model_trace.nodes and not _is_in(model_trace.nodes[name]["fn"], site["value"]):
                yield f"{name} of the {role} has values outside of the support of the model's distribution."
            elif not site["fn"].log_prob(site["value"]).isfinite().all():
                yield f"{name} of the {role} has log-probabilities that are not finite."


def _scores(guide_trace: Trace) -> Iterator[str]:
    for name, site in random_sites(guide_trace):
        if not site["fn"].has_rsample:
            parts = site["fn"].score_parts(site["value"])
            if ((parts.log_prob == 0) & (parts.score_function != 0)).any():
                yield (
                    f"{name} of the guide is masked, but its score function is not and multiplies all downstream "
                    "costs: use pplmodels.distributions.Masked instead of .mask()."
                )


def _is_in(distribution, value: Tensor) -> bool:
    try:
        support = _support(distribution)
    except NotImplementedError:  # not implemented by all distributions
        return True
    return constraints.is_dependent(support) or bool(support.check(value).all())


def _parameters(model, guide, x: Tensor) -> Iterator[str]:
    names = [f"{role}.{name}" for role, part in (("model", model), ("guide", guide)) for name, _ in _named(part)]
    parameters = [p for part in (model, guide) for _, p in _named(part)]
    if not parameters:
        yield "Neither model nor guide has parameters."
        return
    with pyro.validation_enabled(False):  # values outside of a support are found separately
        _, _, gradients = SVI(model, guide, torch.optim.SGD(parameters, lr=0.0)).gradients(x)
    found = {id(p): g for p, g in zip(parameters, gradients, strict=True)}
    for name, p in zip(names, parameters, strict=True):
        gradient = found[id(p)]
        if gradient is None:
            yield f"Training would not change {name}, because the bound does not depend on it."
        elif not gradient.isfinite().all():
            yield f"The gradient of {name} is not finite."
        elif not gradient.any():
            yield f"Training would not change {name}, because its gradient is zero for these images."


def _named(module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


@torch.no_grad()
def _provenance(model, guide, x: Tensor, trace: Trace) -> Iterator[str]:
    """Change one discrete value at a time, and report distributions that change without a tracked dependency."""
    values = {name: site["value"] for name, site in random_sites(trace)}
    pair = ("guide", guide), ("model", model)
    scored = [(role, module, _log_probs(module, x, values)) for role, module in pair]
    for name, site in random_sites(trace):
        if site["fn"].has_rsample:
            continue
        changed = values | {name: _another(site)}
        for role, module, before in scored:
            parents = _parents(module, x)
            for other, after in _log_probs(module, x, changed).items():
                if other != name and not torch.equal(after, before[other]) and name not in parents.get(other, ()):
                    yield (
                        f"{other} of the {role} depends on {name}, but Pyro does not track this (possible causes: "
                        "a custom autograd.Function, vmap, NumPy, an in-place write), so the gradient of "
                        "TraceGraph_ELBO would be biased."
                    )


def _log_probs(module, x: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    trace = poutine.trace(poutine.condition(module, data=values)).get_trace(x)
    return {name: site["fn"].log_prob(site["value"]) for name, site in random_sites(trace)}


def _another(site: Site) -> Tensor:
    """A different value of a discrete site, wherever there is one."""
    if not site["fn"].has_enumerate_support:
        return site["fn"].sample()
    every = site["fn"].enumerate_support(expand=False)
    every = every.expand(len(every), *site["value"].shape)
    index = (every == site["value"]).long().argmax(0, keepdim=True)
    return every.gather(0, (index + 1) % len(every))[0]


def _support(distribution):
    while isinstance(distribution, (MaskedDistribution, ExpandedDistribution)):
        distribution = distribution.base_dist
    return distribution.support


def _name(support) -> str:
    """A constraint in a word, without the number of its dimensions."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return str(support).removesuffix("()")


def _distribution(site: Site | None) -> str:
    """The name of a site's distribution without its wrappers."""
    if site is None:
        return ""
    distribution = site["fn"]
    while isinstance(distribution, (Independent, MaskedDistribution, ExpandedDistribution)):
        distribution = distribution.base_dist
    return type(distribution).__name__
