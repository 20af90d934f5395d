"""Bounds on log p(x), evaluated on a whole dataset and split by site."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, overload

import pyro
import torch
from torch import Tensor, nn

from pplmodels import distributed
from pplmodels.defaults import default_device
from pplmodels.errors import InputError
from pplmodels.infer.compile.program import CompiledProgram
from pplmodels.infer.looking import put_back, unchanged
from pplmodels.infer.observed import Fitting
from pplmodels.infer.traces import local_params, pair_traces
from pplmodels.memo import memoise
from pplmodels.sites import random_sites

LogProbs = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def log_probs(model, guide, x: Tensor, samples: int | None = None) -> LogProbs:
    """Run the guide and the replayed model once; returns log p and log q ``(B)`` of each site, and latent values.

    With ``samples``, that many samples of the guide are drawn at once in a leading dimension, ``(samples, B)``.
    Computations that do not depend on them, such as the encoder, run only once. The pair is not changed
    (:func:`pplmodels.infer.looking.unchanged`).
    """
    with unchanged(model, guide), Fitting():
        return stateful_log_probs(model, guide, x, samples)


def stateful_log_probs(model, guide, x: Tensor, samples: int | None = None) -> LogProbs:
    """:func:`log_probs`, but changes to the pair by the run are kept, e.g. batch statistics in training mode."""
    at_once = pyro.plate("samples", samples, dim=-2) if samples else nullcontext()
    with local_params(), memoise(), default_device(getattr(x, "device", None)):
        with at_once:
            guide_trace, model_trace = pair_traces(model, guide, x)
        for trace in (model_trace, guide_trace):
            trace.compute_log_prob()
    log_p, log_q = (
        {name: site["log_prob"] for name, site in random_sites(trace) if not site["infer"].get("is_auxiliary")}
        for trace in (model_trace, guide_trace)
    )
    return log_p, log_q, {name: site["value"] for name, site in random_sites(guide_trace) if name in log_q}


def compiled_log_probs(
    model, guide, samples: int | None = None, fallback: bool = False
) -> Callable[[Tensor], LogProbs]:
    """:func:`log_probs` of a pair as a function of the images, which is traced once per batch size and replayed.

    The pair is not changed. Modules in evaluation mode are assumed not to write to their buffers.
    """

    def program(x: Tensor) -> LogProbs:
        with pyro.validation_enabled(False):
            return stateful_log_probs(model, guide, x, samples)

    replay = CompiledProgram(program, lambda: {"model": model, "guide": guide}, fallback)

    @torch.no_grad()
    def log_prob_fn(x: Tensor) -> LogProbs:
        with put_back(model, guide) if _may_write(model) or _may_write(guide) else nullcontext():
            return replay(x)

    return log_prob_fn


def _may_write(module) -> bool:
    return not isinstance(module, nn.Module) or any(part.training for part in module.modules())


def base_site_name(site: str) -> str:
    """The name of a site without its step number.

    >>> base_site_name("z_where_2")
    'z_where'
    """
    return re.sub(r"_\d+$", "", site)


@overload
def elbo_terms(
    log_prob_fn: Callable[[Tensor], LogProbs], batches: Iterable[Tensor], statistic: None = None
) -> tuple[dict[str, float], None]: ...


@overload
def elbo_terms(
    log_prob_fn: Callable[[Tensor], LogProbs],
    batches: Iterable[Tensor],
    statistic: Callable[[dict[str, Tensor]], Tensor],
) -> tuple[dict[str, float], Tensor]: ...


@torch.no_grad()
def elbo_terms(
    log_prob_fn: Callable[[Tensor], LogProbs],
    batches: Iterable[Tensor],
    statistic: Callable[[dict[str, Tensor]], Tensor] | None = None,
) -> tuple[dict[str, float], Tensor | None]:
    """The ELBO (K = 1) over all images of ``batches``, in nats per image, and its terms.

    ``log_prob_fn`` is :func:`log_probs` of a pair (``partial(log_probs, model, guide)``) or
    :func:`compiled_log_probs`. Returns a dict and ``statistic(latents)`` of all images. The dict contains ``elbo``,
    ``reconstruction`` (the log-probability of observed sites), ``kl``, and ``kl/<site>`` summed over the steps of a
    site ("kl/z_where" is the sum of "z_where_1" and "z_where_2"). Each KL is log q - log p at the guide's sample, so
    ``elbo = reconstruction - kl`` holds exactly. The KL weight is 1, all images are included, and sums use float64. In
    distributed training, each rank passes its own batches, and results cover all ranks.
    """
    totals: dict[str, Tensor | float] = defaultdict(float)
    images, statistics = 0, []
    for x in batches:
        log_p, log_q, latents = log_prob_fn(x)
        images += len(x)
        for site in log_p.keys() | log_q.keys():
            if site in log_q:
                kl = (log_q[site] - log_p[site]).sum(dtype=torch.float64)
                totals["kl"] += kl
                totals["kl/" + base_site_name(site)] += kl
            else:
                totals["reconstruction"] += log_p[site].sum(dtype=torch.float64)
        if statistic is not None:
            statistics.append(statistic(latents))
    totals["elbo"] = totals["reconstruction"] - totals["kl"]
    names = sorted(totals)
    sums = [torch.as_tensor(number, dtype=torch.float64, device="cpu") for number in (images, *map(totals.get, names))]
    number, *sums = distributed.all_reduce_list(sums)
    terms = {name: float(total / number) for name, total in zip(names, sums, strict=True)}
    return terms, None if statistic is None else distributed.all_gather(torch.cat(statistics))


def log_weights(terms: LogProbs, images: int) -> Tensor:
    """log p(x, z_k) - log q(z_k | x) of each sample and image, float64 ``(K, B)``, from :func:`log_probs`."""
    log_p, log_q, _ = terms
    zero = torch.zeros((), dtype=torch.float64, device="cpu")  # a pair may have no latents
    log_weight = sum(map(Tensor.double, log_p.values()), zero) - sum(map(Tensor.double, log_q.values()), zero)
    return log_weight.view(-1, images)


class IWBound(NamedTuple):
    """An importance-weighted bound, ``bound (N)``, in nats per image.

    ``ess (N)`` is the effective sample size, (sum w)^2 / sum w^2. If it is close to 1, a single sample
    dominates the bound.
    """

    bound: Tensor
    ess: Tensor


@torch.no_grad()
def importance_weighted(
    log_prob_fn: Callable[[Tensor], LogProbs], batches: Iterable[Tensor], num_samples: int
) -> IWBound:
    """log (1/K) sum_{k=1..K} p(x, z_k) / q(z_k | x) of each image for K = ``num_samples`` samples of the guide.

    In expectation this is a lower bound on log p(x), which gets tighter with every sample (Burda et al. 2016, arXiv
    1509.00519). ``log_prob_fn`` is as for :func:`elbo_terms`, or draws several samples at once. The memory use is that
    of one run on the largest batch, independent of K, and the number of samples per run does not affect the bound.
    Sums use float64.
    """
    if num_samples < 1:
        raise InputError(f"an importance-weighted bound needs at least one sample, not {num_samples}.")
    bounds, sizes = [], []
    for x in batches:
        total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        squares, drawn = total.clone(), 0
        while drawn < num_samples:
            log_weight = log_weights(log_prob_fn(x), len(x))[: num_samples - drawn]
            total = torch.logaddexp(total, log_weight.logsumexp(0))
            squares = torch.logaddexp(squares, (2 * log_weight).logsumexp(0))
            drawn += len(log_weight)
        bounds.append(total - math.log(num_samples))
        sizes.append((2 * total - squares).exp())
    return IWBound(torch.cat(bounds), torch.cat(sizes))


@torch.no_grad()
def nonfinite_sites(model, guide, x: Tensor) -> list[str]:
    """The sites whose log-probability is infinite or NaN for any image of ``x``, guide sites first."""
    with pyro.validation_enabled(False):
        log_p, log_q, _ = log_probs(model, guide, x)
    return [
        f"{site} in the {role}"
        for role, terms in (("guide", log_q), ("model", log_p))
        for site, term in terms.items()
        if not term.isfinite().all()
    ]


def bits_per_dim(nats: float, shape: Sequence[int], is_density: bool) -> float:
    """Convert a log-probability of 8-bit images in nats per image to bits per pixel and channel (lower is better).

    A density on [0, 1] (:func:`pplmodels.data.dequantize`) is the probability of one level times 256 per dimension.

    >>> round(bits_per_dim(-1000.0, (3, 8, 8), is_density=False), 3)
    7.514
    """
    return -nats / (math.prod(shape) * math.log(2)) + (8 if is_density else 0)
