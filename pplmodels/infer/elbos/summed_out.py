"""The bound with the sites of a stopping chain summed out (:mod:`pplmodels.infer.elbos.stopping_chain`)."""

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceGraph_ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor

from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.elbos.nvil import normalised_score
from pplmodels.infer.elbos.stopping_chain import StoppingChain, is_choice, is_stop, trace_path
from pplmodels.sites import Site, random_sites


class SummedOut_ELBO(TraceGraph_ELBO):
    """TraceGraph_ELBO in which the stops and choices of a stopping chain are summed out instead of sampled.

    .. code-block:: text

        path ~ q(path),  the guide's run that never stops
        bound = E_path sum_{n=0..T} q(n | path) [log p(x, n, path_{<=n}) - log q(n | path) - log q(path_{<=n})]

    This is the expectation of the sampled bound over n and over the choices made up to n. Bound and gradient have the
    same means as those of TraceGraph_ELBO (Rao-Blackwell), with less variance and without a score function or
    baselines. The guide runs once, along its path. The model also runs once, with the outcomes in a new leftmost batch
    dimension of its stops and choices, so it must broadcast over additional batch dimensions. All other sites of the
    guide must be reparameterized. They must not depend on a choice, and may depend on a stop only by being masked
    after it. This is checked if Pyro's validation is on.

    Arguments:
        choices: whether to sum out choices, too. With K choices per step, T steps have 1 + K + ... + K^T instead of
            T + 1 outcomes. Otherwise choices are sampled on the path, and their score functions multiply the expected
            cost over n, with the baselines and learning signals of :class:`NVIL_ELBO`. In this case later sites may
            depend on choices.
        ...: Pyro's arguments, by keyword.
    """

    def __init__(self, *, choices: bool = True, **settings):
        super().__init__(**settings)
        self.choices = choices

    def _get_trace(self, model, guide, args, kwargs) -> tuple[Trace, Trace]:
        path = prune_subsample_sites(trace_path(guide, *args, **kwargs))
        path.compute_score_parts()
        outcomes = _with_values(path, (stops := StoppingChain(path, self.choices)).outcomes().values)
        model_trace = poutine.trace(poutine.replay(model, trace=outcomes)).get_trace(*args, **kwargs)
        model_trace = prune_subsample_sites(model_trace)
        model_trace.compute_log_prob()
        if is_validation_enabled():
            check_model_guide_match(model_trace, path, stops.sites[0]["value"].dim())
            state = State({"guide": guide})
            before = Snapshot.of(state)  # the check runs the guide once per outcome
            _check_path(path, stops, guide, args, kwargs)
            state.restore_bindings()
            before.restore()
        return model_trace, path

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        stops = StoppingChain(guide_trace, self.choices)
        _, probs, log_prob = stops.outcomes()
        worth = -log_prob  # per outcome and image
        bound: Tensor | float = 0.0  # of terms that do not depend on the outcome
        for _, site in random_sites(model_trace):
            if (term := _by_image(site, stops)) is None:
                bound = bound + site["log_prob_sum"]
            else:
                worth = worth + term
        bound = bound + (probs * worth).sum()
        summed = {site["name"] for _, site in stops.choices}
        drawn, steps = [], 0
        for name, site in random_sites(guide_trace):
            if is_stop(site):
                steps += 1
            elif name not in summed:
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
        """The negative bound, from ``num_particles`` paths."""
        with torch.no_grad():
            return -self._loss_and_surrogate_loss(model, guide, args, kwargs)[0].item()


def _by_image(site: Site, stops: StoppingChain) -> Tensor | None:
    """A site's log-probability per image, or None if the site is outside of the stops' plates."""
    frames = [frame for frame in stops.sites[0]["cond_indep_stack"] if frame.vectorized]
    if not set(frames) <= set(site["cond_indep_stack"]):
        return None
    return MultiFrameTensor((site["cond_indep_stack"], site["log_prob"])).sum_to(frames)


def _score(site: Site, downstream: Tensor, reached: Tensor) -> Tensor:
    """The surrogate of a choice and of its baseline. In each image, the choice is made with probability ``reached``.

    ``downstream`` is that probability times the choice's mean cost over the outcomes in which it is made.
    """
    cost = downstream / reached.clamp(min=torch.finfo(reached.dtype).tiny)
    prediction, score = normalised_score(site, cost, reached)
    signal = cost - prediction
    return (reached * (score * signal.detach() - signal.square())).sum()


def _check_path(path: Trace, stops: StoppingChain, guide, args: tuple, kwargs: dict) -> None:
    """Compare the path with a run of the guide for each count, with other values of all choices.

    Raises ValueError if they differ.
    """
    others = {site["name"]: _other(site) for _, site in stops.choices}
    for n, log_prob in enumerate(stops.log_prob):
        codes = {site["name"]: code[n] for site, code in zip(stops.sites, stops.codes, strict=True)}
        outcome = _with_values(path, codes | others)
        outcome = poutine.trace(poutine.replay(guide, trace=outcome)).get_trace(*args, **kwargs)
        outcome.compute_log_prob()
        steps, chain = 0, torch.zeros_like(log_prob)
        for name, site in random_sites(path):
            found = outcome.nodes[name]["log_prob"]
            if is_stop(site):
                steps, chain = steps + 1, chain + found
                continue
            path_log_prob = site["log_prob"]
            if name in others:
                path_log_prob = scale_and_mask(site["fn"].log_prob(others[name]), site["scale"], site["mask"])
            elif not (site["fn"].has_rsample or is_choice(site)):
                raise ValueError(f"site {name} is neither a stop nor reparameterized, so it cannot be summed out.")
            if not torch.allclose(found, path_log_prob * (steps <= n), rtol=1e-4, atol=1e-3):
                cause = "a choice or on the stops" if others else "the stops"
                raise ValueError(
                    f"site {name} of the guide depends on {cause} in another way than by being masked after step "
                    f"{steps}, so a single path cannot represent all outcomes."
                )
        if not torch.allclose(chain, log_prob, rtol=1e-4, atol=1e-3):
            cause = ", or the stops depend on a choice" if others else ""
            raise ValueError(f"the later stops are not 0 with probability 1 after a stop{cause} (found for n = {n}).")


def _other(site: Site) -> Tensor:
    """A value of a choice that differs from the one in the trace."""
    number = site["fn"].enumerate_support(expand=False).shape[0]
    return (site["value"] + 1) % number


def _with_values(trace: Trace, values: dict[str, Tensor]) -> Trace:
    """A copy of a trace with the values of some sites replaced."""
    copied = trace.copy()
    for name, value in values.items():
        copied.nodes[name] = {**copied.nodes[name], "value": value}
    return copied
