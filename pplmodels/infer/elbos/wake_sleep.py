"""Reweighted wake-sleep (Bornschein & Bengio 2015, arXiv 1406.2751; Le et al. 2019, arXiv 1805.10469)."""

import inspect
import math
from collections.abc import Callable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pplmodels.infer.elbos.importance_weighted import renyi
from pplmodels.infer.elbos.particles import Cut, ParticleELBO, Particles, Weights, is_latent
from pplmodels.sites import random_sites


class ReweightedWakeSleep_ELBO(ParticleELBO):
    """Reweighted wake-sleep: the model maximizes the bound of K particles, and the guide fits posterior samples.

    .. code-block:: text

        z_k ~ q(z | x),   v_k = w_k / sum_j w_j,   w_k = p(x, z_k) / q(z_k | x)

        model, wake phase    maximize log (1/K) sum_k w_k:  gradient sum_k v_k d log p(x, z_k)
        guide, wake phase    maximize sum_k v_k log q(z_k | x), with fixed v_k and z_k
        guide, sleep phase   maximize log q(z | x) for (x, z) ~ p

    No gradient passes through samples, so sites can be discrete or continuous, and no score function with a learning
    signal is needed (Bornschein & Bengio 2015, arXiv 1406.2751, equations 6 to 9). The loss is the negative bound of
    K particles, with the weights of :class:`ImportanceWeighted_ELBO`. In the guide's updates, log q is not scaled by a
    KL weight. Parameters that model and guide share get the sum of the gradients of both.

    The sleep phase draws as many images from the model as the batch has. It calls ``model(n=...)``, in which ``x`` is
    None and nothing is observed, and passes the sampled values of observed sites to the guide instead of the arguments
    that they were. If the model has no argument ``n``, or if there are arguments that are not the values of observed
    sites, such as a mask or features of x, ``dream`` must be given.

    Arguments:
        num_particles: K, at least 2 for the guide's wake phase.
        insomnia: weight of the guide's wake phase; its sleep phase has the weight ``1 - insomnia``.
        dream: ``dream(model, *args, **kwargs)`` samples all sites of the model, without observations, for the arguments
            of a step. It returns a tuple with the arguments of the guide for the sampled images.
        chunk, ...: as for :class:`ImportanceWeighted_ELBO`.
    """

    def __init__(
        self,
        num_particles: int = 5,
        *,
        insomnia: float = 1.0,
        dream: Callable[..., tuple] | None = None,
        chunk: int | None = None,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(num_particles, chunk, max_plate_nesting=max_plate_nesting)
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia must be from 0 (only sleep) to 1 (only wake), not {insomnia!r}")
        if insomnia and num_particles == 1:
            raise ValueError(
                "the weight of a single particle is always 1, so the guide's wake phase needs num_particles of at "
                "least 2; with insomnia=0, one is enough"
            )
        self.insomnia, self.dream = insomnia, dream

    def _cut(self) -> Cut:
        return Cut()

    def _check(self, run: Particles) -> None:
        for name, site in run.guide.items():
            if not (site["is_observed"] or name in run.latents):
                raise ValueError(
                    f"{name} of the guide is a Delta, which has no density to fit: wake-sleep needs random sites, so "
                    "use ImportanceWeighted_ELBO"
                )

    def _bound(self, log_weight: Tensor) -> tuple[Tensor, Weights]:
        normalised = log_weight.softmax(0)
        return renyi(log_weight, 0.0), Weights(normalised, normalised)

    def _surrogate(self, run: Particles, weights: Weights, cut: Cut) -> Tensor:
        share = run.scale * weights.normalised
        factors = run.log_q - sum((run.term(run.guide[name]) for name in run.latents), torch.zeros_like(run.log_q))
        surrogate = (share * (run.log_p - factors)).sum() + run.outside / self.num_particles
        for name in run.latents:
            surrogate = surrogate + self.insomnia * (share * run.per_image(_density(run.guide[name]))).sum()
        return surrogate

    def _further(self, run: Particles, model, guide, args: tuple, kwargs: dict) -> Tensor | float:
        """The sleep phase."""
        if self.insomnia == 1:
            return 0.0
        with torch.no_grad(), poutine.trace() as tracer:
            if self.dream is not None:
                args, kwargs = self.dream(model, *args, **kwargs), {}
            else:
                args, kwargs = _dream(run, tracer.trace, model, args, kwargs)
        fitted = poutine.trace(poutine.replay(guide, trace=tracer.trace)).get_trace(*args, **kwargs)
        fitted = prune_subsample_sites(fitted)
        fitted.compute_log_prob()
        total, images = run.log_p.new_zeros(()), run.log_p.shape[1]
        for name, site in random_sites(fitted):
            if is_latent(site):
                if name not in tracer.trace:
                    raise ValueError(
                        f"{name} is only a site of the guide, but the sleep phase fits the guide to samples of the "
                        "model, which have no value for it: use insomnia=1"
                    )
                total = total + _density(site).sum()
                sizes = [frame.size for frame in site["cond_indep_stack"] if frame in run.plates[-1:]]
                images = sizes[0] if sizes and sizes[0] > 0 else images
        scale = torch.as_tensor(run.scale, dtype=total.dtype, device=total.device).expand(run.log_p.shape[1]).sum()
        return (1 - self.insomnia) * total * scale / images


def _density(site) -> Tensor:
    """The masked log-probability of a site without its scale."""
    return scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])


def _dream(run: Particles, drawn: Trace, model, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Sample images from the model inside a trace; returns the arguments of the guide for them."""
    parameters = inspect.signature(getattr(model, "forward", model)).parameters
    if "n" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(
            "the sleep phase samples images by model(n=...), but the model has no argument n: give it arguments "
            "x=None and n=None and observe x with obs=x, or pass dream to ReweightedWakeSleep_ELBO"
        )
    names = {}
    for key, value in (*enumerate(args), *kwargs.items()):
        if value is not None:
            names[key] = next((n for n, s in run.model.items() if s["is_observed"] and s["value"] is value), "")
            if not names[key]:
                what = f"argument {key + 1}" if isinstance(key, int) else f"the argument {key}"
                raise ValueError(
                    f"{what} is not the value of an observed site of the model, so the sleep phase does not know its "
                    "value for sampled images: pass dream to ReweightedWakeSleep_ELBO"
                )
    model(n=run.log_p.shape[1])
    found = {key: drawn.nodes[name]["value"] for key, name in names.items()}
    changed = tuple(found.get(key, value) for key, value in enumerate(args))
    return changed, {key: found.get(key, value) for key, value in kwargs.items()}
