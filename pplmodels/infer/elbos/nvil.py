"""Neural variational inference and learning (Mnih & Gregor 2014, arXiv 1402.0030)."""

from collections import defaultdict

import torch
from pyro.infer import TraceGraph_ELBO
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.sites import Site, random_sites


class NVIL_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO with learning signals divided by their running standard deviation.

    A score-function gradient is (cost - baseline) times the gradient of log q. The costs of a scene vary by hundreds
    of nats early in training and by a few nats at the end, so no single learning rate is suitable. NVIL (Mnih & Gregor
    2014, arXiv 1402.0030, section 2.3.3) divides the signal by its running standard deviation if this exceeds 1. This
    applies to sites whose ``infer`` has a :class:`ScoreNormalizer` as ``"score_normalizer"``, which
    :meth:`NeuralBaseline.infer_config` creates. Everything else, including the bound, equals TraceGraph_ELBO.

    The division scales the gradients of each discrete site by a positive factor. The direction within a site stays
    unbiased, but the weight relative to the reparameterized gradients changes.
    """

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        sites = dict(random_sites(guide_trace))
        for name, cost in _downstream_costs(model_trace, guide_trace).items():
            site = sites[name]
            normalizer = site["infer"].get("score_normalizer")
            if normalizer is None:
                continue
            prediction, score = normalised_score(site, cost, _shaped_as(cost, normalizer.mask))
            options = site["infer"].get("baseline", {})
            if "baseline_value" in options:  # one prediction may be shared by all particles
                site["infer"] = {**site["infer"], "baseline": {**options, "baseline_value": prediction}}
            site["score_parts"] = site["score_parts"]._replace(score_function=score)
        return super()._loss_and_surrogate_loss_particle(model_trace, guide_trace)


def _downstream_costs(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    """For each non-reparameterized guide site, the sum of the terms of the bound that depend on it, per image."""
    costs: defaultdict[str, MultiFrameTensor] = defaultdict(MultiFrameTensor)
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for _, site in random_sites(trace):
            for name in get_provenance(site["log_prob_sum"]):
                term = sign * detach_provenance(site["log_prob"]).detach()
                costs[name].add((site["cond_indep_stack"], term))
    with torch.no_grad():
        return {name: cost.sum_to(guide_trace.nodes[name]["cond_indep_stack"]) for name, cost in costs.items()}


def normalised_score(site: Site, cost: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """A site's cost prediction, and its score divided by the running standard deviation of the prediction error."""
    prediction = _shaped_as(cost, site["infer"].get("baseline", {}).get("baseline_value", torch.zeros_like(cost)))
    score = site["score_parts"].score_function
    if normalizer := site["infer"].get("score_normalizer"):
        normalizer.baseline.update_moments(cost, cost - prediction.detach(), active)
        score = score / normalizer.baseline.signal_std()
    return prediction, score


def _shaped_as(cost: Tensor, value: Tensor) -> Tensor:
    """``value`` in the shape of a cost, which has no leading dimensions of size 1."""
    value = detach_provenance(value)
    while value.dim() > cost.dim():
        value = value.squeeze(0)
    return value.expand(cost.shape)
