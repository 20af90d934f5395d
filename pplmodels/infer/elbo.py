"""Gradient estimators."""

from collections import defaultdict

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceGraph_ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor

from pplmodels import ranks
from pplmodels.infer.state import Snapshot, State
from pplmodels.infer.stops import Stops, is_choice, is_stop, trace_path


class NVIL_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO whose learning signals are divided by their running deviation.

    A score-function gradient is (cost - baseline) times the gradient of log q. The costs of a scene span
    hundreds of nats at first and a few at the end, against which no learning rate is right. NVIL (Mnih & Gregor
    2014, arXiv 1402.0030, section 2.3.3) divides the signal by its running standard deviation where that
    exceeds 1. A site takes part when its ``infer`` has ``"learning_signal": {"keeper": k, "active": a}``: the keeper of
    these moments has ``observe(cost, signal, active)`` and ``signal_scale()``, and ``a`` is 1 for the images where the
    site is a choice; :meth:`guides.NeuralBaseline.control` builds it. Everything else, the bound included, is
    TraceGraph_ELBO's.

    The division makes the discrete sites' share of the gradient smaller by a common positive factor: its
    direction within a site stays unbiased, its weight against the reparameterised share does not.
    """

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace):
        for name, cost in _downstream_costs(model_trace, guide_trace).items():
            site = guide_trace.nodes[name]
            signal = site["infer"].get("learning_signal")
            if signal is None:
                continue
            prediction, score = _normalised(site, cost, _shaped_as(cost, signal["active"]))
            options = site["infer"].get("baseline", {})
            if "baseline_value" in options:  # one prediction may serve all particles
                site["infer"] = {**site["infer"], "baseline": {**options, "baseline_value": prediction}}
            site["score_parts"] = site["score_parts"]._replace(score_function=score)
        return super()._loss_and_surrogate_loss_particle(model_trace, guide_trace)


class FreeBits_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO in whose gradient a latent site's KL, averaged over a batch, costs nothing below ``free`` nats.

    .. code-block:: text

        surrogate = E log p(x | z) - sum over sites max(free, mean over images of KL_site)

    Keeps a site from being switched off before the decoder has learnt to use it (Kingma et al. 2016, arXiv 1606.04934,
    appendix C.8). The value is the bound itself. All of the guide's sites must be reparameterised.

    Arguments:
        free: nats an image and site.
    """

    def __init__(self, free: float, **options):
        super().__init__(**options)
        self.free = free

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        bound, surrogate = super()._loss_and_surrogate_loss_particle(model_trace, guide_trace)
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if not site["fn"].has_rsample:
                raise ValueError(f"site {name} is not reparameterised: free bits need its KL's gradient")
            kl = ranks.total((site["log_prob"] - model_trace.nodes[name]["log_prob"]).sum()) / ranks.number()
            surrogate = surrogate + (self.free * site["log_prob"].numel() - kl).clamp(min=0)
        return bound, surrogate


class SummedOut_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO with a chain of stops, and choices, summed out and not sampled (:mod:`pplmodels.infer.stops`).

    .. code-block:: text

        path ~ q(path),  the guide's run that never stops
        bound = E_path sum_{n=0..T} q(n | path) [log p(x, n, path_{<=n}) - log q(n | path) - log q(path_{<=n})]

    The expectation over n, and over the choices made up to n, of the sampled bound, term by term, so bound and gradient
    have the same means as TraceGraph_ELBO's (Rao-Blackwell), with less variance and without a score function or
    baselines. The guide runs once, along its path; the model runs once, with the outcomes in a new leftmost batch
    dimension of its stops and choices, so it must broadcast over batch dimensions that it does not know. Everything
    else that the guide draws must be reparameterised, and must not depend on a choice, nor on a stop except by being
    masked after it: this is checked while Pyro's validation is on.

    Arguments:
        choices: whether choices are summed out too. K of them a step make of T steps' T + 1 outcomes 1 + K + ... + K^T.
            Otherwise they are drawn on the path, and their score functions meet the expected cost over n, with the
            baselines and learning signals of :class:`NVIL_ELBO`; then what is drawn later may depend on them.
        ...: Pyro's, by keyword.
    """

    def __init__(self, *, choices: bool = True, **settings):
        super().__init__(**settings)
        self.choices = choices

    def _get_trace(self, model, guide, args, kwargs) -> tuple[Trace, Trace]:
        path = prune_subsample_sites(trace_path(guide, *args, **kwargs))
        path.compute_score_parts()
        outcomes = _with_values(path, (stops := Stops(path, self.choices)).outcomes().values)
        model_trace = poutine.trace(poutine.replay(model, trace=outcomes)).get_trace(*args, **kwargs)
        model_trace = prune_subsample_sites(model_trace)
        model_trace.compute_log_prob()
        if is_validation_enabled():
            check_model_guide_match(model_trace, path, stops.sites[0]["value"].dim())
            state = State({"guide": guide})
            before = Snapshot(state.tensors, state.generators)  # the check runs the guide once for each outcome
            _check_path(path, stops, guide, args, kwargs)
            state.restore_bindings()
            before.restore()
        return model_trace, path

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        stops = Stops(guide_trace, self.choices)
        _, probs, log_prob = stops.outcomes()
        worth, bound = -log_prob, 0.0  # of each outcome, image by image; and of what always counts
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                if (term := _by_image(site, stops)) is None:
                    bound = bound + site["log_prob_sum"]
                else:
                    worth = worth + term
        bound = bound + (probs * worth).sum()
        summed = {site["name"] for _, site in stops.choices}
        drawn, steps = [], 0
        for site in guide_trace.nodes.values():
            if is_stop(site):
                steps += 1
            elif site["type"] == "sample" and site["name"] not in summed:
                if (term := _by_image(site, stops)) is None:
                    bound = bound - site["log_prob_sum"]
                else:
                    drawn.append((steps, site, stops.reached(steps) * term))
                    bound = bound - drawn[-1][2].sum()
        surrogate = bound
        for number, (step, site, _) in enumerate(drawn):
            if is_choice(site):
                later = sum(term for _, _, term in drawn[number:])
                downstream = (probs[step:] * worth[step:]).sum(0) - later
                surrogate = surrogate + _score(site, downstream.detach(), stops.reached(step).detach())
        return bound, -surrogate

    def loss(self, model, guide, *args, **kwargs) -> float:
        """Minus the bound, from one path (``num_particles`` of them)."""
        with torch.no_grad():
            return -self._loss_and_surrogate_loss(model, guide, args, kwargs)[0].item()


def _by_image(site: dict, stops: Stops) -> Tensor | None:
    """A site's log-probability image by image; None outside of the stops' plates, where it always counts."""
    frames = [frame for frame in stops.sites[0]["cond_indep_stack"] if frame.vectorized]
    if not set(frames) <= set(site["cond_indep_stack"]):
        return None
    return MultiFrameTensor((site["cond_indep_stack"], site["log_prob"])).sum_to(frames)


def _score(site: dict, downstream: Tensor, reached: Tensor) -> Tensor:
    """The surrogate of a choice, and of its baseline, image by image made with the probability ``reached``.

    ``downstream`` is that times what the choice meets: its mean over the outcomes in which it is made.
    """
    cost = downstream / reached.clamp(min=torch.finfo(reached.dtype).tiny)
    prediction, score = _normalised(site, cost, reached)
    signal = cost - prediction
    return (reached * (score * signal.detach() - signal.square())).sum()


def _check_path(path: Trace, stops: Stops, guide, args: tuple, kwargs: dict) -> None:
    """Compare the path with the guide's own account of each count, all choices being others than the path's.

    Raises ValueError where they differ.
    """
    others = {site["name"]: _other(site) for _, site in stops.choices}
    for n, log_prob in enumerate(stops.log_prob):
        codes = {site["name"]: code[n] for site, code in zip(stops.sites, stops.codes, strict=True)}
        outcome = _with_values(path, codes | others)
        outcome = poutine.trace(poutine.replay(guide, trace=outcome)).get_trace(*args, **kwargs)
        outcome.compute_log_prob()
        steps, chain = 0, torch.zeros_like(log_prob)
        for name, site in path.nodes.items():
            if site["type"] != "sample":
                continue
            found = outcome.nodes[name]["log_prob"]
            if is_stop(site):
                steps, chain = steps + 1, chain + found
                continue
            path_log_prob = site["log_prob"]
            if name in others:
                path_log_prob = scale_and_mask(site["fn"].log_prob(others[name]), site["scale"], site["mask"])
            elif not (site["fn"].has_rsample or is_choice(site)):
                raise ValueError(f"site {name} is neither a stop nor reparameterised: it cannot be summed out.")
            if not torch.allclose(found, path_log_prob * (steps <= n), rtol=1e-4, atol=1e-3):
                cause = "a choice, or on the stops" if others else "the stops"
                raise ValueError(
                    f"site {name} of the guide depends on {cause} other than by being masked after step {steps}: "
                    "one path does not stand for all outcomes."
                )
        if not torch.allclose(chain, log_prob, rtol=1e-4, atol=1e-3):
            cause = " or the stops depend on a choice" if others else ""
            raise ValueError(f"after a stop the later stops do not stay at 0 for certain{cause} (looking at n = {n}).")


def _other(site: dict) -> Tensor:
    """Another value of a choice than the one in a trace."""
    number = site["fn"].enumerate_support(expand=False).shape[0]
    return (site["value"] + 1) % number


def _with_values(trace: Trace, values: dict[str, Tensor]) -> Trace:
    """A copy of a trace with other values of some sites."""
    copied = trace.copy()
    for name, value in values.items():
        copied.nodes[name] = {**copied.nodes[name], "value": value}
    return copied


def _downstream_costs(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    """For each non-reparameterised guide site, the terms of the bound that depend on it, added up an image."""
    costs = defaultdict(MultiFrameTensor)
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for site in trace.nodes.values():
            if site["type"] == "sample":
                for name in get_provenance(site["log_prob_sum"]):
                    term = sign * detach_provenance(site["log_prob"]).detach()
                    costs[name].add((site["cond_indep_stack"], term))
    with torch.no_grad():
        return {name: cost.sum_to(guide_trace.nodes[name]["cond_indep_stack"]) for name, cost in costs.items()}


def _normalised(site: dict, cost: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """A site's prediction of a cost, and its score over the running deviation of what the prediction misses."""
    prediction = _shaped_as(cost, site["infer"].get("baseline", {}).get("baseline_value", torch.zeros_like(cost)))
    score = site["score_parts"].score_function
    if "learning_signal" in site["infer"]:
        keeper = site["infer"]["learning_signal"]["keeper"]
        keeper.observe(cost, cost - prediction.detach(), active)
        score = score / keeper.signal_scale()
    return prediction, score


def _shaped_as(cost: Tensor, value: Tensor) -> Tensor:
    """``value`` with the shape of a cost, which has no leading dimensions of size 1."""
    value = detach_provenance(value)
    while value.dim() > cost.dim():
        value = value.squeeze(0)
    return value.expand(cost.shape)
