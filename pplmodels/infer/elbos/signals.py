"""Learning signals of score functions: costs minus what other information predicts of them.

Baselines are those of Pyro, with the normalization of NVIL (Mnih & Gregor 2014, arXiv 1402.0030, section 2.3.3). A
score-function gradient is (cost - baseline) times the gradient of log q. The costs of a scene vary by hundreds of nats
early in training and by a few nats at the end, so no single learning rate is suitable. NVIL divides the signal by its
running standard deviation if this exceeds 1. This applies to sites whose ``infer`` has a :class:`ScoreNormalizer` as
``"score_normalizer"``, which :meth:`NeuralBaseline.infer_config` creates. The division scales the gradients of each
site by a positive factor. The direction within a site stays unbiased, but the weight relative to the other gradients
changes.
"""

from typing import Any

import torch
from pyro.infer.tracegraph_elbo import _construct_baseline
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from pplmodels.infer.elbos.estimators import score_function
from pplmodels.sites import Site

PARTICLES = "num_particles_vectorized"  # the name of Pyro's plate


def score_term(name: str, site: Site, cost: Tensor, weight: Tensor | None) -> Tensor:
    """The surrogate of a site's score function, minus the loss of its baseline.

    ``cost`` is detached and in the site's plates, and ``weight`` is the probability that the site is sampled, or None
    for 1.
    """
    score = score_function(site)
    if site["infer"]["estimator"] == "rloo":
        return _total(score * _left_out(site, cost), weight)
    signal, loss = _with_baseline(name, site, cost)
    if normalizer := site["infer"].get("score_normalizer"):
        active = _shaped_as(cost, normalizer.mask)
        active = active if weight is None else weight * active
        normalizer.baseline.update_moments(cost, signal.detach(), active)
        score = score / normalizer.baseline.signal_std()
    if weight is not None and isinstance(loss, Tensor):
        loss = (weight * signal.square()).sum()
    return _total(score * signal.detach(), weight) - loss


def _left_out(site: Site, cost: Tensor) -> Tensor:
    """Each particle's cost minus the mean cost of the others (Kool et al. 2019, "Buy 4 REINFORCE samples, get a
    baseline for free!", ICLR workshop on deep reinforcement learning meets structured prediction, equation 5).
    """
    dim: Any = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES)
    others = cost.shape[dim] - 1
    return cost - (cost.sum(dim, keepdim=True) - cost) / others


def _with_baseline(name: str, site: Site, cost: Tensor) -> tuple[Tensor, Tensor | float]:
    """The cost minus its baseline, if there is one, and the loss of the baseline."""
    options = site["infer"].get("baseline", {})
    if "baseline_value" in options:  # one prediction may be shared by all particles
        options = {**options, "baseline_value": _shaped_as(cost, options["baseline_value"])}
    predicting = {**site, "infer": {**site["infer"], "baseline": options}}
    used, loss, baseline = _construct_baseline(name, predicting, cost)
    return cost - baseline if used else cost, loss


def _shaped_as(cost: Tensor, value: Tensor) -> Tensor:
    """``value`` in the shape of a cost, which has no leading dimensions of size 1."""
    value = detach_provenance(value)
    while value.dim() > cost.dim() and value.shape[0] == 1:
        value = value.squeeze(0)
    fits = value.dim() <= cost.dim() and torch.broadcast_shapes(value.shape, cost.shape) == cost.shape
    return value.expand(cost.shape) if fits else value


def _total(term: Tensor, weight: Tensor | None) -> Tensor:
    return term.sum() if weight is None else (weight * term).sum()
